// The token of a server that asks for one: kept in sessionStorage, until the tab is closed.

import { byId } from "./dom.js";

const KEY = "rag-memtok-token";
let asking = null;

export const kept = () => sessionStorage.getItem(KEY) ?? "";

/** Asks for the token, once for all that wait for it; false: nobody gave one. */
export function askForToken() {
  asking ??= asked().finally(() => (asking = null));
  return asking;
}

function asked() {
  const dialog = byId("token");
  const [form, field] = [dialog.querySelector("form"), byId("token-field")];
  byId("token-why").textContent = kept() ? "The one that was given is not it." : "";
  field.value = "";
  dialog.showModal();
  return new Promise((resolve) => {
    form.onsubmit = (event) => {
      event.preventDefault();
      sessionStorage.setItem(KEY, field.value.trim());
      dialog.close("given");
    };
    form.querySelector("[type=button]").onclick = () => dialog.close("");
    dialog.oncancel = () => (dialog.returnValue = "");
    dialog.onclose = () => resolve(dialog.returnValue === "given");
  });
}
