// What the page holds, as graphs/page/contents.py declares it, and the graph decoded from it.
// Letters: n nodes, E edges.

import type { AttentionData } from "./attention";

export type Kind = "feature" | "error" | "token" | "logit";

export interface Card {
  label?: string;
  promoted?: (string | [string, number])[];
  suppressed?: (string | [string, number])[];
  contexts?: { tokens: string[]; activations: number[] }[];
  histogram?: { counts: number[]; edges?: number[] };
  firing_rate?: number;
  /** Latents of SAEs that it writes to: their names, and what a unit of its activation adds to their pre-activations. */
  latents?: [string, number][];
  /** Global weights, strongest first: features that write to it, and features that it writes to. */
  inputs?: FeatureLink[];
  outputs?: FeatureLink[];
}

/** A virtual weight, as graphs/cards/weights.py writes it. */
export interface FeatureLink {
  feature: string;
  label?: string;
  weight: number;
  /** Layer and head on the way; none for the residual stream. */
  head?: string;
  /** The expectation over a corpus, where a sample is known. */
  expected?: number;
  /** Never active together, although both are often. */
  interference?: boolean;
}

export interface QParams {
  pinnedIds?: string[];
  supernodes?: string[][];
  clickedId?: string;
  /** Where nodes of the subgraph were dragged to; see `State.positions`. */
  positions?: Record<string, [number, number]>;
}

/** A node of a story: a group, a feature, a token, the target, or quietly the remainder of a cell, the errors of a position. */
export interface StoryNode {
  kind: "token" | "feature" | "group" | "rest" | "error" | "target";
  name: string;
  ids: string[];
  position: number;
  layers: [number, number];
  layer: number;
  influence: number;
}

/** Where one target comes from, as graphs/analysis/story.py tells it. */
export interface Story {
  target: string;
  nodes: StoryNode[];
  /** Source, target, weight, share of the target's input; weakest first. */
  edges: [number, number, number, number][];
  entering: number[];
  lost: number[];
  unexplained: number;
  /** Position of the source, of the reader, share, first and last layer of the readers; largest first. */
  moves: [number, number, number, number, number][];
  covered: number;
  leftOut: number;
  cutEdges: number;
}

export interface PageData {
  format: "crosstrace-page";
  version: number;
  slug: string;
  prompt: string;
  model: string;
  transcoders: string;
  /** Of the weights, which a saved state keeps; none if unknown. */
  fingerprints: Record<string, string>;
  tokens: string[];
  /** What to show for each token where it stands alone. */
  names: string[];
  layers: number;
  nodes: {
    id: string[];
    kind: string;
    layer: number[];
    position: number[];
    feature: number[];
    label: string[];
    activation: (number | null)[];
    /** Weight in influence. */
    probability: number[];
    chance: number[];
  };
  edges: { starts: string; sources: string; weights: string };
  omitted: string;
  influence: string | null;
  influenceTotal: number;
  whole: { nodes: number; edges: number; untraced: number };
  /** Of the whole graph; null where they are not known, and each where there is nothing to explain. */
  scores: { replacement: number | null; completeness: number | null } | null;
  /** Whether this is what pruning kept alone, so that shares in the stories are of that. */
  onlyKept: boolean;
  start: { node: number; edge: number; nodeLimit: number };
  /** Targets that are not a token (a contrast, a direction): their `probability` is only a weight. */
  notTokens: number[];
  /** Positions of a chat template's tokens; null where they are guessed from the tokens. */
  template: number[] | null;
  /** Whether the page begins without what stands there. */
  hideTemplate: boolean;
  /** Ids of the answer's tokens among the targets, in order. */
  answer: string[];
  notes: string[];
  fires: Record<string, [number, number][]>;
  cards: Record<string, Card>;
  suggested: string[][];
  /** One a target, the weightiest first; none where the page was made of JSON that no graph can express. */
  stories: Story[];
  /** Where the graph keeps it. */
  attention: AttentionData | null;
  qParams: QParams;
}

/** Row i of the graph: edges `starts[i]` to `starts[i + 1]`, each from `sources[e]` with `weights[e]`. */
export interface Graph {
  n: number;
  kind: Kind[];
  starts: Uint32Array;
  sources: Uint32Array;
  targets: Uint32Array;
  weights: Float32Array;
  /** Weight of each target in influence; 0 for other nodes. */
  probability: Float64Array;
  omitted: Float32Array;
  /** Influence in the whole graph, of which this may be a part; null to compute it from the edges. */
  influence: Float64Array | null;
  influenceTotal: number;
}

const KINDS: Record<string, Kind> = { f: "feature", e: "error", t: "token", l: "logit" };

export function decode(data: PageData): Graph {
  if (data.format !== "crosstrace-page" || data.version !== 1) throw new Error("the page's data is of another version");
  const n = data.nodes.id.length;
  const starts = new Uint32Array(bytes(data.edges.starts));
  const targets = new Uint32Array(starts[n] ?? 0);
  for (let row = 0; row < n; row++) targets.fill(row, starts[row], starts[row + 1]);
  const kind = Array.from(data.nodes.kind, (letter) => KINDS[letter]);
  return {
    n,
    kind,
    starts,
    targets,
    sources: new Uint32Array(bytes(data.edges.sources)),
    weights: new Float32Array(bytes(data.edges.weights)),
    probability: Float64Array.from(data.nodes.probability, (p, i) => (kind[i] === "logit" ? p : 0)),
    omitted: new Float32Array(bytes(data.omitted)),
    influence: data.influence === null ? null : new Float64Array(bytes(data.influence)),
    influenceTotal: data.influenceTotal,
  };
}

function bytes(text: string): ArrayBuffer {
  const binary = atob(text);
  const array = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) array[i] = binary.charCodeAt(i);
  return array.buffer;
}
