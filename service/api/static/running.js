/* Shows how far a job is. */

import { byId, capitalise, element, many } from "./dom.js";

const STAGES = [
  ["queued", "Queue", "Waiting for its turn"],
  ["load", "Load", "Loading the generator and the data"],
  ["generate", "Generate", "Generating the weights"],
  ["verify", "Verify", "Comparing them with references"],
  ["store", "Store", "Storing the files"],
];

let clock = null;

export function startRunning() {
  const start = Date.now();
  const tell = () => { byId("elapsed").textContent = many(Math.floor((Date.now() - start) / 1000), "second"); };
  stopRunning();
  clock = setInterval(tell, 1000);
  tell();
  showProgress({ state: "queued", progress: null });
  byId("running").hidden = false;
}

export function stopRunning() {
  clearInterval(clock);
  byId("running").hidden = true;
}

/** Shows the stage of a job that has not ended. */
export function showProgress({ state, progress }) {
  const stage = state === "queued" ? "queued" : progress?.stage ?? "load";
  const place = STAGES.findIndex(([name]) => name === stage);
  byId("stages").hidden = place < 0;
  byId("stages").replaceChildren(
    ...STAGES.map(([, title], index) =>
      element("li", { class: index < place ? "done" : index === place ? "now" : "" }, title)),
  );
  const sentence = place < 0 ? capitalise(stage) : STAGES[place][2];
  if (byId("stage").textContent !== sentence) byId("stage").textContent = sentence; // told aloud once
  if (state === "queued" || !progress) byId("progress").removeAttribute("value");
  else byId("progress").value = progress.done / Math.max(progress.total, 1);
}
