// The audit as it runs, and what it found.

import { follow, get, isOver, send } from "./api.js";
import { byId, counted, el, fill, lasting, number, shown, table, trouble } from "./dom.js";
import { standing } from "./jobs.js";
import { verdicts } from "./verdicts.js";

const place = byId("audited");
let running = false;

/** Makes the button run an audit. */
export function start() {
  byId("audit-form").onsubmit = async (event) => {
    event.preventDefault();
    if (running) return;
    const sent = send("/verify", { quick: byId("quick").checked }).then((reply) => reply.json());
    await sent.then(watch, (error) => fill(place, el("div", { role: "alert" }, trouble(error))));
  };
}

/** Shows an audit until it has ended. */
export async function watch(job) {
  running = !isOver(job);
  byId("audit-said").textContent = running ? "The audit runs" : "";
  try {
    if (running) await follow(job, tell);
    else tell(job);
  } catch (error) {
    fill(place, trouble(error));
  }
  byId("audit-said").textContent = place.querySelector("strong")?.textContent ?? "";
  running = false;
}

function tell(job) {
  byId("audit-form").firstElementChild.setAttribute("aria-disabled", String(!isOver(job)));
  if (job.error) fill(place, trouble(job.error));
  else fill(place, job.audit ? result(job.audit) : standing(job));
}

function result(audit) {
  const fact = (name, value) => el("div", {}, el("dt", {}, name), el("dd", {}, value));
  return [
    el(
      "div",
      { class: audit.ok ? "sentence fine" : "sentence bad" },
      el("strong", {}, shown(`${audit.ok ? "✓" : "✗"} ${audit.sentence}`)),
    ),
    el(
      "dl",
      { class: "facts" },
      fact("memories checked", `${number(audit.checked)} of ${number(audit.chunks)}`),
      fact("documents proven", `${number(audit.documents_proven)} of ${number(audit.documents)}`),
      fact("took", lasting(audit.seconds)),
    ),
    el("p", { class: "kinds" }, verdicts(audit.counts)),
    audit.decodes ? null : el("p", { class: "faint" }, "Quick: no memory was decoded."),
    audit.sample ? el("p", { class: "faint" }, shown(audit.sample)) : null,
    findings(audit.findings),
  ];
}

function findings(found) {
  if (!found.length) return null;
  const row = ({ kind, subject, reason }) =>
    el("tr", {}, [kind, subject, reason].map((cell) => el("td", {}, shown(cell))));
  return [
    el("h2", {}, counted(found.length, "finding")),
    table(["Finding", "Where", "Why"], el("tbody", {}, found.map(row))),
  ];
}

/** The last audit of this server, if it had one. */
export async function resume() {
  const { jobs } = await get("/jobs");
  const last = jobs.find(({ kind }) => kind === "verify");
  if (last) watch(last);
  return jobs;
}
