/* The ways to load a result, as code that runs without changes. */

const SHOTS_OF_NAMES = 20;
const LONGEST_NAME = 96;

/** The repository where Hub clients find a sample of a job: a readable name if it can hold the whole request. */
export function repositoryOf(job, sample) {
  const asked = job.request;
  const parts = [asked.architecture, asked.dataset, asked.generator];
  const name = `${parts.join(".")}.s${asked.seed}`;
  const hasExtras = asked.target_accuracy != null || Object.keys(asked.options ?? {}).length > 0;
  const isPlain = asked.support_per_class === SHOTS_OF_NAMES && asked.fallback && asked.num_samples === 1 && !hasExtras;
  const others = Object.keys(asked).length === 9; // a field this page knows nothing of cannot be in a name
  const fits = parts.every((part) => /^[\w-]+$/.test(part)) && name.length <= LONGEST_NAME;
  return isPlain && others && fits ? `gen/${name}` : sample.repository;
}

/** [{title, text}] for a sample of a job; `card` and `manifest` are its artifact's, `isLocked` whether a key is needed. */
export function snippetsOf(job, sample, { card, manifest, isLocked }) {
  const hub = `${location.origin}/hf`;
  const repository = repositoryOf(job, sample);
  return [
    { title: "Python", text: inPython(hub, repository, { card, manifest, isLocked }) },
    { title: "State dict", text: asState(hub, repository, isLocked) },
    { title: "hf", text: `${isLocked ? "HF_TOKEN=wg_… " : ""}HF_ENDPOINT=${hub} hf download ${repository}\n` },
    { title: "curl", text: byCurl(sample, isLocked) },
  ];
}

function inPython(hub, repository, { card, manifest, isLocked }) {
  const [line, name] = /^from \S+ import (\S+)$/m.exec(card); // the card says what loads the files
  const logits = manifest.library === "transformers" ? ".logits" : "";
  const shape = manifest.request.support?.input_shape ?? [];
  const kind = shape.length === 3 ? "images in [0, 1]" : "features";
  return [
    "import os",
    "",
    "# before a Hub client is imported",
    `os.environ["HF_ENDPOINT"] = "${hub}"`,
    ...(isLocked ? ['os.environ["HF_TOKEN"] = "wg_…"  # your key'] : []),
    "",
    "import torch",
    line,
    "",
    `network = ${name}.from_pretrained("${repository}").eval()`,
    `# ${kind} in, one logit a class out`,
    `logits = network(torch.rand(${[1, ...shape].join(", ")}))${logits}`,
    "",
  ].join("\n");
}

function asState(hub, repository, isLocked) {
  const token = isLocked ? ', token="wg_…"' : "";
  return [
    "from huggingface_hub import hf_hub_download",
    "from safetensors.torch import load_file",
    "",
    "path = hf_hub_download(",
    `    "${repository}",`,
    '    "model.safetensors",',
    `    endpoint="${hub}"${token},`,
    ")",
    "state = load_file(path)",
    "",
  ].join("\n");
}

function byCurl(result, isLocked) {
  const key = isLocked ? " -H 'Authorization: Bearer wg_…'" : "";
  return result.files
    .map((file) => `curl -sfO${key} ${location.origin}/v1/artifacts/${result.artifact}/files/${file.name}\n`)
    .join("");
}
