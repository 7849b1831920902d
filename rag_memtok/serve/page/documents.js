// The documents of the store, their verdicts, and the memories of each.

import { get } from "./api.js";
import { byId, counted, el, fill, number, shown, trouble } from "./dom.js";
import { MEANS, verdict, verdicts } from "./verdicts.js";

const SHOWN = 200; // documents listed at once
let held = [];

/** Makes the filter work, and tells what the verdicts mean. */
export function start() {
  byId("judged").append(...Object.keys(MEANS).map((kind) => el("option", { value: kind }, kind)));
  byId("filter").oninput = list;
  byId("filter").onsubmit = (event) => event.preventDefault();
  fill(
    byId("meanings").querySelector("dl"),
    Object.entries(MEANS).map(([kind, words]) =>
      el("div", {}, el("dt", {}, verdict(kind)), el("dd", {}, words)),
    ),
  );
}

/** Takes on what the store holds. */
export function hold(documents) {
  held = documents;
  list();
}

function list() {
  const [named, judged] = [byId("named").value.trim().toLowerCase(), byId("judged").value];
  const found = held.filter(
    (one) => one.name.toLowerCase().includes(named) && (!judged || one.verdicts[judged]),
  );
  const more = found.length - SHOWN;
  byId("counted").textContent =
    found.length === held.length
      ? counted(held.length, "document")
      : `${number(found.length)} of ${counted(held.length, "document")}`;
  fill(byId("files-held"), found.slice(0, SHOWN).map(row));
  if (more > 0) byId("files-held").append(el("li", { class: "faint" }, `and ${number(more)} more`));
}

function row(one) {
  const inside = el("ul", { class: "memories" });
  const details = el(
    "details",
    {},
    el(
      "summary",
      {},
      el("b", {}, shown(one.name)),
      el("span", { class: "faint" }, counted(one.characters, "character")),
      el("span", { class: "kinds" }, verdicts(one.verdicts)),
    ),
    inside,
  );
  details.ontoggle = () => details.open && !inside.childElementCount && open(one, inside);
  return el("li", {}, details);
}

async function open(one, inside) {
  try {
    fill(inside, (await chunksOf(one)).map(memory));
  } catch (error) {
    fill(inside, el("li", {}, trouble(error)));
  }
}

async function chunksOf({ path, root }) {
  const found = [];
  for (;;) {
    const query = new URLSearchParams({ path, start: found.length });
    const { chunks, total } = await get(`/chunks?${query}`);
    found.push(...chunks);
    if (found.length >= total || !chunks.length) break;
  }
  return found
    .filter(({ place }) => place.root === root)
    .sort((one, other) => one.place.ordinal - other.place.ordinal);
}

function memory({ chunk_id: id, place, verdict: judged, vectors }) {
  const size = `${counted(judged.tokens, "token")} in ${counted(vectors, "vector")}`;
  return el(
    "li",
    {},
    el("a", { href: `#memory/${id}` }, place.locator || `part ${place.ordinal + 1}`),
    place.headings ? el("span", { class: "faint" }, shown(place.headings)) : null,
    el("span", { class: "faint" }, size),
    verdict(judged.kind),
  );
}
