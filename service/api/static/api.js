/* The page's requests to the server that it came from. A problem+json answer is thrown as a Refusal. */

const KEY = "weightgen.key";
const AGAIN_MS = 1000;
const FOR_NOW = new Set([429, 503]); // statuses of a server that is only busy
export const FINAL = new Set(["succeeded", "failed", "cancelled"]);

let wantKey = null;
let wanted = null;

/** A request was refused: `message` is the sentence of the answer, `errors` are the parts that are wrong. */
export class Refusal extends Error {
  constructor(status, problem) {
    super(problem?.detail || `The server answered with status ${status}.`);
    this.status = status;
    this.errors = problem?.errors ?? [];
  }
}

export const hasKey = () => sessionStorage.getItem(KEY) !== null;

/** `ask` is called with a sentence when the server wants a key; it resolves with the key that the user gives. */
export function whenKeyIsWanted(ask) {
  wantKey = ask;
}

/** The JSON that a path answers with. */
export async function askJson(path, options = {}) {
  const { body, headers, ...rest } = options;
  const json = body === undefined ? {} : { body: JSON.stringify(body) };
  const type = body === undefined ? {} : { "Content-Type": "application/json" };
  const response = await ask(path, { ...rest, ...json, headers: { ...headers, ...type } });
  return response.json();
}

/** The answer of a path, of any type. */
export function ask(path, options = {}) {
  return withKey(async () => {
    const response = await reach(path, { ...options, headers: { ...options.headers, ...authorization() } });
    if (!response.ok) throw new Refusal(response.status, await response.json().catch(() => null));
    return response;
  });
}

/** Posts one file and reports the fraction that is sent; `signal` aborts it. */
export function upload(path, body, { headers = {}, onProgress, signal }) {
  return withKey(() => new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", path);
    for (const [name, value] of Object.entries({ ...headers, ...authorization() })) request.setRequestHeader(name, value);
    request.responseType = "json";
    request.upload.onprogress = (event) => event.lengthComputable && onProgress(event.loaded / event.total);
    request.onload = () => {
      if (request.status >= 200 && request.status < 300) resolve(request.response);
      else reject(new Refusal(request.status, request.response));
    };
    request.onerror = () => reject(new Error("The connection broke before the file was sent."));
    request.onabort = () => reject(new DOMException("Cancelled.", "AbortError"));
    signal.addEventListener("abort", () => request.abort(), { once: true });
    request.send(body);
  }));
}

/** Every change of a job until it has ended; a connection that breaks is resumed where it was. */
export async function* follow(id, signal) {
  let [last, hasEnded] = ["", false];
  while (!hasEnded) {
    try {
      const response = await ask(`/v1/jobs/${id}/events`, { signal, headers: last ? { "Last-Event-ID": last } : {} });
      for await (const event of readEvents(response.body)) {
        last = event.id;
        const job = JSON.parse(event.data);
        hasEnded = FINAL.has(job.state);
        yield job;
      }
    } catch (error) {
      if (signal.aborted || (error instanceof Refusal && !FOR_NOW.has(error.status))) throw error;
    }
    if (!hasEnded) await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
  }
}

async function reach(path, options) {
  try {
    return await fetch(path, options);
  } catch (error) {
    throw error.name === "AbortError" ? error : new Error("The server cannot be reached.");
  }
}

function authorization() {
  return hasKey() ? { Authorization: `Bearer ${sessionStorage.getItem(KEY)}` } : {};
}

async function withKey(attempt) {
  for (;;) {
    try {
      return await attempt();
    } catch (error) {
      if (!(error instanceof Refusal) || error.status !== 401 || !wantKey) throw error;
      wanted ??= wantKey(hasKey() ? error.message : "").finally(() => { wanted = null; });
      sessionStorage.setItem(KEY, await wanted);
    }
  }
}

async function* readEvents(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const lines = block.split("\n").filter((line) => !line.startsWith(":"));
      const event = Object.fromEntries(lines.map((line) => line.split(/: ?(.*)/s, 2)));
      if (event.data) yield event;
    }
  }
}
