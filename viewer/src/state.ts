// What the reader has done: thresholds, what is selected, pinned and grouped. Kept in the URL's fragment and in JSON
// of the shape that public viewers use: qParams with pinnedIds, supernodes ([name, id, id, …]) and clickedId. They ignore
// `positions`; their own `sg_pos` depends on how they order and size nodes.

import type { QParams } from "./data";

export interface Supernode {
  name: string;
  ids: string[];
}

export interface State {
  pinned: string[];
  supernodes: Supernode[];
  /** Id of the selected node, `supernode-<i>` for a group, "" for none. */
  clicked: string;
  /** Where nodes of the subgraph were dragged to, in thousandths of its width and height; a group by its first member. */
  positions: Positions;
  nodeThreshold: number;
  edgeThreshold: number;
  leftOut?: LeftOut;
  /** The story, or all nodes. */
  view: View;
  /** Id of the target that is told of; "" for all of them. */
  target: string;
  filters: Filters;
  /** Id of a feature whose card stands beside the selected one's; "" for none. */
  beside: string;
  /** Nothing but the picture, for a page inside another. */
  embed: boolean;
}

/** Where the page begins. */
export function initialState(nodeThreshold: number, edgeThreshold: number): State {
  return {
    pinned: [], supernodes: [], clicked: "", positions: {}, nodeThreshold, edgeThreshold, view: "graph", target: "", filters: NO_FILTERS, beside: "", embed: false,
  };
}

export type View = "story" | "graph";

/** What of the pruned graph is shown. Ranges hold their ends; null is no bound. */
export interface Filters {
  kinds: { feature: boolean; error: boolean; token: boolean };
  sign: "both" | "plus" | "minus";
  /** Edges of a smaller share of their target's input are hidden. */
  leastShare: number;
  layers: [number | null, number | null];
  positions: [number | null, number | null];
  /** Hide what stands at the tokens of a chat template. */
  hideTemplate: boolean;
}

export const NO_FILTERS: Filters = {
  kinds: { feature: true, error: true, token: true }, sign: "both", leastShare: 0, layers: [null, null], positions: [null, null], hideTemplate: false,
};

/** What the lists of features and paths leave out as trivial. */
export interface LeftOut {
  /** Paths through fewer features. */
  pathFeatures: number;
  /** Features at the last position of the prompt. */
  lastPosition: boolean;
  /** Features that fire on more than this share of tokens, where their cards know it. */
  maxFiringRate: number;
}

export const MOST_PATH_FEATURES = 9;
export const NOTHING_LEFT_OUT: LeftOut = { pathFeatures: 0, lastPosition: false, maxFiringRate: 1 };

export type Positions = Record<string, [number, number]>;

export type Listener = (before: State) => void;

export class Store {
  /** Ids marked for grouping; not saved. */
  marked = new Set<string>();
  private listeners: Listener[] = [];
  private undone: State[] = [];

  constructor(public state: State) {}

  listen(listener: Listener): void {
    this.listeners.push(listener);
  }

  /** Changes the state; `keep` remembers the previous one for undo. */
  set(change: Partial<State>, keep = false): void {
    const before = this.state;
    if (keep) this.undone.push(before);
    this.state = { ...before, ...change };
    for (const listener of this.listeners) listener(before);
  }

  undo(): boolean {
    const before = this.undone.pop();
    if (!before) return false;
    const { pinned, supernodes, positions } = before;
    this.set({ pinned, supernodes, positions });
    return true;
  }

  isPinned(id: string): boolean {
    return this.state.pinned.includes(id);
  }

  pin(id: string): void {
    if (!this.isPinned(id)) this.set({ pinned: [...this.state.pinned, id] }, true);
  }

  /** Pins, or unpins and takes the node out of its group. */
  toggle(id: string): void {
    if (!this.isPinned(id)) return this.pin(id);
    this.marked.delete(id);
    this.set({ pinned: this.state.pinned.filter((p) => p !== id), supernodes: without(this.state.supernodes, [id]) }, true);
  }

