// What of the pruned graph is shown: the filters, applied here, and the row of controls that sets them.

import type { Graph, PageData } from "./data";
import { byId, h, on } from "./dom";
import type { Model } from "./model";
import type { Pruned } from "./prune";
import { NO_FILTERS, type Filters, type Store } from "./state";
import { short, whole } from "./text";

export interface Passing {
  /** (n,) 1 for what is shown. */
  nodes: Uint8Array;
  /** Shown edges, in the order of pruning. */
  edges: Uint32Array;
}

/** What the filters pass. With a target, only what leads to it over edges that are shown; the prompt's tokens stay. */
export function passing(graph: Graph, pruned: Pruned, data: PageData, scale: Float64Array, filters: Filters, target: number): Passing {
  const { kind, sources, targets, weights, n } = graph;
  const { layer, position } = data.nodes;
  const template = filters.hideTemplate ? templateOf(data) : null;
  const within = (value: number, [low, high]: [number | null, number | null]): boolean => (low === null || value >= low) && (high === null || value <= high);
  const nodes = new Uint8Array(n);
  for (let i = 0; i < n; i++) {
    if (!pruned.nodes[i]) continue;
    const own = kind[i];
    if (own === "logit") nodes[i] = (target < 0 ? !data.answer.length || graph.probability[i] > 0 : i === target) ? 1 : 0;
    else if (own === "token") nodes[i] = filters.kinds.token && within(position[i], filters.positions) ? 1 : 0;
    else nodes[i] = filters.kinds[own] && within(layer[i], filters.layers) && within(position[i], filters.positions) && !template?.has(position[i]) ? 1 : 0;
  }
  const some = filters.sign !== "both" || filters.leastShare > 0;
  let edges: Uint32Array = new Uint32Array(pruned.edges.length), count = 0;
  for (let k = 0; k < pruned.edges.length; k++) {
    const e = pruned.edges[k];
    if (!nodes[sources[e]] || !nodes[targets[e]]) continue;
    if (some && ((filters.sign !== "both" && weights[e] > 0 !== (filters.sign === "plus")) || Math.abs(weights[e]) * scale[targets[e]] < filters.leastShare)) continue;
    edges[count++] = e;
  }
  edges = edges.subarray(0, count);
  if (target >= 0 || JSON.stringify(filters) !== JSON.stringify(NO_FILTERS)) edges = leading(graph, nodes, edges, target);
  return { nodes, edges };
}

/** Drops features and errors from which no path leads to a target. */
function leading(graph: Graph, nodes: Uint8Array, edges: Uint32Array, target: number): Uint32Array {
  const { kind, sources, targets, n } = graph;
  const leads = new Uint8Array(n);
  for (let i = 0; i < n; i++) leads[i] = nodes[i] && kind[i] === "logit" && (target < 0 || i === target) ? 1 : 0;
  const counts = new Uint32Array(n + 1);
  for (const e of edges) counts[targets[e] + 1]++;
  for (let i = 0; i < n; i++) counts[i + 1] += counts[i];
  const order = new Uint32Array(edges.length), next = counts.slice();
  for (const e of edges) order[next[targets[e]]++] = e;
  // Sources stand before their targets, targets of the graph last: one sweep down is enough.
  for (let i = n - 1; i >= 0; i--) if (leads[i]) for (let k = counts[i]; k < counts[i + 1]; k++) leads[sources[order[k]]] = 1;
  for (let i = 0; i < n; i++) if (nodes[i] && !leads[i] && kind[i] !== "token") nodes[i] = 0;
  return edges.filter((e) => leads[targets[e]] && nodes[sources[e]]);
}

/** Positions of a chat template's tokens: as the graph knows them, or as they look. */
const templateOf = (data: PageData): Set<number> => (data.template ? new Set(data.template) : templatePositions(data.tokens));

/** Positions of `<bos>`, `<start_of_turn>` and the like, of the role that follows, and of the line breaks around them. */
export function templatePositions(tokens: string[]): Set<number> {
  const found = new Set<number>();
  tokens.forEach((token, p) => {
    if (!/^<[^<>\s]+>$/.test(token.trim())) return;
    found.add(p);
    if (/start_of_turn|im_start/.test(token)) for (let q = p + 1; q < Math.min(p + 4, tokens.length); q++) {
      found.add(q);
      if (/\n/.test(tokens[q])) break;
    }
    if (/end_of_turn|im_end/.test(token) && /^\n+$/.test(tokens[p + 1] ?? "")) found.add(p + 1);
  });
  return found;
}

export class FilterBar {
  private bar = byId("filters");
  private toggleButton = byId<HTMLButtonElement>("open-filters");

