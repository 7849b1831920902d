// The page: which view is shown, and what the store holds.

import { get, isOver } from "./api.js";
import * as ask from "./ask.js";
import * as audit from "./audit.js";
import * as documents from "./documents.js";
import { byId, counted, fill, trouble } from "./dom.js";
import * as memory from "./memory.js";
import * as upload from "./upload.js";

const TITLES = { ask: "Ask", documents: "Documents", memory: "Memory", audit: "Audit" };
let [view, empty] = ["", false];
let welcome = false; // the store was empty when this view was opened

/** Shows what the address names; an anchor within a view changes nothing. */
function route() {
  const [name, id] = location.hash.slice(1).split("/");
  if (view && name && !(name in TITLES)) return;
  const before = view;
  view = name in TITLES ? name : "ask";
  welcome = empty;
  arrange();
  if (view === "memory") memory.show(id);
  scrollTo(0, 0);
  if (before) document.querySelector("main section:not([hidden]) h1:not([hidden] *)")?.focus();
}

function arrange() {
  const start = view === "ask" && empty;
  const seen = {
    ask: view === "ask" && !empty,
    upload: view === "documents" || start,
    "nothing-yet": start,
    jobs: view === "documents" || (view === "ask" && welcome),
    listing: view === "documents" && !empty,
    documents: view === "documents",
    memory: view === "memory",
    audit: view === "audit",
  };
  for (const [id, is] of Object.entries(seen)) byId(id).hidden = !is;
  document.title = `${TITLES[view]} · rag-memtok`;
  for (const link of document.querySelectorAll("nav a")) {
    const here = link.hash.slice(1) === (view === "memory" ? "documents" : view);
    if (here) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
}

/** Looks at what the store holds. */
async function look() {
  const { store } = await get("/health");
  const found = store ? (await get("/documents")).documents : [];
  empty = !found.length;
  const chunks = found.reduce((sum, one) => sum + one.chunks, 0);
  byId("held").textContent = empty
    ? "an empty store"
    : `${counted(found.length, "document")}, ${counted(chunks, "memory", "memories")}`;
  documents.hold(found);
  ask.offer(found.map(({ path }) => path));
  arrange();
}

const complain = (error) => fill(byId("trouble"), trouble(error));

async function begin() {
  ask.start();
  documents.start();
  audit.start();
  upload.start(() => look().catch(complain), () => (location.hash = "#documents"));
  addEventListener("hashchange", route);
  addEventListener("click", ({ target }) => {
    if (target.closest("a")?.hash === location.hash) route(); // no change that would be told
  });
  route();
  try {
    await look();
    welcome = empty;
    arrange();
    for (const job of await audit.resume()) {
      if (job.kind === "ingest" && !isOver(job)) upload.watch(job);
    }
  } catch (error) {
    complain(error);
  }
}

begin();
