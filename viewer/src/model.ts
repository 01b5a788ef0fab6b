// The graph with its current pruning, and the names of nodes.

import type { Card, Graph, Kind, PageData } from "./data";
import { decode } from "./data";
import { influenceOf, prune, type Influence, type Pruned } from "./prune";
import type { LeftOut } from "./state";
import { probability, short, visible } from "./text";

export interface Neighbour {
  node: number;
  weight: number;
  edge: number;
}

export class Model {
  readonly graph: Graph;
  readonly influence: Influence;
  pruned!: Pruned;
  /** Nodes that pruning keeps, ascending. */
  shown: number[] = [];
  private byId = new Map<string, number>();
  private incoming: Neighbour[][] = [];
  private outgoing: Neighbour[][] = [];
  private sorted = new Set<Neighbour[]>();
  private notTokens: Set<number>;

  constructor(readonly data: PageData) {
    this.graph = decode(data);
    this.influence = influenceOf(this.graph);
    data.nodes.id.forEach((id, i) => this.byId.set(id, i));
    this.notTokens = new Set(data.notTokens);
  }

  prune(nodeThreshold: number, edgeThreshold: number): void {
    this.pruned = prune(this.graph, this.influence, nodeThreshold, edgeThreshold);
    const { sources, targets, weights, n } = this.graph;
    this.shown = [];
    for (let i = 0; i < n; i++) if (this.pruned.nodes[i]) this.shown.push(i);
    this.incoming = Array.from({ length: n }, () => []);
    this.outgoing = Array.from({ length: n }, () => []);
    for (const edge of this.pruned.edges) {
      const weight = weights[edge];
      this.incoming[targets[edge]].push({ node: sources[edge], weight, edge });
      this.outgoing[sources[edge]].push({ node: targets[edge], weight, edge });
    }
    this.sorted.clear();
  }

  /** What feeds a node, strongest first. */
  feeders(node: number): Neighbour[] {
    return this.strongestFirst(this.incoming[node]);
  }

  /** What a node feeds, strongest first. */
  fed(node: number): Neighbour[] {
    return this.strongestFirst(this.outgoing[node]);
  }

  /** What feeds a group, or what it feeds: the sums of its members' edges to nodes outside it, strongest first. */
  edgesOfGroup(members: number[], incoming: boolean): Neighbour[] {
    const inside = new Set(members);
    const sums = new Map<number, number>();
    for (const member of members)
      for (const { node, weight } of incoming ? this.incoming[member] : this.outgoing[member])
        if (!inside.has(node)) sums.set(node, (sums.get(node) ?? 0) + weight);
    return [...sums].map(([node, weight]) => ({ node, weight, edge: -1 })).sort((a, b) => Math.abs(b.weight) - Math.abs(a.weight));
  }

  /** Sorted on first use: most nodes are never looked at. */
  private strongestFirst(list: Neighbour[] | undefined): Neighbour[] {
    if (!list) return [];
    if (!this.sorted.has(list)) {
      this.sorted.add(list);
      list.sort((a, b) => Math.abs(b.weight) - Math.abs(a.weight));
    }
    return list;
  }

  /** The weight of an edge, kept by pruning or not; null where there is none. */
  weight(source: number, target: number): number | null {
    const { starts, sources, weights } = this.graph;
    for (let edge = starts[target]; edge < starts[target + 1]; edge++) if (sources[edge] === source) return weights[edge];
    return null;
  }

  id(node: number): string {
    return this.data.nodes.id[node];
  }

  node(id: string): number {
    return this.byId.get(id) ?? -1;
  }

  has(id: string): boolean {
    return this.byId.has(id);
  }

  isShown(node: number): boolean {
    return this.pruned.nodes[node] === 1;
  }

  kind(node: number): Kind {
    return this.graph.kind[node];
  }

  layer(node: number): number {
    return this.data.nodes.layer[node];
  }

  position(node: number): number {
    return this.data.nodes.position[node];
  }

