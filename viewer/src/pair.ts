// Two graphs side by side: which nodes correspond, and what is selected in both.

import type { PageData } from "./data";
import { GraphView } from "./graph_view";
import { Model } from "./model";
import type { Look } from "./shapes";
import { initialState, Store } from "./state";
import { short } from "./text";

export interface ComparisonData {
  format: "crosstrace-comparison-page";
  version: number;
  names: [string, string];
  graphs: [PageData, PageData];
  /** For each node of either page its number in the other, or one of `ABSENT`, `ELSEWHERE`, `UNTRACED`. */
  counterparts: [number[], number[]];
  /** For features that are absent at their place in the other graph: the positions there at which they fire all the same. */
  unaligned: [Record<string, number[]>, Record<string, number[]>];
}

/** JSON holds cumulative influence: what is told from it differs by less from what it was made of. */
const ROUNDING = 1e-12;

/** What a node is to the other graph: a node there too, active there but not traced, or not there. */
export type Kind = "shared" | "untraced" | "only";

/** Not in the other graph at all. */
export const ABSENT = -1;
/** In the other graph, but not among the nodes that its page holds. */
const ELSEWHERE = -2;
/** Active there, but not among the features that were traced. */
const UNTRACED = -3;

/** A node of one graph. */
export interface Place {
  side: number;
  node: number;
}

/** A node's number in either graph; -1 where a side does not have it. */
export type Both = [number, number];

export class Side {
  readonly model: Model;
  readonly store: Store;
  view!: GraphView;

  constructor(readonly number: number, readonly name: string, data: PageData, readonly counterparts: number[], readonly unaligned: Record<string, number[]>, nodeThreshold: number, edgeThreshold: number) {
    this.model = new Model(data);
    this.store = new Store(initialState(nodeThreshold, edgeThreshold));
    this.model.prune(nodeThreshold, edgeThreshold);
  }

  /** Its share of the influence of all nodes. */
  influence(node: number): number {
    const { values, total } = this.model.influence;
    return node >= 0 && total > 0 ? values[node] / total : 0;
  }

  isShown(node: number): boolean {
    return node >= 0 && this.model.isShown(node);
  }
}

export class Pair {
  readonly sides: [Side, Side];

  constructor(data: ComparisonData, nodeThreshold: number, edgeThreshold: number) {
    if (data.format !== "crosstrace-comparison-page" || data.version !== 1) throw new Error("the page's data is of another version");
    // A card stands once, with the first graph that has it.
    const cards = { ...data.graphs[1].cards, ...data.graphs[0].cards };
    for (const graph of data.graphs) graph.cards = cards;
    const side = (i: number): Side => new Side(i, data.names[i], data.graphs[i], data.counterparts[i], data.unaligned[i], nodeThreshold, edgeThreshold);
    this.sides = [side(0), side(1)];
  }

  other(side: number): Side {
    return this.sides[1 - side];
  }

  both({ side, node }: Place): Both {
    const partner = Math.max(this.sides[side].counterparts[node], -1);
    return side === 0 ? [node, partner] : [partner, node];
  }

  /** Whether the other graph has it too, shown or not, traced or not. */
  isShared({ side, node }: Place): boolean {
    return this.sides[side].counterparts[node] !== ABSENT;
  }

  kindOf({ side, node }: Place): Kind {
    const partner = this.sides[side].counterparts[node];
    return partner === ABSENT ? "only" : partner === UNTRACED ? "untraced" : "shared";
  }

  /** What is only in one graph is drawn as a tag that points to its side, in that side's colour. */
  look({ side, node }: Place): Look {
    const kind = this.sides[side].model.kind(node);
    if (!this.isShared({ side, node })) return side === 0 ? { shape: "left", tone: "only-a" } : { shape: "right", tone: "only-b" };
    return { shape: kind, tone: kind === "feature" ? "shared" : kind };
  }

  /** Says why the other graph does not show a node; "" where it does. */
  elsewhere({ side, node }: Place): string {
    const other = this.other(side), partner = this.sides[side].counterparts[node];
    const { model } = this.sides[side];
    switch (partner) {
      case ABSENT:
        return model.kind(node) === "feature" ? this.notThere(side, node) : `Not in ${other.name}.`;
      case ELSEWHERE:
        return `In ${other.name} it has too little influence to be on this page.`;
      case UNTRACED:
        return `Active in ${other.name}, but not among the features that were traced there.`;
      default:
        return other.isShown(partner) ? "" : `In ${other.name} it is below the thresholds.`;
    }
  }

  private notThere(side: number, node: number): string {
    const other = this.other(side), fires = this.sides[side].unaligned[node] ?? [];
    if (!fires.length) return `Not active in ${other.name}.`;
    const places = fires.slice(0, 5).map((position) => `${short(other.model.token(position), 14)} (${position})`);
    return `Not active at this place in ${other.name}; it is at ${places.join(", ")}${fires.length > 5 ? " …" : ""}.`;
  }

  /** Everything of a kind that at least one side shows, each once. */
  shown(kind: string): Both[] {
    const found: Both[] = [];
    for (const { number: side, model } of this.sides)
      for (const node of model.shown) {
        if (model.kind(node) !== kind) continue;
        const both = this.both({ side, node });
        if (side === 0 || !this.sides[0].isShown(both[0])) found.push(both);
      }
    return found;
  }

  /** The rows that either side shows. */
  rows(): number[] {
    const rows = this.sides.flatMap(({ model }) => model.shown.filter((node) => model.kind(node) !== "token").map((node) => (model.kind(node) === "logit" ? model.data.layers : model.layer(node))));
    return [...new Set(rows)];
  }

  /** B minus A, of the share of all nodes' influence; a missing node has none; NaN where it is active but was not traced. */
  change(both: Both): number {
    if (this.isUntraced(both)) return NaN;
    const change = this.sides[1].influence(both[1]) - this.sides[0].influence(both[0]);
    return Math.abs(change) > ROUNDING ? change : 0;
  }

  isUntraced([a, b]: Both): boolean {
    return (b < 0 && this.sides[0].counterparts[a] === UNTRACED) || (a < 0 && this.sides[1].counterparts[b] === UNTRACED);
  }

  /** What lists are sorted by: the change, or the influence where the change is not known. */
  size(both: Both): number {
    return Math.abs(this.isUntraced(both) ? this.sides[0].influence(both[0]) + this.sides[1].influence(both[1]) : this.change(both));
  }

  /** The side whose numbers are shown, A first. */
  placeOf([a, b]: Both): Place {
    const [first, second] = this.sides;
    return first.isShown(a) || (a >= 0 && !second.isShown(b)) ? { side: 0, node: a } : { side: 1, node: b };
  }
}
