// Elements made of text. What a store holds never becomes markup: it goes through `shown`.

// What cannot be seen but changes what is: C0 and C1 controls, bidi marks, spaces without width.
const CONTROLS = "\\u0000-\\u0008\\u000b\\u000c\\u000e-\\u001f\\u007f-\\u009f";
const MARKS = "\\u061c\\u200b\\u200e\\u200f\\u2028-\\u202e\\u2060-\\u206f\\ufeff";
const UNSEEN = new RegExp(`([${CONTROLS}${MARKS}])`, "u");

const grouped = new Intl.NumberFormat("en");

export const byId = (id) => document.getElementById(id);
export const number = (value) => grouped.format(value);
export const counted = (count, one, many = `${one}s`) =>
  `${number(count)} ${count === 1 ? one : many}`;

/** An element with attributes (`onclick` and the like: listeners) and children; text is text. */
export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat(Infinity).filter((child) => child != null));
  return made;
}

/** Text of a document as nodes; characters that nobody can see are boxes with their number. */
export function shown(text) {
  return text.split(UNSEEN).map((part, at) => (at % 2 ? box(part) : part)).filter(Boolean);
}

function box(character) {
  const code = character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
  return el("span", { class: "control", title: "a character that cannot be seen" }, `U+${code}`);
}

/** Text with the code points from `start` to `end` marked. */
export function marked(text, start, end) {
  const points = Array.from(text);
  const part = (from, to) => shown(points.slice(from, to).join(""));
  return [...part(0, start), el("mark", {}, part(start, end)), ...part(end)];
}

/** An error with what to do about it. */
export function trouble(error) {
  return el(
    "div",
    { class: "error" },
    el("strong", {}, shown(error.message)),
    error.remedy ? el("p", {}, shown(error.remedy)) : null,
  );
}

/** A table with the names of its columns. */
export function table(columns, body) {
  const names = columns.map((name) => el("th", { scope: "col" }, name));
  return el("table", {}, el("thead", {}, el("tr", {}, names)), body);
}

/** Seconds, roughly. */
export function lasting(seconds) {
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 100) return `${Math.round(seconds)} s`;
  return `${number(Math.round(seconds / 60))} min`;
}

/** What there is in place of what was there. */
export function fill(place, ...children) {
  place.replaceChildren(...children.flat(Infinity).filter((child) => child != null));
}
