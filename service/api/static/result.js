/* What a job made: the verdict, the picture, how to load it, its files. */

import { ask, askJson, hasKey } from "./api.js";
import { drawHeldBack, drawInto, nameInSentence } from "./charts.js";
import { byId, bytes, capitalise, count, element, many, percent, seconds, tellFault } from "./dom.js";
import { labelOf } from "./form.js";
import { snippetsOf } from "./snippets.js";
import { packZip } from "./zip.js";

const COPY = 0.05; // of the usual distance between trained networks

let shown = null;

/** Shows the first sample of a job that has succeeded; resolves when the snippets are shown too. */
export async function showResult(job) {
  const { architecture, dataset } = job.request;
  const { samples } = job.result;
  byId("result-title").textContent = `${architecture} for ${labelOf(dataset)}`;
  byId("result").hidden = false;
  byId("samples").hidden = samples.length === 1;
  byId("samples").replaceChildren(
    ...samples.map((sample, index) => {
      const label = `${index + 1}: ${percent(sample.report.accuracy)}`;
      const button = element("button", { type: "button", "aria-pressed": "false" }, label);
      button.addEventListener("click", () => guard(() => showSample(job, index)));
      return button;
    }),
  );
  await showSample(job, 0);
}

async function showSample(job, index) {
  const sample = (shown = job.result.samples[index]);
  const { report, artifact } = sample;
  [...byId("samples").children].forEach((other, place) => other.setAttribute("aria-pressed", String(place === index)));
  showVerdict(report);
  showFigures(report, job.request);
  showPicture(report);
  byId("nearest").textContent = [describeNearest(report), describeNotes(report)].filter(Boolean).join(" ");
  showFiles(sample);
  const [manifest, card] = await Promise.all([
    askJson(pathOf(artifact, "manifest.json")),
    ask(pathOf(artifact, "README.md")).then((response) => response.text()),
  ]);
  if (shown === sample) showSnippets(snippetsOf(job, sample, { card, manifest, isLocked: hasKey() }));
}

export function hideResult() {
  shown = null;
  byId("snippet").textContent = "";
  byId("result").hidden = true;
}

/** Makes the buttons of the result work. */
export function startResult() {
  byId("copy").addEventListener("click", copySnippet);
  byId("download-all").addEventListener("click", () => guard(downloadAll));
  byId("files").addEventListener("click", (event) => {
    const link = event.target.closest("a");
    if (!link || !hasKey()) return; // without a key the link itself downloads
    event.preventDefault();
    guard(async () => save(await (await ask(link.getAttribute("href"))).blob(), link.textContent));
  });
  byId("snippet-tabs").addEventListener("keydown", moveBetweenTabs);
}

function showVerdict(report) {
  const { verification, fell_back: fellBack, source } = report;
  const generator = report.generator.name;
  byId("verdict").className = fellBack ? "verdict fell-back" : "verdict passed";
  byId("verdict").textContent = fellBack ? `Fell back to ${nameInSentence(source)}` : "Passed the gate";
  const honest = `These are not ${generator}'s weights: ${nameInSentence(source)} did better, so you get that. `;
  byId("result-sentence").textContent = `${fellBack ? honest : ""}${capitalise(verification.sentence)}.`;
}

function showFigures(report, asked) {
  const facts = [
    ["test accuracy", percent(report.accuracy), "big"],
    ["parameters", count(report.parameters)],
    ["made in", seconds(report.seconds)],
    ["learnt from", `${many(report.classes, "class").replace("classs", "classes")} × ${asked.support_per_class}`],
    ["seed", String(report.seed)],
  ];
  byId("result-facts").replaceChildren(
    ...facts.map(([name, value, kind]) => element("div", { class: kind }, element("dt", {}, name), element("dd", {}, value))),
  );
}

function showPicture(report) {
  const held = report.verification.held_back;
  byId("held-back").hidden = !held?.examples;
  if (!held?.examples) return;
  byId("held-back-caption").textContent =
    `Accuracy in % on ${held.examples} examples that were held back from all of them, with a standard error.`;
  drawInto(byId("held-back-chart"), (width) => drawHeldBack(report, width));
}

function describeNearest(report) {
  const nearest = report.nearest_checkpoint;
  if (!nearest) return "";
  if (nearest.ratio < COPY) return `The trunk of these weights is a trained network's, made for ${nearest.dataset}.`;
  return (
    `Nearest trained network: one for ${nearest.dataset}, at distance ${nearest.distance.toFixed(2)}, ` +
    `${nearest.ratio.toFixed(2)} times what is usual between trained networks; a copy would be near 0.`
  );
}

function describeNotes(report) {
  return report.notes?.length ? `The data were ${report.notes.join(" and ")}.` : "";
}

function showFiles(result) {
  byId("files").tBodies[0].replaceChildren(
    ...result.files.map((file) =>
      element("tr", {},
        element("td", {}, element("a", { href: pathOf(result.artifact, file.name), download: file.name }, file.name)),
        element("td", { class: "number" }, bytes(file.size)),
        element("td", {}, element("code", { title: file.sha256 }, `${file.sha256.slice(0, 12)}…`)),
      )),
  );
  tellFault(byId("download-fault"));
}

function showSnippets(snippets) {
  byId("snippet-tabs").replaceChildren(
    ...snippets.map(({ title, text }, index) => {
      const tab = element("button", { type: "button", role: "tab", id: `tab-${index}`, "aria-controls": "snippet-panel" }, title);
      tab.addEventListener("click", () => selectTab(tab, text));
      return tab;
    }),
  );
  byId("snippet-tabs").firstElementChild.click();
}

function selectTab(tab, text) {
  for (const other of byId("snippet-tabs").children) {
    other.setAttribute("aria-selected", String(other === tab));
    other.tabIndex = other === tab ? 0 : -1;
  }
  byId("snippet-panel").setAttribute("aria-labelledby", tab.id);
  byId("snippet").textContent = text;
  byId("copy").textContent = "Copy";
}

function moveBetweenTabs(event) {
  const tabs = [...byId("snippet-tabs").children];
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!step) return;
  const next = tabs[(tabs.indexOf(document.activeElement) + step + tabs.length) % tabs.length];
  next.click();
  next.focus();
}

async function copySnippet() {
  const text = byId("snippet").textContent;
  try {
    await navigator.clipboard.writeText(text);
  } catch { // not a secure context: the user copies what is selected
    getSelection().selectAllChildren(byId("snippet"));
    byId("copied").textContent = "The text is selected; copy it with your keyboard.";
    return;
  }
  byId("copy").textContent = "Copied";
  byId("copied").textContent = "Copied to the clipboard.";
}

async function downloadAll() {
  const { artifact, files, report } = shown;
  const read = async ({ name }) => {
    const response = await ask(pathOf(artifact, name));
    return { name, content: new Uint8Array(await response.arrayBuffer()) };
  };
  save(packZip(await Promise.all(files.map(read))), `${report.arch}-${artifact.slice(0, 12)}.zip`);
}

async function guard(work) {
  tellFault(byId("download-fault"));
  try {
    await work();
  } catch (error) {
    tellFault(byId("download-fault"), error.message);
  }
}

function save(blob, name) {
  const url = URL.createObjectURL(blob);
  element("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

const pathOf = (artifact, name) => `/v1/artifacts/${artifact}/files/${name}`;
