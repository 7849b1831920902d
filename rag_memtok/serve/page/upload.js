// Files that are dropped or chosen: sent, taken in by a job, and what came of it.

import { follow, upload } from "./api.js";
import { byId, counted, el, fill, number, shown, trouble } from "./dom.js";
import { standing } from "./jobs.js";
import { verdicts } from "./verdicts.js";

const followed = new Map(); // the cards of jobs, by their ids
let changed = () => {};
let came = () => {};

/** Takes files in. `onChange` is told when the store has changed, `onDrop` when files arrive. */
export function start(onChange, onDrop) {
  [changed, came] = [onChange, onDrop];
  const input = byId("files");
  input.onchange = async () => {
    await take([...input.files]);
    input.value = "";
  };
  addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.add("dragging");
  });
  addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) document.body.classList.remove("dragging");
  });
  addEventListener("drop", dropped);
}

async function dropped(event) {
  event.preventDefault();
  document.body.classList.remove("dragging");
  const items = [...event.dataTransfer.items].filter(({ kind }) => kind === "file");
  const [folders, files] = [[], []];
  for (const item of items) {
    const folder = item.webkitGetAsEntry?.()?.isDirectory;
    (folder ? folders : files).push(item.getAsFile());
  }
  if (items.length) came();
  for (const { name } of folders) {
    const remedy = `Drop the files that are in it, or: rag-memtok ingest ${name}`;
    card(name, trouble({ message: "This is a folder", remedy }));
  }
  await take(files);
}

function card(title, ...children) {
  const body = el("div", {}, ...children);
  byId("jobs").prepend(el("article", {}, el("h2", {}, shown(title)), body));
  return body;
}

/** Sends files, one after the other; those that wait together are one job. */
async function take(files) {
  for (const file of files) {
    const body = card(file.name, el("p", { class: "waiting", role: "status" }, "Sending…"));
    try {
      const job = await upload(file);
      body.parentElement.remove();
      watch(job);
    } catch (error) {
      fill(body, el("div", { role: "alert" }, trouble(error)));
    }
  }
}

/** Shows an ingest until it has ended; one that is shown already gets its new files. */
export async function watch(job) {
  if (followed.has(job.id)) return tell(job);
  const body = card(job.subjects.join(", "));
  followed.set(job.id, body);
  try {
    await follow(job, tell);
    changed();
  } catch (error) {
    fill(body, trouble(error));
  }
}

function tell(job) {
  const body = followed.get(job.id);
  fill(body.parentElement.firstElementChild, shown(job.subjects.join(", ")));
  if (job.error) return fill(body, el("div", { role: "alert" }, trouble(job.error)));
  fill(body, job.ingested ? outcome(job) : standing(job));
}

function outcome({ ingested, subjects }) {
  const own = (found) => found.filter(({ path }) => subjects.includes(path));
  const left = own([...ingested.skipped, ...ingested.over_limit]);
  const note = (kind, words) => el("p", { class: kind }, shown(words));
  return [
    el("p", { role: "status" }, done(ingested, left), el("a", { href: "#ask" }, "Ask")),
    el("p", { class: "kinds" }, verdicts(ingested.verdicts)),
    left.map(({ path, reason }) => note("warning", `${path} was not read: ${reason}`)),
    own(ingested.assumed).map((one) => note("faint", `${one.path} was read as ${one.encoding}`)),
  ];
}

function done({ files, chunks, unchanged, positions, text_positions: text }, left) {
  if (!files) return unchanged && !left.length ? "Already there, unchanged. " : "Nothing came in. ";
  const saved = `${number(positions)} positions in place of ${number(text)} of text`;
  const made = `${counted(files, "document")} as ${counted(chunks, "memory", "memories")}`;
  return `Taken in: ${made}, ${saved}. `;
}
