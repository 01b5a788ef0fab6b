// Attention on the page: click an edge to see its heads by layer, a head to see where it looks and why; colour edges by
// the head that carries most of them. All of it lies in this module; pages without attention are not touched.

import { button, byId, h, on } from "./dom";
import type { GraphView } from "./graph_view";
import type { Model } from "./model";
import type { Store } from "./state";
import { percent, probability, short, signed, visible } from "./text";

type Term = [string, number];

export interface HeadData {
  layer: number;
  head: number;
  query: number;
  key: number;
  carried: number;
  net: number;
  score: number;
  pattern: number[][];
  pairs: [string, string, number][];
  queries: Term[];
  keys: Term[];
}

export interface AttentionData {
  edges: [string, string, [number, number, number][]][];
  heads: HeadData[];
}

/** Told apart by colour blind readers too (Okabe and Ito); what remains is grey. */
const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8f7500"];
const OTHER = "#8a8a8a";
/** An edge has the colour of a head that carries at least this share of it. */
const CARRIES = 0.25;
/** How near to an edge a click has to be, in pixels, and at how many points of it that is measured. */
const REACH = 6, STEPS = 48;

export class Attention {
  private panel = byId("panel");
  private loadings = new Map<number, [number, number, number][]>();
  private colours = new Map<string, string>();
  private coloured = false;

  constructor(private model: Model, private store: Store, private view: GraphView, private data: AttentionData) {
    const { starts, sources } = model.graph;
    const count = new Map<string, number>();
    for (const [source, target, heads] of data.edges) {
      const from = model.node(source), to = model.node(target);
      if (from < 0 || to < 0) continue;
      for (let edge = starts[to]; edge < starts[to + 1]; edge++) if (sources[edge] === from) this.loadings.set(edge, heads);
      if (heads.length) count.set(name(heads[0]), (count.get(name(heads[0])) ?? 0) + 1);
    }
    const common = [...count].sort((a, b) => b[1] - a[1]).slice(0, COLOURS.length);
    common.forEach(([head], i) => this.colours.set(head, COLOURS[i]));
    this.controls();
    view.element.addEventListener("click", (event) => {
      const place = view.element.getBoundingClientRect();
      const x = event.clientX - place.left, y = event.clientY - place.top;
      // After the page's own listener, which shows the overview where no node was hit.
      if (view.painter.layout && view.painter.hit(x, y) < 0) {
        const edge = this.edgeAt(x, y);
        if (edge >= 0) this.showEdge(edge);
      }
    });
  }

  private controls(): void {
    const check = h("input", { type: "checkbox", id: "colour-by-head" });
    on(check, {
      change: () => {
        this.coloured = check.checked;
        this.view.painter.edgeColour = this.coloured ? (edge) => this.colourOf(edge) : null;
        if (this.coloured) this.store.set({ view: "graph" });
        this.view.redraw();
        if (this.coloured) this.showHeads();
      },
    });
    byId("toolbar").append(
      h("span", { class: "attention-controls" },
        button("Heads", "Attention heads worth asking about", () => this.showHeads()),
        h("label", { title: "Colour edges by the attention head that carries most of them" }, check, "colour by head")),
    );
  }

  private colourOf(edge: number): string | null {
    const heads = this.loadings.get(edge);
    if (!heads) return null;
    const carries = heads.length > 0 && Math.abs(heads[0][2]) >= CARRIES * Math.abs(this.model.graph.weights[edge]);
    return carries ? (this.colours.get(name(heads[0])) ?? OTHER) : OTHER;
  }

  /** The drawn edge nearest to a point, within a few pixels; -1 for none. */
  private edgeAt(x: number, y: number): number {
    const { painter } = this.view;
    let best = -1, nearest = REACH;
    for (const edge of this.model.pruned.edges) {
      const points = painter.curve(edge);
      if (y > points[0][1] + REACH || y < points[3][1] - REACH) continue;
      for (let i = 0; i <= STEPS; i++) {
        const t = i / STEPS, s = 1 - t;
        const shares = [s ** 3, 3 * s * s * t, 3 * s * t * t, t ** 3];
        const on = (axis: 0 | 1): number => shares.reduce((sum, share, k) => sum + share * points[k][axis], 0);
        const distance = Math.hypot(on(0) - x, on(1) - y);
        if (distance < nearest) [best, nearest] = [edge, distance];
      }
    }
    return best;
  }

  private show(title: string, where: string, ...parts: (HTMLElement | null)[]): void {
    this.panel.replaceChildren(
      h("div", { class: "head" }, h("div", { class: "title" }, h("h2", { dir: "auto" }, title)),
        h("div", { class: "actions" }, button("✕", "Close", () => this.store.set({ clicked: "" }), "quiet"))),
      h("p", { class: "where", dir: "auto" }, where),
      h("div", { class: "scroll attention" }, ...parts),
    );
  }

  /** The heads worth asking about. */
  showHeads(): void {
    const rows = this.data.heads.map((head) =>
      this.row(name([head.layer, head.head]), `${this.token(head.key)} → ${this.token(head.query)}`, percent(head.carried), () => this.showHead(head), this.colours.get(name([head.layer, head.head]))));
    this.show("Attention heads", "share of the graph's influence that each carries", ...rows);
  }