  mark(id: string): void {
    if (!this.marked.delete(id)) this.marked.add(id);
    this.set({});
  }

  /** Makes a group of nodes, which are pinned and leave the groups they were in; returns its number. */
  group(name: string, ids: string[]): number {
    const pinned = [...this.state.pinned, ...ids.filter((id) => !this.isPinned(id))];
    const supernodes = [...without(this.state.supernodes, ids), { name, ids: [...new Set(ids)] }];
    this.marked.clear();
    this.set({ pinned, supernodes }, true);
    return supernodes.length - 1;
  }

  ungroup(i: number): void {
    const clicked = this.state.clicked.startsWith("supernode-") ? "" : this.state.clicked;
    this.set({ supernodes: this.state.supernodes.filter((_, j) => j !== i), clicked }, true);
  }

  rename(i: number, name: string): void {
    if (!name.trim() || !this.state.supernodes[i]) return;
    this.set({ supernodes: this.state.supernodes.map((group, j) => (j === i ? { ...group, name: name.trim() } : group)) }, true);
  }

  groupOf(id: string): number {
    return this.state.supernodes.findIndex((group) => group.ids.includes(id));
  }

  qParams(): Required<QParams> & { linkType: string; sg_pos: string } {
    const { pinned, supernodes, clicked, positions } = this.state;
    return {
      pinnedIds: pinned,
      supernodes: supernodes.map((group) => [group.name, ...group.ids]),
      linkType: "both",
      clickedId: clicked,
      sg_pos: "",
      positions,
    };
  }

  fragment(): string {
    const { pinned, supernodes, clicked, positions, nodeThreshold, edgeThreshold } = this.state;
    const parts = new URLSearchParams();
    if (pinned.length) parts.set("pinnedIds", pinned.join(","));
    if (supernodes.length) parts.set("supernodes", JSON.stringify(supernodes.map((g) => [g.name, ...g.ids])));
    if (clicked) parts.set("clickedId", clicked);
    if (Object.keys(positions).length) parts.set("positions", JSON.stringify(positions));
    parts.set("pruningThreshold", String(nodeThreshold));
    parts.set("edgeThreshold", String(edgeThreshold));
    const { pathFeatures, lastPosition, maxFiringRate } = this.state.leftOut ?? NOTHING_LEFT_OUT;
    if (pathFeatures) parts.set("pathFeatures", String(pathFeatures));
    if (lastPosition) parts.set("beforeLast", "1");
    if (maxFiringRate < 1) parts.set("maxFiringRate", String(maxFiringRate));
    const { view, target, filters, beside, embed } = this.state;
    parts.set("view", view);
    parts.set("target", target);
    if (JSON.stringify(filters) !== JSON.stringify(NO_FILTERS)) parts.set("filters", JSON.stringify(filters));
    if (beside) parts.set("beside", beside);
    if (embed) parts.set("embed", "1");
    return parts.toString();
  }
}

function without(supernodes: Supernode[], ids: string[]): Supernode[] {
  return supernodes
    .map((group) => ({ ...group, ids: group.ids.filter((id) => !ids.includes(id)) }))
    .filter((group) => group.ids.length > 0);
}

