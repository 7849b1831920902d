// The token of a server that asks for one: kept in sessionStorage, until the tab is closed.

import { byId } from "./dom.js";

const KEY = "rag-memtok-token";
const SENDABLE = /^[\x20-\x7e\xa0-\xff]+$/; // else no header can hold it, and nothing is sent
const NO_TOKEN =
  "This is no token: it has a curly quote, a sign that cannot be seen, or the like. Copy it anew.";
let asking = null;

/** Whether a text can be a token. */
export const isToken = (text) => SENDABLE.test(text);

export const kept = () => sessionStorage.getItem(KEY) ?? "";

/** Asks for the token, once for all that wait for it; false: nobody gave one. */
export function askForToken() {
  asking ??= asked().finally(() => (asking = null));
  return asking;
}

function asked() {
  const dialog = byId("token");
  const [form, field] = [dialog.querySelector("form"), byId("token-field")];
  const why = byId("token-why");
  why.textContent = kept() ? "The one that was given is not it." : "";
  field.value = "";
  dialog.showModal();
  return new Promise((resolve) => {
    form.onsubmit = (event) => {
      event.preventDefault();
      const given = field.value.trim();
      if (!isToken(given)) {
        why.textContent = NO_TOKEN;
        field.select();
        return;
      }
      sessionStorage.setItem(KEY, given);
      dialog.close("given");
    };
    form.querySelector("[type=button]").onclick = () => dialog.close("");
    dialog.oncancel = () => (dialog.returnValue = "");
    dialog.onclose = () => resolve(dialog.returnValue === "given");
  });
}
