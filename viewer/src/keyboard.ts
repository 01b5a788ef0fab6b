// Keys that work anywhere on the page, but not while typing.

import { byId } from "./dom";

export interface Actions {
  search(): void;
  pin(): void;
  mark(): void;
  group(): void;
  undo(): void;
  fit(): void;
  zoom(factor: number): void;
  escape(): void;
  subgraph(): void;
  turn(): void;
  story(): void;
}

/** Keys for what the page can do; every page has `search` and `escape`. */
export function listenForKeys(actions: Partial<Actions> & Pick<Actions, "search" | "escape">): void {
  const help = byId<HTMLDialogElement>("help");
  const openHelp = (): void => help.showModal();
  byId("open-help").addEventListener("click", openHelp);
  byId("close-help").addEventListener("click", () => help.close());
  const keys: Record<string, () => void> = {
    "/": () => actions.search(),
    p: () => actions.pin?.(),
    m: () => actions.mark?.(),
    g: () => actions.group?.(),
    u: () => actions.undo?.(),
    s: () => actions.subgraph?.(),
    f: () => actions.fit?.(),
    "0": () => actions.fit?.(),
    "+": () => actions.zoom?.(1.4),
    "=": () => actions.zoom?.(1.4),
    "-": () => actions.zoom?.(1 / 1.4),
    x: () => actions.turn?.(),
    t: () => actions.story?.(),
    "?": openHelp,
    Escape: () => actions.escape(),
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || help.open) return;
    const target = event.target as HTMLElement;
    if (target.matches("input[type=text], input[type=search], input[type=number], select, textarea")) return;
    const act = keys[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  });
}
