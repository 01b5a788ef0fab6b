// The graph with its current pruning, and the names of nodes.

import type { Card, Graph, Kind, PageData, Story } from "./data";
import { decode } from "./data";
import { passing, type Passing } from "./filters";
import { influenceOf, prune, rowScale, type Influence, type Pruned } from "./prune";
import { NO_FILTERS, type Filters, type LeftOut } from "./state";
import { probability, short, visible } from "./text";

export interface Neighbour {
  node: number;
  weight: number;
  edge: number;
}

export class Model {
  readonly graph: Graph;
  /** On the targets that have weight now. */
  influence: Influence;
  pruned!: Pruned;
  /** Nodes that pruning keeps and the filters pass, ascending. */
  shown: number[] = [];
  /** Edges between them that the filters pass, the most important first. */
  edges: Uint32Array = new Uint32Array();
  private isThere: Uint8Array = new Uint8Array();
  private byId = new Map<string, number>();
  /** Shown edges by node, made when first asked for: those of node i are `list[starts[i]]` to `list[starts[i + 1]]`. */
  private into: Rows | null = null;
  private outOf: Rows | null = null;
  private lists = new Map<number, Neighbour[]>();
  private filters: Filters = NO_FILTERS;
  private target = -1;
  private scale: Float64Array;
  private bearers: Map<string, number> | null = null;
  private haystacks = new Map<number, string>();
  private notTokens: Set<number>;

  constructor(readonly data: PageData) {
    this.graph = decode(data);
    this.influence = influenceOf(this.graph);
    data.nodes.id.forEach((id, i) => this.byId.set(id, i));
    this.notTokens = new Set(data.notTokens);
    this.scale = rowScale(this.graph);
  }

  /** Gives weight to part of an answer alone: a target as the state names it. Of a large graph, only what is on the page counts then. */
  weigh(target: string): void {
    const { graph, data } = this;
    if (!data.answer.length) return;
    const chosen = new Set(this.answerPart(target));
    for (let i = 0; i < graph.n; i++) if (graph.kind[i] === "logit") graph.probability[i] = chosen.size ? Number(chosen.has(i)) : data.nodes.probability[i];
    this.influence = influenceOf(chosen.size ? { ...graph, influence: null } : graph);
  }

  /** The answer's tokens that a target names: one id, or `first..last`; none for all of it. */
  answerPart(target: string): number[] {
    const { answer } = this.data;
    const [first, last] = [target.split("..")[0], target.split("..").at(-1)!].map((id) => answer.indexOf(id));
    return first < 0 || last < 0 ? [] : answer.slice(Math.min(first, last), Math.max(first, last) + 1).map((id) => this.node(id));
  }

  prune(nodeThreshold: number, edgeThreshold: number): void {
    this.pruned = prune(this.graph, this.influence, nodeThreshold, edgeThreshold);
    this.pass();
  }

  /** Shows what the filters pass of what pruning keeps; `target` -1 for all targets. */
  filter(filters: Filters, target: number): void {
    this.filters = filters;
    this.target = target;
    this.pass();
  }

  private pass(): void {
    const { nodes, edges }: Passing = passing(this.graph, this.pruned, this.data, this.scale, this.filters, this.target);
    this.isThere = nodes;
    this.edges = edges;
    this.shown = [];
    for (let i = 0; i < nodes.length; i++) if (nodes[i]) this.shown.push(i);
    this.into = this.outOf = null;
    this.lists.clear();
  }

  /** How many nodes pruning keeps. */
  get keptNodes(): number {
    let count = 0;
    for (let i = 0; i < this.pruned.nodes.length; i++) count += this.pruned.nodes[i];
    return count;
  }

  /** The share of its target's whole absolute input that an edge makes. */
  share(edge: number): number {
    return Math.abs(this.graph.weights[edge]) * this.scale[this.graph.targets[edge]];
  }

  /** What feeds a node, strongest first. */
  feeders(node: number): Neighbour[] {
    this.into ??= rowsBy(this.graph.targets, this.edges, this.graph.n);
    return this.neighbours(node, this.into, this.graph.sources, 0);
  }

  /** What a node feeds, strongest first. */
  fed(node: number): Neighbour[] {
    this.outOf ??= rowsBy(this.graph.sources, this.edges, this.graph.n);
    return this.neighbours(node, this.outOf, this.graph.targets, 1);
  }

  /** Made on first use: most nodes are never looked at. */
  private neighbours(node: number, { starts, list }: Rows, ends: Uint32Array, way: number): Neighbour[] {
    const key = 2 * node + way;
    let found = this.lists.get(key);
    if (!found) {
      found = [];
      const { weights } = this.graph;
      for (let k = starts[node]; k < starts[node + 1]; k++) found.push({ node: ends[list[k]], weight: weights[list[k]], edge: list[k] });
      found.sort((a, b) => Math.abs(b.weight) - Math.abs(a.weight));
      this.lists.set(key, found);
    }
    return found;
  }

