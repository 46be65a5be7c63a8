/* What a server may offer beside generation: descriptions of data sets, and estimates. Its OpenAPI lists them. */

import { askJson, Refusal } from "./api.js";
import { byId, bytes, count, element, many, percent, seconds } from "./dom.js";

const PAUSE_MS = 400;

let paths = {};
let described = "";
let waiting = null;
let asking = new AbortController();

/** Asks the server what it offers; afterwards `offers` knows. */
export async function startExtras() {
  const description = await askJson("/openapi.json");
  paths = description.paths;
  byId("version").textContent = `weightgen ${description.info.version}`;
}

export const offers = (path, method) => paths[path]?.[method] !== undefined;

/** Shows what a data set is, if the server describes data sets. */
export async function describeDataset(name) {
  if (name === described || !offers("/v1/datasets/{name}", "get")) return;
  described = name;
  byId("dataset-about").textContent = "";
  try {
    const about = await askJson(`/v1/datasets/${encodeURIComponent(name)}`);
    if (name === described) byId("dataset-about").textContent = tellDataset(about);
  } catch (error) {
    if (name === described) byId("dataset-about").textContent = error.message;
  }
}

/** What a data set is, in one line. */
export function tellDataset({ kind, num_classes: classes, train, test, shape }) {
  const size = kind === "images" ? `images of ${shape.slice(1).join("×")}${shape[0] === 3 ? " in colour" : ""}` : many(shape[0], "number");
  return `${count(classes)} classes of ${size}; ${count(train)} examples to draw from, ${count(test)} to test on.`;
}

/** Shows what a request would give, a moment after the last change; shows nothing if the server cannot say. */
export function showEstimate(request) {
  clearTimeout(waiting);
  asking.abort();
  if (!request || !offers("/v1/estimate", "post")) return hide();
  byId("estimate").setAttribute("aria-busy", "true");
  waiting = setTimeout(() => estimate(request), PAUSE_MS);
}

async function estimate(request) {
  const { signal } = (asking = new AbortController());
  try {
    const told = await askJson("/v1/estimate", { method: "POST", body: request, signal });
    if (!signal.aborted) show(told);
  } catch (error) {
    if (error instanceof Refusal) hide(); // the request itself is told why
    else if (!signal.aborted) throw error;
  }
}

function show({ parameters, bytes: size, seconds: time, accuracy, out_of_distribution: isStrange, basis }) {
  const lines = [["Size", `${count(parameters)} parameters, ${bytes(size)}`]];
  if (time !== null) lines.push(["Time", `about ${seconds(time)}`, basis.seconds]);
  if (accuracy) lines.push(["Accuracy", `${percent(accuracy.low)} to ${percent(accuracy.high)}`, basis.accuracy]);
  if (isStrange) lines.push(["Caution", "unlike what it learnt from", basis.out_of_distribution]);
  byId("estimate").replaceChildren(
    ...lines.map(([name, value, why]) => element("div", { title: why }, element("dt", {}, name), element("dd", {}, value))),
  );
  byId("estimate").setAttribute("aria-busy", "false");
  byId("estimate").hidden = false;
}

function hide() {
  byId("estimate").hidden = true;
}
