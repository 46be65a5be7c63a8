/* The API key: asked for only where the server wants one. */

import { byId, tellFault } from "./dom.js";

/** Shows the field, and resolves with what the user gives; `sentence` is why the last key was refused. */
export function askForKey(sentence) {
  const form = byId("key-form");
  form.hidden = false;
  tellFault(byId("key-fault"), sentence);
  byId("key").focus();
  return new Promise((resolve) => {
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      form.hidden = true;
      resolve(byId("key").value.trim());
      byId("key").value = "";
    }, { once: true });
  });
}
