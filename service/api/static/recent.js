/* The jobs of this browser: their ids are stored here, everything else comes from the server. */

import { askJson, Refusal } from "./api.js";
import { byId, element, percent } from "./dom.js";
import { labelOf } from "./form.js";

const PLACE = "weightgen.jobs";
const LONGEST = 8;

/** Keeps a job's id, the newest first. */
export function remember(id) {
  localStorage.setItem(PLACE, JSON.stringify([id, ...known().filter((other) => other !== id)].slice(0, LONGEST)));
}

/** Shows the jobs; `open` is called with the one that is clicked. */
export async function showRecent(open) {
  const jobs = (await Promise.all(known().map(read))).filter(Boolean);
  byId("recent-jobs").replaceChildren(...jobs.map((job) => describe(job, open)));
  byId("recent").hidden = jobs.length === 0;
}

export function startRecent() {
  byId("forget").addEventListener("click", () => {
    localStorage.removeItem(PLACE);
    byId("recent").hidden = true;
  });
}

async function read(id) {
  try {
    return await askJson(`/v1/jobs/${id}`);
  } catch (error) {
    if (error instanceof Refusal && error.status === 404) forget(id);
    return null;
  }
}

function forget(id) {
  localStorage.setItem(PLACE, JSON.stringify(known().filter((other) => other !== id)));
}

function describe(job, open) {
  const { architecture, dataset, generator, seed } = job.request;
  const accuracy = job.result?.report.accuracy;
  const button = element("button", { type: "button", class: "job" },
    element("span", {}, element("b", {}, architecture), ` for ${labelOf(dataset)}, by ${generator}, seed ${seed}`),
    element("span", { class: `state ${job.state}` }, accuracy === undefined ? job.state : percent(accuracy)),
  );
  button.addEventListener("click", () => open(job));
  return element("li", {}, button);
}

function known() {
  try {
    const ids = JSON.parse(localStorage.getItem(PLACE) ?? "[]");
    return Array.isArray(ids) ? ids.filter((id) => /^[0-9a-f-]{1,64}$/.test(id)) : [];
  } catch {
    return [];
  }
}
