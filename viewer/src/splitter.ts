// Bars between the parts of the page: dragged, or moved with the arrow keys.

import { byId } from "./dom";

/** Lets a bar set the size of an element; `grows` says which way makes it larger (-1: to the left, or up). */
export function splitter(id: string, element: HTMLElement, name: "width" | "height", least: number, most: () => number, grows = -1): void {
  const bar = byId(id);
  const set = (size: number): void => {
    const now = Math.round(Math.max(least, Math.min(size, most())));
    element.style.setProperty(`--${name}`, `${now}px`);
    bar.setAttribute("aria-valuenow", String(now));
  };
  const size = (): number => element.getBoundingClientRect()[name];
  bar.setAttribute("aria-valuemin", String(least));
  bar.setAttribute("aria-valuenow", String(least));
  bar.addEventListener("pointerdown", (event) => {
    event.preventDefault();
    bar.setPointerCapture(event.pointerId);
    const at = (e: PointerEvent): number => (name === "width" ? e.clientX : e.clientY);
    const begin = at(event), before = size();
    const move = (e: PointerEvent): void => set(before + grows * (at(e) - begin));
    bar.addEventListener("pointermove", move);
    bar.addEventListener("pointerup", () => bar.removeEventListener("pointermove", move), { once: true });
  });
  bar.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    event.stopPropagation();
    set(size() + grows * step * 24);
  });
}