  /** Weight of a target in influence; that of a token is its probability, unless it was named by hand. */
  probability(node: number): number {
    return this.data.nodes.probability[node];
  }

  /** Probability of a target that is a token; null for any other node. */
  chance(node: number): number | null {
    return this.kind(node) === "logit" && !this.notTokens.has(node) ? this.data.nodes.chance[node] : null;
  }

  /** The probability in words, "" where there is none. */
  chanceText(node: number): string {
    const chance = this.chance(node);
    return chance === null ? "" : probability(chance);
  }

  activation(node: number): number | null {
    return this.data.nodes.activation[node];
  }

  /** `layer/feature`, the key of cards and firing positions. */
  featureKey(node: number): string {
    return `${this.layer(node)}/${this.data.nodes.feature[node]}`;
  }

  card(node: number): Card {
    return (this.kind(node) === "feature" && this.data.cards[this.featureKey(node)]) || {};
  }

  /** Where in the prompt the node's feature is active: [position, activation]. */
  fires(node: number): [number, number][] {
    return this.kind(node) === "feature" ? (this.data.fires[this.featureKey(node)] ?? []) : [];
  }

  /** The feature's label, from the graph or its card; "" where unknown. */
  label(node: number): string {
    return (this.data.nodes.label[node] || this.card(node).label || "").trim();
  }

  /** What to show for the token at a position. */
  token(position: number): string {
    return this.data.names[position] ?? "";
  }

  /** The node's name where there is little room. */
  name(node: number, limit = 40): string {
    switch (this.kind(node)) {
      case "feature":
        return this.label(node) ? short(this.label(node), limit) : `L${this.featureKey(node)}`;
      case "error":
        return `error L${this.layer(node)}`;
      default:
        return short(this.data.nodes.label[node], limit);
    }
  }

  /** Where the node is: `L3 · Dallas`. */
  place(node: number): string {
    const token = short(this.token(this.position(node)), 18);
    switch (this.kind(node)) {
      case "token":
        return `token ${this.position(node)}`;
      case "logit":
        return this.layer(node) === this.data.layers && this.chance(node) !== null ? `output · ${this.chanceText(node)}` : `target · ${token}`;
      default:
        return `L${this.layer(node)} · ${token}`;
    }
  }

  /** One sentence for a screen reader. */
  spoken(node: number): string {
    return (
      `${this.name(node, 80)}, ${this.kind(node)}, ${this.place(node)}, ` +
      `fed by ${this.feeders(node).length}, feeds ${this.fed(node).length}`
    );
  }

  rowName(row: number): string {
    if (row < 0) return "tokens";
    return row >= this.data.layers ? "output" : `L${row}`;
  }

  /** The target with the most weight; -1 without any. */
  get topTarget(): number {
    let best = -1;
    for (let i = 0; i < this.graph.n; i++)
      if (this.kind(i) === "logit" && (best < 0 || this.probability(i) > this.probability(best))) best = i;
    return best;
  }

  /** Whether the lists leave a feature out. */
  isLeftOut(node: number, { lastPosition, maxFiringRate }: LeftOut): boolean {
    if (lastPosition && this.position(node) >= this.data.tokens.length - 1) return true;
    return (this.card(node).firing_rate ?? 0) > maxFiringRate;
  }

  /** What a search finds among the shown nodes: by label, token, promoted token or id; most influential first. */
  search(query: string): number[] {
    const wanted = query.trim().toLowerCase();
    if (!wanted) return [];
    const found = this.shown.filter((node) => this.haystack(node).includes(wanted));
    return found.sort((a, b) => this.influence.values[b] - this.influence.values[a] || a - b);
  }

  private haystack(node: number): string {
    const token = this.kind(node) === "logit" ? "" : this.token(this.position(node));
    const feature = this.kind(node) === "feature" ? `l${this.featureKey(node)}` : "";
    return `${visible(this.label(node))}\n${visible(token)}\n${feature}\n${this.id(node)}\n${this.kind(node)}`.toLowerCase();
  }
}
