// What both pages do with the address and with what goes wrong.

import { byId } from "./dom";

let remembering = 0;

/** Keeps the state in the URL's fragment. Browsers limit how often the address may change: a slider would exceed it. */
export function rememberSoon(fragment: () => string): void {
  window.clearTimeout(remembering);
  remembering = window.setTimeout(() => history.replaceState(null, "", `#${fragment()}`), 200);
}

export function fail(problem: unknown): void {
  byId("app").removeAttribute("aria-busy");
  const element = byId("message");
  element.textContent = `This page cannot show its graph: ${problem instanceof Error ? problem.message : String(problem)}`;
  element.hidden = false;
  console.error(problem);
}
