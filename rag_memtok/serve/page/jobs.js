// Where work stands: a bar with words.

import { el, lasting, number, shown } from "./dom.js";

const STATES = { waiting: "Waits for its turn", stopped: "Stopped; what was done is kept" };

/** Where a job stands. */
export function standing(job) {
  const { progress } = job;
  if (STATES[job.state]) return el("p", {}, STATES[job.state]);
  const at = progress?.total ? { value: progress.done, max: progress.total } : {};
  return [
    el("progress", { ...at, "aria-label": "progress" }),
    el("p", { class: "faint" }, progress?.total ? shown(told(progress)) : "Begins…"),
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
