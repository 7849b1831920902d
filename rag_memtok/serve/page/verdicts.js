// Verdicts: their words, what they mean, how they look.

import { el, number } from "./dom.js";

export const MEANS = {
  exact: "every token comes back from the memory itself",
  pinned: "comes back whole; up to 5 % of the tokens are pinned, that is, kept beside the memory",
  assisted: "comes back whole, but more than 5 % of the tokens are pinned",
  "text-only": "kept as text: the tokenizer itself would lose something of it",
  fragile: "comes back here by a margin too small to be sure of elsewhere",
  mismatch: "does not come back as it was",
  incomparable: "cannot be compared: it belongs to another model",
  damaged: "its bytes are not what was written",
};

/** A verdict as its word; with a count, so many of it. */
export function verdict(kind, count) {
  const words = count === undefined ? kind : `${number(count)} ${kind}`;
  return el("span", { class: `verdict ${kind}`, title: MEANS[kind] }, words);
}

/** Counts by verdict, the best first. */
export function verdicts(counts) {
  const order = Object.keys(MEANS);
  return Object.entries(counts)
    .filter(([kind, count]) => count && kind in MEANS)
    .sort(([one], [other]) => order.indexOf(one) - order.indexOf(other))
    .map(([kind, count]) => verdict(kind, count));
}
