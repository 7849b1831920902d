// Where work stands: a bar with words.

import { el, lasting, number, shown } from "./dom.js";

const STATES = { waiting: "waits for its turn", stopped: "stopped; what was done is kept" };

/** Where a job stands. */
export function standing(job) {
  const { progress } = job;
  if (STATES[job.state]) return el("p", {}, STATES[job.state]);
  if (!progress?.total) return [el("progress", { "aria-label": "begins" }), el("p", {}, "begins…")];
  const { done, total } = progress;
  return [
    el("progress", { value: done, max: total, "aria-label": "done" }),
    el("p", { class: "faint" }, shown(told(progress))),
  ];
}

function told({ done, total, stage, facts, seconds_left: left }) {
  return [
    stage,
    `${number(done)} of ${number(total)}`,
    ...Object.entries(facts)
      .filter(([, value]) => value !== null)
      .map(([name, value]) => `${name} ${number(value)}`),
    left === null ? "" : `about ${lasting(left)} left`,
  ]
    .filter(Boolean)
    .join(" · ");
}
