/* Uploads a data set of the user's own: chosen or dropped, sent with progress; shows what is wrong with it. */

import { Refusal, upload } from "./api.js";
import { byId, tellFault } from "./dom.js";
import { offers, tellDataset } from "./extras.js";

const OPTIONS = ["label", "shape"];

let last = null;
let sending = new AbortController();

/** Shows the place for files if the server takes them; `add` gets the name of the data set and that of its file. */
export function startUploads(add) {
  byId("upload").hidden = !offers("/v1/datasets", "post");
  const place = byId("drop");
  byId("file").addEventListener("change", () => {
    const [file] = byId("file").files;
    byId("file").value = ""; // so that the same file can be chosen again, once it is mended
    if (file) send(file, add);
  });
  for (const event of ["dragenter", "dragover"]) place.addEventListener(event, (e) => mark(e, true));
  for (const event of ["dragleave", "drop"]) place.addEventListener(event, (e) => mark(e, false));
  place.addEventListener("drop", (event) => {
    const [file] = event.dataTransfer.files;
    if (file) send(file, add);
  });
  byId("upload-cancel").addEventListener("click", () => sending.abort());
  byId("upload-again").addEventListener("click", () => send(last, add));
}

async function send(file, add) {
  last = file;
  sending.abort();
  const { signal } = (sending = new AbortController());
  clearFaults();
  tell(`Sending ${file.name}…`);
  byId("uploading").hidden = false;
  byId("upload-progress").value = 0;
  const onProgress = (fraction) => {
    byId("upload-progress").value = fraction;
    if (fraction === 1) tell(`Reading ${file.name}…`);
  };
  try {
    const headers = { "Content-Type": "application/octet-stream" }; // what it is, its content says
    const about = await upload(`/v1/datasets${options()}`, file, { headers, onProgress, signal });
    tell(`${file.name}: ${tellDataset(about)}`);
    add(about.name, file.name);
  } catch (error) {
    if (sending.signal !== signal) return;
    tell("");
    showFaults(error, file);
  } finally {
    if (sending.signal === signal) byId("uploading").hidden = true;
  }
}

function options() {
  const given = OPTIONS.map((name) => [name, byId(`upload-${name}`).value.trim()]).filter(([, value]) => value);
  return given.length ? `?${new URLSearchParams(given)}` : "";
}

function showFaults(error, file) {
  const parts = error instanceof Refusal ? error.errors : [];
  const placed = parts.filter(({ parameter }) => OPTIONS.includes(parameter));
  for (const { parameter, detail } of placed) tellFault(byId(`fault-upload-${parameter}`), detail);
  if (placed.length) byId("table-options").open = true;
  const others = parts.filter((part) => !placed.includes(part) && part.detail !== error.message);
  const isCancelled = error.name === "AbortError";
  const sentence = isCancelled ? `Cancelled; nothing of ${file.name} is kept.` : `Cannot use ${file.name}: ${error.message}`;
  tellFault(byId("upload-fault"), sentence, ...others.map((part) => part.detail));
  byId("upload-again").hidden = false;
}

function clearFaults() {
  tellFault(byId("upload-fault"));
  for (const name of OPTIONS) tellFault(byId(`fault-upload-${name}`));
  byId("upload-again").hidden = true;
}

function mark(event, isOver) {
  event.preventDefault();
  byId("drop").classList.toggle("over", isOver);
}

const tell = (sentence) => { byId("upload-status").textContent = sentence; };