  /** What feeds a group, or what it feeds: the sums of its members' edges to nodes outside it, strongest first. */
  edgesOfGroup(members: number[], incoming: boolean): Neighbour[] {
    const inside = new Set(members);
    const sums = new Map<number, number>();
    for (const member of members)
      for (const { node, weight } of incoming ? this.feeders(member) : this.fed(member))
        if (!inside.has(node)) sums.set(node, (sums.get(node) ?? 0) + weight);
    return [...sums].map(([node, weight]) => ({ node, weight, edge: -1 })).sort((a, b) => Math.abs(b.weight) - Math.abs(a.weight));
  }

  /** The story of a target; of the weightiest for -1. Null where the page has none. */
  story(target: number): Story | null {
    const { stories } = this.data;
    return stories.find((story) => story.target === (target < 0 ? "" : this.id(target))) ?? stories[0] ?? null;
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
    return this.isThere[node] === 1;
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

  /** The prompt without the token that begins every prompt. */
  get prompt(): string {
    return this.data.prompt.replace(/^<bos>/, "").trim() || this.data.tokens.join("");
  }

  /** Whether other features have the same label: then the number stands beside it. */
  isAmbiguous(node: number): boolean {
    if (!this.bearers) {
      this.bearers = new Map();
      const keys = new Set<string>();
      for (let i = 0; i < this.graph.n; i++) {
        if (this.kind(i) !== "feature" || keys.has(this.featureKey(i))) continue;
        keys.add(this.featureKey(i));
        this.bearers.set(this.label(i), (this.bearers.get(this.label(i)) ?? 0) + 1);
      }
    }
    return (this.bearers.get(this.label(node)) ?? 0) > 1;
  }

  /** What to show for the token at a position. */
  token(position: number): string {
    return this.data.names[position] ?? "";
  }

  /** The node's name where there is little room. */
  name(node: number, limit = 40): string {
    switch (this.kind(node)) {
      case "feature":
        return this.label(node) ? short(this.label(node), limit) : this.number(node);
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
      case "feature":
        return this.label(node) ? `${this.number(node)} · ${token}` : token;
      default:
        return token;
    }
  }

  /** `L3/417`. */
  number(node: number): string {
    return `L${this.featureKey(node)}`;
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

  /** All targets, the weightiest first. */
  get targets(): number[] {
    const found: number[] = [];
    for (let i = 0; i < this.graph.n; i++) if (this.kind(i) === "logit") found.push(i);
    return found.sort((a, b) => this.probability(b) - this.probability(a));
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

  /** Everything by which a node is found: its name, token and number, and of its card promoted tokens and contexts. */
  private haystack(node: number): string {
    let found = this.haystacks.get(node);
    if (found === undefined) {
      const token = this.kind(node) === "logit" ? "" : this.token(this.position(node));
      const feature = this.kind(node) === "feature" ? `l${this.featureKey(node)}` : "";
      const parts = [this.label(node), token, ...cardTexts(this.card(node))].map(visible);
      found = `${parts.join("\n")}\n${feature}\n${this.id(node)}\n${this.kind(node)}`.toLowerCase();
      this.haystacks.set(node, found);
    }
    return found;
  }

  /** Where in a feature's card a search finds it; "" for its name or token. */
  foundIn(node: number, query: string): string {
    const wanted = query.trim().toLowerCase();
    const has = (text: string): boolean => visible(text).toLowerCase().includes(wanted);
    if (this.kind(node) !== "feature" || has(this.label(node)) || has(this.token(this.position(node)))) return "";
    const card = this.card(node);
    if (tokensOf(card.promoted).some(has)) return "promotes it";
    if (tokensOf(card.suppressed).some(has)) return "suppresses it";
    return contextsOf(card).some(has) ? "in a context" : "";
  }
}

interface Rows {
  starts: Uint32Array;
  list: Uint32Array;
}

/** Edges in the order given, gathered by one of their ends. */
function rowsBy(ends: Uint32Array, edges: Uint32Array, n: number): Rows {
  const starts = new Uint32Array(n + 1), list = new Uint32Array(edges.length);
  for (let k = 0; k < edges.length; k++) starts[ends[edges[k]] + 1]++;
  for (let i = 0; i < n; i++) starts[i + 1] += starts[i];
  const next = starts.slice();
  for (let k = 0; k < edges.length; k++) list[next[ends[edges[k]]]++] = edges[k];
  return { starts, list };
}

const tokensOf = (list: Card["promoted"]): string[] => (Array.isArray(list) ? list.map((entry) => String(typeof entry === "string" ? entry : entry[0])) : []);
const contextsOf = (card: Card): string[] => (Array.isArray(card.contexts) ? card.contexts.map((context) => (Array.isArray(context?.tokens) ? context.tokens.join("") : "")) : []);
const cardTexts = (card: Card): string[] => [...tokensOf(card.promoted), ...tokensOf(card.suppressed), ...contextsOf(card)];
