/* Short functions that write the document, and numbers in a readable form. */

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

/** An element with attributes and children; text is text, never markup. */
export function element(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

/** The same for a drawing. */
export function drawn(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

/** Shows what is wrong at one place, or clears the place if nothing is wrong. */
export function tellFault(place, ...sentences) {
  const said = sentences.filter(Boolean);
  place.replaceChildren(...said.map((sentence) => element("span", {}, capitalise(sentence))));
}

export const capitalise = (text) => text.charAt(0).toUpperCase() + text.slice(1);
export const percent = (fraction) => `${(100 * fraction).toFixed(1)} %`;
export const count = (number) => number.toLocaleString("en-US");
export const many = (number, one) => `${count(number)} ${one}${number === 1 ? "" : "s"}`;

export function bytes(number) {
  const units = ["B", "KB", "MB", "GB"];
  const power = Math.min(Math.floor(Math.log10(Math.max(number, 1)) / 3), units.length - 1);
  return `${power ? (number / 1000 ** power).toFixed(1) : number} ${units[power]}`;
}

export function seconds(number) {
  if (number < 1) return `${Math.max(1, Math.round(1000 * number))} ms`;
  return number < 100 ? `${number.toFixed(1)} s` : `${Math.round(number / 60)} min`;
}

function fill(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (value === true) node.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}
