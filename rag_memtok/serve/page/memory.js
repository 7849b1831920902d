// One memory as a strip: a bar a token, as high as its margin, and the pins.

import { get } from "./api.js";
import { byId, counted, el, fill, number, shown, table, trouble } from "./dom.js";
import { verdict } from "./verdicts.js";

const HEAT = [0.05, 0.1, 0.2, 0.4]; // logits: the colours of the command line
const HIGHEST = 4; // logits: what leads by more is as high
const LOWEST = 0.7; // rem: what leads by nothing, or does not lead
const PINS = {
  correction: "pinned: the memory alone would be wrong here",
  safety: "pinned: right, but by little",
};
const place = byId("one-memory");
let wanted = "";

/** Shows the memory of a chunk, decoded now. */
export async function show(id) {
  wanted = id;
  fill(place, el("p", { class: "waiting", role: "status" }, "Decoding…"));
  const made = await get(`/chunks/${id}`).then(decoded, (error) => [trouble(error)]);
  if (wanted === id) fill(place, made);
}

function decoded(chunk) {
  const bars = el("div", { class: "strip", "aria-hidden": "true" }, chunk.tokens.map(bar));
  const words = el("pre", { class: "tokens", "aria-hidden": "true" }, chunk.tokens.map(word));
  const told = el("p", { class: "told" });
  const last = chunk.tokens.length - 1;
  if (last < 0) return [facts(chunk), el("pre", {}, shown(chunk.text))];
  const slider = el("input", { type: "range", min: 0, max: last, id: "token-at" });
  const choose = (at) => chosen(chunk.tokens, at, { bars, words, told, slider });
  slider.oninput = () => choose(slider.valueAsNumber);
  bars.onclick = words.onclick = ({ target }) => {
    const token = target.closest("[data-at]");
    if (token) choose(Number(token.dataset.at));
  };
  choose(0);
  return [
    facts(chunk),
    el("h2", {}, "Margins and pins"),
    legend(),
    bars,
    el("label", { for: "token-at" }, "Token by token"),
    slider,
    told,
    words,
    listed(chunk.tokens),
  ];
}

function facts({ verdict: judged, shape, places, bytes, codec }) {
  const [where, ...others] = places;
  const more = others.length ? ` and ${counted(others.length, "other place")}` : "";
  const each = shape[0] ? ` (${(judged.tokens / shape[0]).toFixed(1)} each)` : "";
  const fact = (name, ...value) => el("div", {}, el("dt", {}, name), el("dd", {}, value));
  return [
    where ? el("p", { class: "lead" }, shown(`${where.path}, ${where.locator}`), more) : null,
    el(
      "dl",
      { class: "facts" },
      fact("verdict", verdict(judged.kind)),
      fact("tokens in vectors", `${number(judged.tokens)} in ${number(shape[0])}${each}`),
      fact("corrections", number(judged.corrections)),
      fact("safety pins", number(judged.safeties)),
      fact("smallest margin", judged.margin === null ? "none" : judged.margin.toFixed(2)),
      fact("bytes", `${number(bytes.vectors + bytes.pins)} (${codec})`),
    ),
    judged.reason ? el("p", { class: "faint" }, shown(judged.reason)) : null,
  ];
}

const heat = ({ margin, pin }) => {
  if (pin) return pin;
  const step = HEAT.findIndex((most) => margin !== null && margin <= most);
  return `heat${step < 0 ? HEAT.length : step}`;
};

function bar(token, at) {
  const made = el("i", { class: heat(token), "data-at": at });
  const lead = Math.min(Math.max(token.margin ?? HIGHEST, 0), HIGHEST);
  made.style.height = `${LOWEST + (4 - LOWEST) * Math.sqrt(lead / HIGHEST)}rem`;
  return made;
}

const word = (token, at) => el("span", { class: heat(token), "data-at": at }, shown(token.text));

function chosen(tokens, at, { bars, words, told, slider }) {
  const token = tokens[at];
  for (const row of [bars, words]) {
    row.querySelector(".chosen")?.classList.remove("chosen");
    row.children[at].classList.add("chosen");
  }
  const margin = token.margin === null ? "no margin" : `margin ${token.margin.toFixed(2)}`;
  const about = [margin, PINS[token.pin]].filter(Boolean).join(", ");
  slider.value = at;
  slider.setAttribute("aria-valuetext", `${at + 1}: ${named(token.text)}, ${about}`);
  const name = el("b", {}, shown(named(token.text)));
  fill(told, `${at + 1} of ${tokens.length}: `, name, `, ${about}`);
}

const named = (text) => text.replaceAll("\n", "↵").replaceAll("\t", "⇥").replace(/^ +$/, "␣");

function legend() {
  const one = (kind, words) => el("span", {}, el("i", { class: kind }), words);
  const marks = HEAT.map((most, step) => one(`heat${step}`, `to ${most}`));
  return [
    el("p", {}, "Each bar is a token: the higher, the further it leads over the next best."),
    el(
      "p",
      { class: "legend faint" },
      "pins, kept beside the memory:",
      one("correction", "correction"),
      one("safety", "safety"),
      "margins in logits:",
      marks,
      one(`heat${HEAT.length}`, `above ${HEAT.at(-1)}`),
    ),
  ];
}

function listed(tokens) {
  const body = el("tbody");
  const summary = el("summary", {}, `As a table (${counted(tokens.length, "token")})`);
  const details = el("details", {}, summary, table(["Token", "Margin", "Pin"], body));
  details.ontoggle = () => details.open && fill(body, tokens.map(line));
  return details;
}

function line({ text, margin, pin }) {
  const cells = [shown(named(text)), margin === null ? "none" : margin.toFixed(2), pin];
  return el("tr", {}, cells.map((cell) => el("td", {}, cell)));
}
