/* The two pictures: accuracies on the held-back examples as bars, and a scoreboard as dots on one axis. */

import { drawn, percent } from "./dom.js";

const NAMES = {
  random_trunk_ridge: "random trunk",
  retrieval: "nearest trained",
  soup: "trained soup",
};
const SENTENCE_NAMES = {
  random_trunk_ridge: "a random trunk",
  retrieval: "the nearest trained network",
  soup: "a soup of trained networks",
};
const [NARROWEST, WIDEST, NARROW] = [280, 760, 460];
const WAITING = new ResizeObserver((entries) => entries.forEach(({ target }) => redraw.get(target)?.()));
const redraw = new WeakMap();

/** Draws with `draw(width)`, the width of the place in pixels, and again when that changes: text keeps its size. */
export function drawInto(place, draw) {
  let drawnAt = 0;
  redraw.set(place, () => {
    const width = Math.round(Math.min(Math.max(place.clientWidth, NARROWEST), WIDEST));
    if (width !== drawnAt && place.clientWidth) place.replaceChildren(draw((drawnAt = width)));
  });
  redraw.get(place)();
  WAITING.observe(place);
}

export const nameInSentence = (source) => SENTENCE_NAMES[source] ?? nameOf(source);
export const nameOf = (source) => NAMES[source] ?? source.replaceAll("_", " ");

/** Bars for the generated weights and for every reference; the returned one stands out. */
export function drawHeldBack(report, width) {
  const { held_back: held, source } = report.verification;
  const asked = report.generator.name;
  const references = Object.entries(held.references).sort((a, b) => b[1] - a[1]);
  const bars = [[asked, held.generated], ...references];
  const [left, right, step, top] = [width < NARROW ? 116 : 132, 66, 38, 26];
  const x = (value) => left + value * (width - left - right);
  const height = top + bars.length * step + 22;
  const chart = drawn("svg", { viewBox: `0 0 ${width} ${height}`, width, height, class: "chart", role: "img" });
  chart.append(drawn("title", {}, `Accuracy on ${held.examples} held-back examples: ${inWords(bars)}`));
  drawAxis(chart, x, top, height - 22);
  const chance = 1 / report.classes;
  chart.append(
    drawn("line", { class: "chance", x1: x(chance), x2: x(chance), y1: top - 6, y2: height - 22 }),
    drawn("text", { class: "tick", x: x(chance), y: top - 11, "text-anchor": "middle" }, "chance"),
  );
  bars.forEach(([name, value], index) => {
    const middle = top + index * step + step / 2;
    const group = drawn("g", { class: name === source ? "bar given" : "bar" });
    const error = Math.sqrt((value * (1 - value)) / held.examples);
    const [low, high] = [x(Math.max(0, value - error)), x(Math.min(1, value + error))];
    group.append(
      drawn("text", { class: "name", x: left - 12, y: middle + 5, "text-anchor": "end" }, nameOf(name)),
      drawn("rect", { x: left, y: middle - 9, width: Math.max(x(value) - left, 1.5), height: 18, rx: 3 }),
      drawn("path", { class: "whisker", d: `M${low} ${middle}H${high}M${low} ${middle - 4}v8M${high} ${middle - 4}v8` }),
      drawn("text", { class: "value", x: width, y: middle + 5, "text-anchor": "end" }, percent(value)),
    );
    chart.append(group);
  });
  return chart;
}

/** A row for every data set: generated, trained from scratch, and the best reference that is as quick to make. */
export function drawScoreboard(board, chosen, width) {
  const rows = [...Object.entries(board.accuracy), ["mean", board.mean]];
  const isNarrow = width < NARROW;
  const [left, right, step, top] = [isNarrow ? 110 : 132, 66, 29, isNarrow ? 54 : 32];
  const x = (value) => left + value * (width - left - right);
  const bottom = top + rows.length * step + 6;
  const chart = drawn("svg", { viewBox: `0 0 ${width} ${bottom + 20}`, width, height: bottom + 20, class: "chart", role: "img" });
  chart.append(drawn("title", {}, `Accuracy of the generated weights: ${inWords(rows.map(([n, s]) => [n, s.generated]))}`));
  drawLegend(chart, isNarrow ? 0 : left, width);
  drawAxis(chart, x, top, bottom);
  rows.forEach(([name, scores], index) => {
    const middle = top + index * step + step / 2 + (name === "mean" ? 4 : 0);
    const group = drawn("g", { class: name === "mean" ? "row mean" : name === chosen ? "row chosen" : "row" });
    const cheap = bestReference(scores);
    if (name === chosen) {
      group.append(drawn("rect", { class: "band", x: 0, y: middle - step / 2, width: width, height: step, rx: 5 }));
    }
    if (name === "mean") group.append(drawn("path", { class: "rule", d: `M0 ${middle - step / 2 - 1}H${width}` }));
    const ends = [cheap, scores.scratch, scores.generated].filter((value) => value !== undefined);
    group.append(
      drawn("text", { class: "name", x: left - 12, y: middle + 5, "text-anchor": "end" }, name),
      drawn("path", { class: "span", d: `M${x(Math.min(...ends))} ${middle}H${x(Math.max(...ends))}` }),
    );
    if (cheap !== undefined) group.append(drawCheap(x(cheap), middle));
    if (scores.scratch !== undefined) group.append(drawScratch(x(scores.scratch), middle));
    group.append(
      drawGenerated(x(scores.generated), middle),
      drawn("text", { class: "value", x: width - 6, y: middle + 5, "text-anchor": "end" }, percent(scores.generated)),
    );
    chart.append(group);
  });
  return chart;
}

const drawGenerated = (x, y) => drawn("circle", { class: "generated", cx: x, cy: y, r: 5.5 });
const drawScratch = (x, y) => drawn("path", { class: "scratch", d: `M${x} ${y - 6.5}l6.5 6.5l-6.5 6.5l-6.5-6.5z` });
const drawCheap = (x, y) => drawn("path", { class: "cheap", d: `M${x} ${y - 6}v12` });

function bestReference(scores) {
  const found = ["retrieval", "soup", "random_trunk_ridge"].map((name) => scores[name]).filter((s) => s !== undefined);
  return found.length ? Math.max(...found) : undefined;
}

function drawLegend(chart, left, width) {
  const items = [[drawGenerated, "generated"], [drawScratch, "trained from scratch"], [drawCheap, "best cheap reference"]];
  let [x, y] = [left + 7, 9];
  for (const [draw, label] of items) {
    if (x + 12 + 7 * label.length > width) [x, y] = [left + 7, y + 21];
    chart.append(draw(x, y), drawn("text", { class: "tick", x: x + 12, y: y + 4 }, label));
    x += 36 + 6.4 * label.length;
  }
}

function drawAxis(chart, x, top, bottom) {
  for (const value of [0, 0.25, 0.5, 0.75, 1]) {
    chart.append(
      drawn("line", { class: "grid", x1: x(value), x2: x(value), y1: top, y2: bottom }),
      drawn("text", { class: "tick", x: x(value), y: bottom + 16, "text-anchor": "middle" }, `${100 * value}`),
    );
  }
}

const inWords = (bars) => bars.map(([name, value]) => `${nameOf(name)} ${percent(value)}`).join(", ");