  constructor(private model: Model, private store: Store) {
    this.toggleButton.addEventListener("click", () => this.toggle());
    this.build();
    this.update();
    if (this.active) this.toggle(true);
  }

  toggle(open = this.bar.hidden): void {
    this.bar.hidden = !open;
    this.toggleButton.setAttribute("aria-expanded", String(open));
  }

  private set(change: Partial<Filters>): void {
    this.store.set({ filters: { ...this.store.state.filters, ...change } });
  }

  private get active(): number {
    const { kinds, sign, leastShare, layers, positions, hideTemplate } = this.store.state.filters;
    return [!kinds.feature || !kinds.error || !kinds.token, sign !== "both", leastShare > 0, layers.some((x) => x !== null), positions.some((x) => x !== null), hideTemplate]
      .filter(Boolean).length;
  }

  private build(): void {
    const { model, store } = this, { data } = model;
    const stop = (event: KeyboardEvent): void => event.stopPropagation();
    const check = (id: string, text: string, read: (f: Filters) => boolean, write: (on: boolean) => void, title = ""): HTMLElement => {
      const box = h("input", { type: "checkbox", id });
      on(box, { change: () => write(box.checked) });
      this.readers.push((f) => (box.checked = read(f)));
      return h("label", { title: title || null }, box, text);
    };
    const number = (id: string, label: string, most: number, read: (f: Filters) => number | null, write: (value: number | null) => void, step = "1"): HTMLElement => {
      const input = h("input", { type: "number", id, min: 0, max: most, step, "aria-label": label });
      on(input, {
        input: () => write(input.value === "" ? null : Math.min(Math.max(Number(input.value) || 0, 0), most)),
        keydown: stop,
      });
      this.readers.push((f) => {
        const value = read(f);
        if (document.activeElement !== input) input.value = value === null ? "" : String(value);
      });
      return input;
    };
    const select = (id: string, label: string, options: [string, string][], read: () => string, write: (value: string) => void): HTMLElement => {
      const box = h("select", { id, "aria-label": label }, ...options.map(([value, text]) => h("option", { value }, text)));
      on(box, { change: () => write(box.value), keydown: stop });
      this.readers.push(() => (box.value = read()));
      return h("label", {}, label.toLowerCase(), box);
    };
    const kinds = (["feature", "error", "token"] as const).map((kind) =>
      check(`filter-${kind}`, `${kind}s`, (f) => f.kinds[kind], (value) => this.set({ kinds: { ...store.state.filters.kinds, [kind]: value } })));
    const targets = model.targets.map((node): [string, string] => [model.id(node), short(data.nodes.label[node], 24)]);
    const bounds = (name: "layers" | "positions", most: number): HTMLElement =>
      h("span", { class: "range" }, name,
        number(`filter-${name}-from`, `First of the ${name}`, most, (f) => f[name][0], (value) => this.set({ [name]: [value, store.state.filters[name][1]] })), "to",
        number(`filter-${name}-to`, `Last of the ${name}`, most, (f) => f[name][1], (value) => this.set({ [name]: [store.state.filters[name][0], value] })));
    this.bar.append(
      h("span", { class: "range" }, "show", ...kinds),
      select("filter-target", "Target", [...targets, ["", "all targets"]], () => store.state.target, (target) => store.set({ target })),
      select("filter-sign", "Edges", [["both", "all"], ["plus", "that raise"], ["minus", "that lower"]], () => store.state.filters.sign, (value) => this.set({ sign: value as Filters["sign"] })),
      h("span", { class: "range", title: "Edges that make a smaller part of what their target receives are hidden" }, "of at least",
        number("filter-share", "Least share of the target's input in per cent", 100, (f) => (f.leastShare ? Number((100 * f.leastShare).toPrecision(6)) : null), (value) => this.set({ leastShare: (value ?? 0) / 100 }), "any"), "% of the input"),
      bounds("layers", data.layers - 1),
      bounds("positions", data.tokens.length - 1),
      ...(templateOf(data).size ? [check("filter-template", "hide template tokens", (f) => f.hideTemplate, (hideTemplate) => this.set({ hideTemplate }), "Hide features and errors at <bos>, <start_of_turn> and the like")] : []),
      h("span", { id: "filtered", role: "status" }),
      on(h("button", { type: "button", id: "clear-filters", class: "quiet" }, "Clear"), { click: () => store.set({ filters: NO_FILTERS }) }),
    );
  }

  private readers: ((filters: Filters) => void)[] = [];

  update(): void {
    for (const read of this.readers) read(this.store.state.filters);
    const { model, active } = this;
    const hidden = model.keptNodes - model.shown.length;
    byId("filtered").textContent = hidden > 0 ? `${whole(hidden)} nodes hidden` : "";
    this.toggleButton.textContent = active ? `Filters · ${active}` : "Filters";
  }
}