/** The part of a state that saved values give; what has the wrong shape or names no node is left out. */
export function fromQParams(given: unknown, known: (id: string) => boolean): Partial<State> {
  const change: Partial<State> = {};
  if (typeof given !== "object" || given === null) return change;
  const { pinnedIds: pinned, supernodes, clickedId, positions } = given as Record<string, unknown>;
  // Some viewers join the ids.
  const pinnedIds = typeof pinned === "string" ? pinned.split(",") : pinned;
  const ids = (values: unknown): string[] =>
    Array.isArray(values) ? [...new Set(values.filter((id): id is string => typeof id === "string" && known(id)))] : [];
  const taken = new Set<string>();
  if (Array.isArray(supernodes)) {
    change.supernodes = [];
    for (const group of supernodes) {
      if (!Array.isArray(group) || typeof group[0] !== "string") continue;
      const own = ids(group.slice(1)).filter((id) => !taken.has(id));
      own.forEach((id) => taken.add(id));
      if (own.length) change.supernodes.push({ name: group[0].slice(0, 200) || "group", ids: own });
    }
  }
  if (pinnedIds !== undefined || taken.size) change.pinned = [...new Set([...ids(pinnedIds), ...taken])];
  if (typeof positions === "object" && positions !== null) {
    const share = (value: unknown): value is number => typeof value === "number" && value >= 0 && value <= 1000;
    const places = Object.entries(positions).filter(([id, place]) => known(id) && Array.isArray(place) && share(place[0]) && share(place[1]));
    change.positions = Object.fromEntries(places.map(([id, place]) => [id, [place[0], place[1]]]));
  }
  if (typeof clickedId === "string" && (known(clickedId) || /^(supernode|story)-\d+$/.test(clickedId))) change.clicked = clickedId;
  return change;
}

/** What a URL's fragment says; unreadable parts are left out. */
export function fromFragment(fragment: string, known: (id: string) => boolean): Partial<State> {
  const parts = new URLSearchParams(fragment.replace(/^#/, ""));
  const given: Record<string, unknown> = {};
  const pinned = parts.get("pinnedIds");
  if (pinned !== null) given.pinnedIds = pinned;
  const clicked = parts.get("clickedId");
  if (clicked !== null) given.clickedId = clicked;
  for (const name of ["supernodes", "positions"]) {
    try {
      const value = parts.get(name);
      if (value !== null) given[name] = JSON.parse(value);
    } catch {
      // The link was cut off; its other parts still count.
    }
  }
  const change = fromQParams(given, known);
  const share = (name: string): number | undefined => {
    const value = parts.get(name);
    const number = value === null || value === "" ? NaN : Number(value);
    return number >= 0 && number <= 1 ? number : undefined;
  };
  const node = share("pruningThreshold"), edge = share("edgeThreshold");
  if (node !== undefined) change.nodeThreshold = node;
  if (edge !== undefined) change.edgeThreshold = edge;
  const features = Number(parts.get("pathFeatures") ?? 0);
  change.leftOut = {
    pathFeatures: Number.isInteger(features) && features > 0 ? Math.min(features, MOST_PATH_FEATURES) : 0,
    lastPosition: parts.get("beforeLast") === "1",
    maxFiringRate: share("maxFiringRate") ?? 1,
  };
  const view = parts.get("view");
  if (view === "story" || view === "graph") change.view = view;
  const target = parts.get("target");
  if (target !== null && (target === "" || target.split("..").every(known))) change.target = target;
  const beside = parts.get("beside") ?? "";
  change.beside = known(beside) ? beside : "";
  change.embed = parts.get("embed") === "1";
  change.filters = readFilters(parts.get("filters"));
  return change;
}

/** The filters in a link; what has the wrong shape is left out. */
function readFilters(text: string | null): Filters {
  let given: Record<string, unknown> = {};
  try {
    given = (JSON.parse(text ?? "{}") ?? {}) as Record<string, unknown>;
  } catch {
    // The link was cut off.
  }
  const kinds = (typeof given.kinds === "object" && given.kinds ? given.kinds : {}) as Record<string, unknown>;
  const bound = (value: unknown): number | null => (Number.isInteger(value) && (value as number) >= 0 ? (value as number) : null);
  const range = (value: unknown): [number | null, number | null] => (Array.isArray(value) ? [bound(value[0]), bound(value[1])] : [null, null]);
  const least = Number(given.leastShare);
  return {
    kinds: { feature: kinds.feature !== false, error: kinds.error !== false, token: kinds.token !== false },
    sign: given.sign === "plus" || given.sign === "minus" ? given.sign : "both",
    leastShare: least > 0 && least <= 1 ? least : 0,
    layers: range(given.layers),
    positions: range(given.positions),
    hideTemplate: given.hideTemplate === true,
  };
}
