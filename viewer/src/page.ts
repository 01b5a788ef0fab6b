// What both pages do with the address and with errors.

import { byId } from "./dom";

let remembering = 0;

/** Whether the page is in a notebook's frame: there it has no address and may not save files. */
export const framed = (): boolean => location.protocol === "about:";

/** Keeps the state in the URL's fragment. Browsers limit how often the address may change: a slider would exceed it. */
export function rememberSoon(fragment: () => string): void {
  if (framed()) return;
  window.clearTimeout(remembering);
  remembering = window.setTimeout(() => history.replaceState(null, "", `#${fragment()}`), 200);
}

export function fail(problem: unknown): void {
  byId("app").removeAttribute("aria-busy");
  const element = byId("message");
  element.textContent = `This page cannot show what it holds: ${problem instanceof Error ? problem.message : String(problem)}`;
  element.hidden = false;
  console.error(problem);
}
