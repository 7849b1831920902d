// Questions and their answers, with the words they rest on.

import { events, send } from "./api.js";
import { byId, counted, el, fill, lasting, marked, number, shown, trouble } from "./dom.js";
import { verdict } from "./verdicts.js";

const KEPT = 20; // answers on the page
const field = byId("question");
const follows = byId("follows");
let running = null; // the AbortController of the answer that is being made
let last = ""; // the question that was answered last

/** Makes the form ask. */
export function start() {
  byId("question-form").onsubmit = (event) => {
    event.preventDefault();
    if (field.value.trim()) ask(field.value.trim());
  };
  field.onkeydown = (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    byId("question-form").requestSubmit();
  };
  byId("ask").addEventListener("keydown", ({ key }) => key === "Escape" && running?.abort());
  byId("stop").onclick = () => running?.abort();
}

/** Offers the names of what is there, to look only in that. */
export function offer(paths) {
  fill(byId("paths"), paths.map((value) => el("option", { value })));
}

async function ask(question) {
  running?.abort();
  const own = (running = new AbortController());
  const place = el("div", { class: "answer waiting" }, "Reading…");
  begin(el("article", {}, el("h2", {}, shown(question)), place));
  try {
    const reply = await send("/ask", { ...asked(question), stream: true }, own.signal);
    fill(place, answered(await streamed(reply, place)));
    last = question;
  } catch (error) {
    fill(place, ...refused(error, place));
  }
  place.classList.remove("waiting");
  if (running === own) ended(place);
}

function asked(question) {
  const [within, passages] = [byId("within").value.trim(), byId("passages").valueAsNumber];
  return {
    question,
    ...(within && { within }),
    ...(passages && { k: passages }),
    ...(last && follows.firstElementChild.checked && { before: last }),
  };
}

function begin(article) {
  byId("said").textContent = "Reading…";
  byId("answers").prepend(article);
  [...byId("answers").children].slice(KEPT).forEach((old) => old.remove());
  byId("stop").hidden = false;
  field.select();
}

function ended(place) {
  running = null;
  byId("said").textContent = (place.querySelector(".spoken") ?? place).innerText;
  follows.hidden = !last;
  if (document.activeElement === byId("stop")) field.focus();
  byId("stop").hidden = true;
}

/** Shows an answer as it comes; returns the whole of it. */
async function streamed(reply, place) {
  const text = el("p", { class: "words" });
  for await (const [name, data] of events(reply)) {
    if (name === "answer") return data;
    if (!text.isConnected) fill(place, text);
    text.append(...shown(data.text));
  }
  throw new Error("The answer ended before its end");
}

function refused(error, place) {
  if (error.name === "AbortError") {
    return [...place.querySelectorAll(".words"), el("p", {}, "Stopped.")];
  }
  if (error.code !== "no-usable-memory") return [trouble(error)];
  return [declined("Nothing was found", error.message), el("p", { class: "faint" }, error.remedy)];
}

function declined(title, words) {
  return el("div", { class: "refusal spoken" }, el("strong", {}, title), el("p", {}, shown(words)));
}

// --- an answer, whole

function answered(answer) {
  if (answer.refused) return [declined("The documents do not say", answer.answer), saved(answer)];
  const words = el("p", { class: "words" }, shown(answer.answer));
  return [
    el("div", { class: "spoken" }, words, grounds(answer)),
    sources(answer, standing(answer)),
    saved(answer),
  ];
}

/** The number of the source in which the answer stands, -1 for none. */
function standing({ stands_in: where, sources }) {
  return sources.findIndex(
    ({ path, span }) =>
      path === where?.path && span[0] <= where.span[0] && where.span[1] <= span[1],
  );
}

function grounds({ grounded, stands_in: where }) {
  if (grounded) {
    const file = el("b", {}, shown(where.path));
    return el("p", { class: "grounds" }, "Stands word for word in ", file, `, ${where.lines}.`);
  }
  const loose = "Does not stand word for word in a passage: the model’s own words, to be checked.";
  return el("p", { class: "grounds loose" }, loose);
}

function sources(answer, at) {
  const made = answer.sources.map((source, i) => {
    const text = answer.texts[i] ?? "";
    const [start, end] = answer.stands_in?.span.map((one) => one - source.span[0]) ?? [];
    const passage = i === at ? marked(text, start, end) : shown(text);
    return el("li", {}, cited(source, passage, i === at || (at < 0 && i === 0)));
  });
  return [el("h3", {}, counted(made.length, "source")), el("ol", { class: "sources" }, made)];
}

const FILES = { changed: "the file has changed since", gone: "the file is gone" };

function cited(source, passage, open) {
  const relevance = source.relevance === null ? "" : `relevance ${percent(source.relevance)}`;
  return el(
    "details",
    { open },
    el(
      "summary",
      {},
      el("b", {}, shown(source.name)),
      el("span", {}, source.lines),
      relevance && el("span", { class: "faint" }, relevance),
      verdict(source.verdict),
      source.file && el("span", { class: "warning" }, FILES[source.file]),
    ),
    el("pre", {}, passage),
    el("p", {}, el("a", { href: `#memory/${source.chunk}` }, "Its memory, token by token")),
  );
}

const percent = (share) => `${Math.round(100 * share)} %`;

/** What the memories took in place of their text. */
function saved(answer) {
  const { context_positions: taken, text_positions: text, reader_reason: reason } = answer;
  const less = 0 < taken && taken < text;
  const times = (text / taken).toFixed(1);
  const words = less
    ? `Read ${number(taken)} positions of memory in place of ${number(text)} of text: ` +
      `${times} times fewer`
    : `Nothing was saved: ${counted(taken, "position")}, as many as the text has`;
  return el(
    "div",
    { class: "saved" },
    el("p", {}, words, el("span", { class: "faint" }, ` · ${lasting(answer.seconds)}`)),
    less ? bars(taken, text) : null,
    !less && reason ? el("p", { class: "faint" }, `Why: ${reason}.`) : null,
  );
}

function bars(taken, text) {
  const own = el("i", { class: "own" });
  own.style.width = `${(100 * taken) / text}%`;
  return el("div", { class: "bars", "aria-hidden": "true" }, own);
}
