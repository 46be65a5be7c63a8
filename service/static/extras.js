/* What a server may offer beside generation: uploads, descriptions of data sets, estimates. Its OpenAPI says which. */

import { askJson } from "./api.js";
import { byId } from "./dom.js";

/** Shows what this server offers, and nothing that it does not. */
export async function startExtras() {
  const { info, paths } = await askJson("/openapi.json");
  byId("version").textContent = `weightgen ${info.version}`;
}
