/* The page: it lists what the server offers, sends a request, follows the job and shows what it made. */

import { askJson, FINAL, follow, whenKeyIsWanted } from "./api.js";
import { showBoard } from "./board.js";
import { byId, tellFault } from "./dom.js";
import { describeDataset, showEstimate, startExtras } from "./extras.js";
import * as form from "./form.js";
import { askForKey } from "./key.js";
import { remember, showRecent, startRecent } from "./recent.js";
import { hideResult, showResult, startResult } from "./result.js";
import { showProgress, startRunning, stopRunning } from "./running.js";
import { startUploads } from "./uploads.js";

let watching = new AbortController();
let running = null;

async function start() {
  whenKeyIsWanted(askForKey);
  byId("request").addEventListener("submit", (event) => {
    event.preventDefault();
    generate();
  });
  byId("cancel").addEventListener("click", cancel);
  startResult();
  startRecent();
  form.whenChanged(showChosen);
  try {
    form.fillForm(await listOffers());
    setBusy(false);
    await startExtras();
    startUploads(form.addDataset);
    showChosen();
    const named = /^#job=([0-9a-f-]{1,64})$/.exec(location.hash);
    showRecent(open);
    if (named) await open(await askJson(`/v1/jobs/${named[1]}`));
  } catch (error) {
    tellFault(byId("fault"), error.message);
  }
}

async function listOffers() {
  const [{ datasets }, { architectures }, { generators }] = await Promise.all(
    ["/v1/datasets", "/v1/architectures", "/v1/generators"].map((path) => askJson(path)),
  );
  const facts = await Promise.all(generators.map(({ name }) => askJson(`/v1/generators/${name}`)));
  return { datasets, architectures, generators: facts };
}

/** Shows what is known about the present choice, before anything is made. */
function showChosen() {
  describeDataset(form.chosenDataset());
  showEstimate(form.currentRequest());

  const generator = form.chosenGenerator();
  if (!generator) return;
  const architecture = form.chosenArchitecture();
  const isServed = form.serves(generator, architecture);
  const board = isServed ? form.boardOf(generator, architecture) : undefined;
  showBoard({ generator, architecture, board, isServed, dataset: form.chosenDataset() });
}

async function generate() {
  const request = form.readRequest();
  if (!request) return;
  await watch((signal) => askJson("/v1/generations", {
    method: "POST",
    body: request,
    headers: { Prefer: "respond-async" },
    signal,
  }));
}

async function open(job) {
  form.showRequest(job.request);
  form.clearFaults();
  showChosen();
  await watch(async () => job);
}

/** Follows the job that `begin` resolves with, and shows how it ended; a job that was followed before is let go. */
async function watch(begin) {
  watching.abort();
  const { signal } = (watching = new AbortController());
  hideResult();
  setBusy(true);
  startRunning();
  bringIntoView(byId("running"));
  try {
    let job = (running = await begin(signal));
    remember(job.id);
    history.replaceState(null, "", `#job=${job.id}`);
    byId("cancel").hidden = FINAL.has(job.state);
    if (!FINAL.has(job.state)) {
      showProgress(job);
      for await (job of follow(job.id, signal)) showProgress(job);
    }
    await finish(job);
  } catch (error) {
    if (signal.aborted) return;
    form.showFaults(error);
  }
  if (signal.aborted) return;
  setBusy(false);
  stopRunning();
  showRecent(open);
}

async function finish(job) {
  if (job.state === "cancelled") return form.showFaults({ message: "Cancelled; nothing was made." });
  if (job.state === "failed") {
    return form.showFaults({ message: job.problem.detail, errors: job.problem.errors });
  }
  stopRunning();
  await showResult(job);
  const result = byId("result");
  result.focus({ preventScroll: true });
  bringIntoView(result);
}

function bringIntoView(place) {
  const { top } = place.getBoundingClientRect();
  if (top < 0 || top > innerHeight / 2) place.scrollIntoView({ block: "start" });
}

async function cancel() {
  byId("cancel").disabled = true;
  try {
    await askJson(`/v1/jobs/${running.id}`, { method: "DELETE" });
  } catch (error) {
    if (error.status !== 409) form.showFaults(error); // 409: it has ended meanwhile, as its events tell
  }
}

function setBusy(isBusy) {
  running = null;
  byId("generate").disabled = isBusy;
  byId("generate").textContent = isBusy ? "Working…" : "Generate weights";
  byId("cancel").hidden = true;
  byId("cancel").disabled = false;
}

start();
