/* The form of a request: what can be chosen, what was chosen, and what is wrong with it. */

import { byId, element, percent, tellFault } from "./dom.js";

const FIELDS = [
  "dataset", "architecture", "generator", "support_per_class", "seed", "num_samples", "fallback", "target_accuracy", "options",
];
const NUMBERS = ["support_per_class", "seed", "num_samples"];
const CUSTOM = "other";
const UPLOADED = /^up-[0-9a-f]{64}$/;
const FIRST_CHOICE = { dataset: "digits", architecture: "cnn-tiny", generator: "mip" };

let facts = new Map();
let shownOptions = null; // the name of the generator whose options are shown

/** Fills the lists of the form from the server; `generators` are the answers of /v1/generators/{name}. */
export function fillForm({ datasets, architectures, generators }) {
  facts = new Map(generators.map((generator) => [generator.name, generator]));
  byId("dataset").replaceChildren(...datasets.map((name) => element("option", { value: name }, name)));
  choose(byId("dataset"), FIRST_CHOICE.dataset);
  const chips = [...architectures, CUSTOM].map((name) => radio("architecture", name, name === CUSTOM ? "other sizes…" : name));
  byId("architectures").replaceChildren(...chips);
  byId("generators").replaceChildren(...generators.map(({ name }) => radio("generator", name, name)));
  tick("architecture", architectures.includes(FIRST_CHOICE.architecture) ? FIRST_CHOICE.architecture : architectures[0]);
  tick("generator", facts.has(FIRST_CHOICE.generator) ? FIRST_CHOICE.generator : generators[0]?.name);
  showChoices();
}

/** Calls back after every change of the request. */
export function whenChanged(tell) {
  byId("request").addEventListener("input", (event) => {
    if (event.target.closest("#upload")) return; // no part of the request
    showChoices();
    tell();
  });
}

/** Adds a data set of the user's own and selects it. */
export function addDataset(name, label) {
  listUploaded(name, label);
  byId("dataset").value = name;
  byId("dataset").dispatchEvent(new Event("input", { bubbles: true }));
}

/** The name that is shown for a data set: for uploaded ones the file's, or the beginning of the data set's. */
export function labelOf(name) {
  const found = [...byId("dataset").options].find((option) => option.value === name);
  return found?.label ?? (UPLOADED.test(name) ? `${name.slice(0, 11)}…` : name);
}

export const chosenDataset = () => byId("dataset").value;
export const chosenGenerator = () => facts.get(ticked("generator"));

export function chosenArchitecture() {
  const name = ticked("architecture");
  return name === CUSTOM ? byId("custom-architecture").value.trim() : name;
}

/** The body of a generation request; null if a number is missing, which is then shown. */
export function readRequest() {
  clearFaults();
  const request = currentRequest();
  const field = NUMBERS.find((name) => !Number.isSafeInteger(request[name]));
  if (!field) return request;
  showFaults({ message: "", errors: [{ detail: "expected a whole number", pointer: `#/${field}` }] });
  return null;
}

/** The same, with NaN for what is not a number. */
export function currentRequest() {
  const numbers = NUMBERS.map((field) => [field, Number(byId(field).value.trim() || NaN)]);
  return {
    generator: ticked("generator"),
    architecture: chosenArchitecture(),
    dataset: chosenDataset(),
    fallback: byId("fallback").checked,
    ...Object.fromEntries(numbers),
    ...currentMethod(),
  };
}

/** What the chosen generator's method can be given: an accuracy to ask for, and its own options that are filled in. */
function currentMethod() {
  const method = chosenGenerator()?.method;
  const aim = byId("target_accuracy").value.trim();
  const given = (method?.options ?? []).map(({ name, kind }) => {
    const text = byId(`option-${name}`).value.trim();
    if (text === "") return null;
    return [name, kind === "bool" ? text === "true" : kind === "str" ? text : Number(text)];
  });
  const options = Object.fromEntries(given.filter((pair) => pair !== null));
  return {
    ...(method?.uses.includes("target_accuracy") && aim !== "" ? { target_accuracy: Number(aim) } : {}),
    ...(Object.keys(options).length ? { options } : {}),
  };
}

/** Sets the form to an earlier request, as far as the server still lists the names in it. */
export function showRequest(request) {
  if (UPLOADED.test(request.dataset)) listUploaded(request.dataset, labelOf(request.dataset));
  choose(byId("dataset"), request.dataset);
  tick("generator", request.generator);
  if (!tick("architecture", request.architecture)) {
    tick("architecture", CUSTOM);
    byId("custom-architecture").value = request.architecture;
  }
  byId("support_per_class").value = request.support_per_class;
  byId("seed").value = request.seed;
  byId("num_samples").value = request.num_samples;
  byId("fallback").checked = request.fallback;
  showChoices();
  byId("target_accuracy").value = request.target_accuracy ?? "";
  for (const { name } of chosenGenerator()?.method.options ?? []) {
    byId(`option-${name}`).value = String(request.options?.[name] ?? "");
  }
}