  showEdge(edge: number): void {
    const { sources, targets, weights } = this.model.graph, { model } = this;
    const title = `${model.name(sources[edge], 40)} → ${model.name(targets[edge], 40)}`;
    this.view.showPath([edge]);
    const heads = this.loadings.get(edge);
    if (!heads) {
      this.show(title, `weight ${signed(weights[edge])}`, h("p", { class: "note" }, "No head loadings are known of this edge: pruning did not keep it when they were computed."));
      return;
    }
    const byLayer = new Map<number, [number, number, number][]>();
    for (const head of heads) byLayer.set(head[0], [...(byLayer.get(head[0]) ?? []), head]);
    const most = Math.max(...heads.map((head) => Math.abs(head[2])), Math.abs(weights[edge]));
    const parts: HTMLElement[] = [];
    for (const [layer, list] of [...byLayer].sort((a, b) => b[0] - a[0])) {
      const bypass = list.reduce((left, head) => left - head[2], weights[edge]);
      parts.push(h("h3", { class: "list-title" }, `Layer ${layer}`));
      for (const head of list) parts.push(this.bar(name(head), head[2], most, this.headData(head), this.colours.get(name(head))));
      parts.push(this.bar("bypass", bypass, most, null));
    }
    if (!heads.length) parts.push(h("p", { class: "note" }, "No attention lies between them: the edge stays at its position."));
    this.show(title, `weight ${signed(weights[edge])}; in each layer the heads and what bypasses them add up to it`, ...parts);
  }

  showHead(head: HeadData): void {
    const list = (title: string, rows: HTMLElement[]): HTMLElement[] => (rows.length ? [h("h3", { class: "list-title" }, title), ...rows] : []);
    const most = Math.max(1e-9, ...head.pairs.map((pair) => Math.abs(pair[2])));
    const side = (terms: Term[]): HTMLElement[] => terms.map(([node, term]) => this.bar(node, term, Math.max(1e-9, ...terms.map((one) => Math.abs(one[1]))), null));
    this.show(
      `Head ${name([head.layer, head.head])}`,
      `carries ${percent(head.carried)} of the influence, mostly from ${this.token(head.key)} to ${this.token(head.query)}`,
      this.pattern(head),
      ...list(`Why it looks there: score ${signed(head.score)}, strongest pairs`, head.pairs.map(([query, key, term]) => this.bar(`${query} · ${key}`, term, most, null))),
      ...list("On the side of the query", side(head.queries)),
      ...list("On the side of the key", side(head.keys)),
    );
  }

  /** Queries down, keys across. */
  private pattern(head: HeadData): HTMLElement {
    const rows = head.pattern.map((row, query) =>
      h("tr", {}, h("th", { scope: "row", dir: "auto" }, this.token(query)), ...row.map((value, key) => {
        const cell = h("td", { title: `${this.token(query)} looks at ${this.token(key)}: ${probability(value)}`, class: query === head.query && key === head.key ? "asked" : null });
        cell.style.opacity = String(Math.max(0.04, value));
        return cell;
      })));
    const heads = h("tr", {}, h("td", { class: "corner-cell" }), ...head.pattern.map((_, key) => h("th", { scope: "col", dir: "auto" }, h("span", {}, this.token(key)))));
    return h("div", { class: "pattern", tabindex: 0, role: "group", "aria-label": "Attention pattern: queries down, keys across" }, h("table", {}, h("thead", {}, heads), h("tbody", {}, ...rows)));
  }

  private headData(head: [number, number, number]): HeadData | null {
    return this.data.heads.find((one) => one.layer === head[0] && one.head === head[1]) ?? null;
  }

  private token(position: number): string {
    return short(this.model.data.names[position] ?? this.model.token(position), 14);
  }

  private bar(text: string, value: number, most: number, head: HeadData | null, colour?: string): HTMLElement {
    const bar = h("span", { class: `bar ${value > 0 ? "plus" : "minus"}`, "aria-hidden": "true" });
    bar.style.width = `${(100 * Math.abs(value)) / most}%`;
    return this.row(text, "", signed(value), head ? () => this.showHead(head) : null, colour, bar);
  }

  private row(text: string, place: string, number: string, act: (() => void) | null, colour?: string, bar?: HTMLElement): HTMLElement {
    const dot = colour ? h("span", { class: "dot", "aria-hidden": "true" }) : null;
    if (dot) dot.style.background = colour!;
    const parts = [bar, dot, h("span", { class: "name", dir: "auto", title: visible(text) }, visible(text)), place ? h("span", { class: "place", dir: "auto" }, place) : null, h("span", { class: "number" }, number)];
    if (!act) return h("div", { class: "neighbour still" }, ...parts);
    return on(h("button", { type: "button", class: "neighbour" }, ...parts), { click: act });
  }
}

function name(head: readonly number[]): string {
  return `L${head[0]}.H${head[1]}`;
}
