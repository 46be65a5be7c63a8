/* The scores of a generator for an architecture, on data sets that it never saw. */

import { drawInto, drawScoreboard } from "./charts.js";
import { byId, element, seconds } from "./dom.js";

const TITLES = {
  generated: "generated",
  scratch: "scratch",
  retrieval: "nearest",
  soup: "soup",
  random_trunk_ridge: "random trunk",
  unconditioned_trunk: "condition off",
  shuffled_condition: "shuffled",
  default_init: "default init",
};

/** Shows the scoreboard, or says why there is none. */
export function showBoard({ generator, architecture, board, isServed, dataset }) {
  byId("board-title").textContent = `${generator?.name ?? "This generator"} for ${architecture}: what to expect`;
  byId("board-details").hidden = !board;
  byId("board-chart").hidden = !board;
  if (!board) {
    byId("board-sentence").textContent = isServed
      ? "Nobody has measured this pair on whole data sets yet. What you get is compared with references all the same."
      : `It makes weights for ${generator.architectures.join(", ")}.`;
    return;
  }
  const number = Object.keys(board.accuracy).length;
  byId("board-sentence").textContent =
    `Test accuracy in % on ${number} data sets it never saw, ${board.support_per_class} examples a class. Generated in ` +
    `${seconds(board.seconds.generate)} on average; training from scratch took ${seconds(board.seconds.scratch)}.`;
  drawInto(byId("board-chart"), (width) => drawScoreboard(board, dataset, width));
  fillTable(board);
}

function fillTable(board) {
  const arms = Object.keys(TITLES).filter((arm) => arm in board.mean);
  const head = element("tr", {}, element("th", { scope: "col" }, "data set"),
    ...arms.map((arm) => element("th", { scope: "col", class: "number" }, TITLES[arm])));
  const rows = [...Object.entries(board.accuracy), ["mean", board.mean]].map(([name, scores]) =>
    element("tr", {}, element("th", { scope: "row" }, name),
      ...arms.map((arm) => element("td", { class: "number" }, (100 * scores[arm]).toFixed(1)))));
  byId("board-table").replaceChildren(element("thead", {}, head), element("tbody", {}, ...rows));
}