/** Shows a refusal: each part at the field that its pointer names, the rest above the button. */
export function showFaults(refusal) {
  clearFaults();
  const elsewhere = [];
  for (const { detail, pointer, supported } of refusal.errors ?? []) {
    const field = FIELDS.find((name) => pointer === `#/${name}`);
    if (!field) elsewhere.push(detail);
    else {
      tellFault(byId(`fault-${field}`), supported && detail.length < 80 ? `${detail}; there are ${supported.join(", ")}` : detail);
      inputsOf(field).forEach((input) => input.setAttribute("aria-invalid", "true"));
    }
  }
  tellFault(byId("fault"), ...(refusal.errors?.length ? elsewhere : [refusal.message]));
  const [input] = document.querySelectorAll("#request [aria-invalid=true]");
  if (input) input.focus();
  else byId("fault").scrollIntoView({ block: "nearest" });
}

export function clearFaults() {
  tellFault(byId("fault"));
  for (const field of FIELDS) {
    tellFault(byId(`fault-${field}`));
    inputsOf(field).forEach((input) => input.removeAttribute("aria-invalid"));
  }
}

/** The scoreboard of a generator for an architecture, if it has one. */
export const boardOf = (generator, architecture) =>
  generator?.scoreboards.find((board) => board.architecture === architecture);

export const serves = (generator, architecture) =>
  generator.architectures === null || generator.architectures.includes(architecture);

function showChoices() {
  const architecture = chosenArchitecture();
  byId("custom").hidden = ticked("architecture") !== CUSTOM;
  for (const input of document.querySelectorAll("input[name=generator]")) {
    const generator = facts.get(input.value);
    const board = boardOf(generator, architecture);
    const said = board ? `${percent(board.mean.generated)} on average` : "not measured";
    input.parentElement.querySelector("small").textContent = serves(generator, architecture) ? said : `not for ${architecture}`;
  }
  byId("generator-about").textContent = chosenGenerator()?.about ?? "";
  showMethod(chosenGenerator());
}

/** The options that a generator's method declares, each empty for its default, and what else the method can use. */
function showMethod(generator) {
  if (generator?.name === shownOptions) return;
  shownOptions = generator?.name ?? null;
  const method = generator?.method ?? { options: [], uses: [], samples: false };
  byId("options").replaceChildren(...method.options.map(optionField));
  byId("accuracy").hidden = !method.uses.includes("target_accuracy");
  byId("method").hidden = byId("accuracy").hidden && method.options.length === 0;
  byId("num_samples").disabled = !method.samples;
  if (!method.samples) byId("num_samples").value = 1;
}

function optionField({ name, kind, default: usual, help, low, high, choices }) {
  const id = `option-${name}`;
  const unset = usual === null ? "not set" : `${usual}`;
  const words = kind === "bool" ? ["true", "false"] : choices;
  const input = words.length
    ? element("select", { id, name: "options" }, element("option", { value: "" }, unset), ...words.map((word) => element("option", { value: word }, word)))
    : element("input", { id, name: "options", type: kind === "str" ? "text" : "number", placeholder: unset, step: kind === "int" ? "1" : "any",
        ...(low === null ? {} : { min: low }), ...(high === null ? {} : { max: high }) });
  input.setAttribute("aria-describedby", `${id}-help fault-options`);
  return element("div", {}, element("label", { for: id, class: "label" }, name), input, element("p", { id: `${id}-help`, class: "note" }, help));
}

function listUploaded(name, label) {
  const list = byId("dataset");
  if ([...list.options].some((option) => option.value === name)) return;
  let group = list.querySelector("optgroup");
  if (!group) list.prepend((group = element("optgroup", { label: "Uploaded" })));
  group.append(element("option", { value: name }, label));
}

function inputsOf(field) {
  if (field === "architecture" && ticked("architecture") === CUSTOM) return [byId("custom-architecture")];
  return [...document.querySelectorAll(`#request [name=${field}]`)];
}

function radio(name, value, label) {
  const text = element("span", {}, element("b", {}, label), name === "generator" ? element("small") : null);
  return element("label", { class: "choice" }, element("input", { type: "radio", name, value, class: "unseen" }), text);
}

function tick(name, value) {
  const found = [...document.querySelectorAll(`input[name=${name}]`)].find((input) => input.value === value);
  if (found) found.checked = true;
  return found !== undefined;
}

function choose(list, value) {
  if ([...list.options].some((option) => option.value === value)) list.value = value;
}

const ticked = (name) => document.querySelector(`input[name=${name}]:checked`)?.value ?? "";
