// Requests to the server: JSON there and back, events, and errors with their remedy.

import { askForToken, kept } from "./token.js";

/** Why a request came to nothing, and what to do. */
export class Refused extends Error {
  constructor({ message, remedy = "", code = "" }) {
    super(message);
    Object.assign(this, { remedy, code });
  }
}

const SILENT = {
  message: "The server does not answer",
  remedy: "See whether rag-memtok serve still runs, then try again.",
};
const LOCKED = {
  message: "This server answers only who has its token",
  remedy: "Reload the page to give it.",
  code: "token",
};

/** The reply to a request. Raises Refused, and AbortError when `signal` ends it. */
export async function request(path, options = {}) {
  const token = kept();
  const headers = { ...options.headers, ...(token && { Authorization: `Bearer ${token}` }) };
  const reply = await fetch(path, { ...options, headers }).catch((error) => {
    throw error.name === "AbortError" ? error : new Refused(SILENT);
  });
  if (reply.status === 401) {
    if (token !== kept() || (await askForToken())) return request(path, options);
    throw new Refused(LOCKED);
  }
  if (reply.ok) return reply;
  throw await refusal(reply);
}

async function refusal(reply) {
  const told = await reply.json().catch(() => ({}));
  const error = told.error ?? { message: `The server said ${reply.status}` };
  const wait = reply.headers.get("Retry-After");
  return new Refused(wait ? { ...error, remedy: `Try again in ${wait} s.` } : error);
}

export const get = async (path, signal) => (await request(path, { signal })).json();

/** Sends JSON; the reply may be JSON or events. */
export const send = (path, body, signal) =>
  request(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });

/** Sends a file; returns the job that takes it in. */
export async function upload(file) {
  const headers = { "X-Rag-Memtok-Name": encodeURIComponent(file.name) };
  return (await request("/ingest", { method: "POST", headers, body: file })).json();
}

/** The events of a reply, as [name, data]; an event `error` is raised. */
export async function* events(reply) {
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read().catch(lost);
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) yield* parsed(block);
  }
}

function lost(error) {
  throw error.name === "AbortError" ? error : new Refused(SILENT);
}

function* parsed(block) {
  const fields = Object.fromEntries(block.split("\n").map((line) => line.split(/: (.*)/s, 2)));
  if (!fields.data) return;
  const data = JSON.parse(fields.data);
  if (fields.event === "error") throw new Refused(data.error);
  yield [fields.event, data];
}

const ENDED = new Set(["done", "failed", "stopped"]);
export const isOver = (job) => ENDED.has(job.state);

/** Tells a job whenever it changed, until it has ended. */
export async function follow(job, tell) {
  tell(job);
  for await (const [, now] of events(await request(`/jobs/${job.id}/events`))) tell((job = now));
  if (!isOver(job)) tell((job = await get(`/jobs/${job.id}`)));
  if (!isOver(job)) throw new Refused(SILENT);
}
