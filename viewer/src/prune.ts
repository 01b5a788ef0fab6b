// Pruning and scores as graphs/analysis/pruning.py, influence.py and scores.py compute them, step by step;
// the tests compare the masks. Letters: n nodes, E edges.

import type { Graph } from "./data";

const ROUNDING = 1e-12;
/** The most edges ever drawn at once; sorting all of them would take longer than pruning. */
const FIRST_EDGES = 2000;

export interface Pruned {
  /** (n,) 1 for nodes that are kept. */
  nodes: Uint8Array;
  /** Kept edges, by number; the `FIRST_EDGES` most important come first, in order. */
  edges: Uint32Array;
  /** (E,) share of each edge in the score of all edges between kept nodes; 0 for edges that are not. */
  edgeShare: Float64Array;
  /** NaN where there is nothing to explain, as is the other. */
  replacement: number;
  completeness: number;
}

export interface Influence {
  /** (n,) Σ over paths to the targets. */
  values: Float64Array;
  total: number;
  /** (n,) cumulative share at which a node enters, most influential first (small = important). */
  entry: Float64Array;
}

/** Influence in the whole graph; does not depend on thresholds. */
export function influenceOf(graph: Graph): Influence {
  const values = graph.influence ?? spread(graph, rowScale(graph, null, null), null);
  const total = graph.influence ? graph.influenceTotal : sum(values);
  return { values, total, entry: entryShares(values, total) };
}

export function prune(graph: Graph, influence: Influence, nodeThreshold: number, edgeThreshold: number): Pruned {
  const { kind, sources, targets, weights, probability } = graph;
  const E = sources.length;
  const nodes = reaching(influence.values, nodeThreshold, influence.total);
  for (let i = 0; i < graph.n; i++) if (kind[i] === "token" || kind[i] === "logit") nodes[i] = 1;

  const kept = new Uint8Array(E);
  for (let e = 0; e < E; e++) kept[e] = nodes[sources[e]] & nodes[targets[e]];
  const scale = rowScale(graph, kept, null);
  const arriving = spread(graph, scale, kept);
  for (let i = 0; i < graph.n; i++) arriving[i] = (arriving[i] + probability[i]) * scale[i];
  const score = new Float64Array(E);
  for (let e = 0; e < E; e++) if (kept[e]) score[e] = Math.abs(weights[e]) * arriving[targets[e]];
  const total = sum(score);
  const strong = reaching(score, edgeThreshold, null);
  for (let e = 0; e < E; e++) kept[e] &= strong[e];

  dropLooseEnds(graph, nodes, kept);
  let count = 0;
  for (let e = 0; e < E; e++) count += kept[e];
  const edges = mostImportantFirst(kept, count, score);
  if (total > 0) for (let e = 0; e < E; e++) score[e] /= total;
  return { nodes, edges, edgeShare: score, ...scores(graph, kept) };
}

function mostImportantFirst(kept: Uint8Array, count: number, score: Float64Array): Uint32Array {
  const least = count > FIRST_EDGES ? largest(score, kept, FIRST_EDGES) : -1;
  const first: number[] = [];
  const edges = new Uint32Array(count);
  for (let e = 0; e < kept.length; e++) if (kept[e] && score[e] >= least) first.push(e);
  edges.set(first.sort((a, b) => score[b] - score[a] || a - b));
  let next = first.length;
  if (next < count) for (let e = 0; e < kept.length; e++) if (kept[e] && score[e] < least) edges[next++] = e;
  return edges;
}

// Sorting all edges takes longer than all else together. Values (0 or more) are sorted into buckets by their leading bits,
// which keep their order; only the bucket in which a threshold is reached is sorted.

const DROPPED_BITS = 15;
const asFloat = new Float32Array(1), asBits = new Uint32Array(asFloat.buffer);

function bucket(value: number): number {
  asFloat[0] = value;
  return asBits[0] >>> DROPPED_BITS;
}

const BUCKETS = bucket(Infinity) + 1;

/** The `rank`-th largest of the values in the mask. */
function largest(values: Float64Array, mask: Uint8Array, rank: number): number {
  const counts = new Uint32Array(BUCKETS);
  for (let i = 0; i < values.length; i++) if (mask[i]) counts[bucket(values[i])]++;
  let b = BUCKETS - 1, above = 0;
  while (b > 0 && above + counts[b] < rank) above += counts[b--];
  const own = values.filter((value, i) => mask[i] === 1 && bucket(value) === b).sort();
  return own[own.length - (rank - above)];
}

function scores(graph: Graph, kept: Uint8Array): { replacement: number; completeness: number } {
  const scale = rowScale(graph, kept, graph.omitted);
  const influence = spread(graph, scale, kept);
  // As in scores.py: without an edge from a feature or an error there is nothing to explain.
  let explains = graph.omitted.some((weight) => weight !== 0);
  let intoErrors = 0, intoTokens = 0, total = 0;
  for (let i = 0; i < graph.n; i++) {
    let errors = graph.omitted[i];
    for (let e = graph.starts[i]; e < graph.starts[i + 1]; e++)
      if (kept[e]) {
        const source = graph.kind[graph.sources[e]];
        if (source === "error") errors += Math.abs(graph.weights[e]);
        explains ||= source !== "token";
      }
    const arriving = influence[i] + graph.probability[i];
    total += arriving;
    intoErrors += arriving * errors * scale[i];
    if (graph.kind[i] === "token") intoTokens += influence[i];
  }
  if (!explains || intoErrors + intoTokens === 0 || total === 0) return { replacement: NaN, completeness: NaN };
  return { replacement: intoTokens / (intoErrors + intoTokens), completeness: 1 - intoErrors / total };
}

/** (n,) factors that scale the absolute rows to sum 1; 0 for empty rows. `kept` null counts every edge. */
export function rowScale(graph: Graph, kept: Uint8Array | null, extra: Float32Array | null): Float64Array {
  const scale = new Float64Array(graph.n);
  for (let i = 0; i < graph.n; i++) {
    let total = extra ? Math.abs(extra[i]) : 0;
    for (let e = graph.starts[i]; e < graph.starts[i + 1]; e++)
      if (!kept || kept[e]) total += Math.abs(graph.weights[e]);
    scale[i] = total > 0 ? 1 / total : 0;
  }
  return scale;
}

/** (n,) Σ_{j≥1} w·Aʲ. Rows with edges come after their sources, so one sweep from the last row is enough. */
function spread(graph: Graph, scale: Float64Array, kept: Uint8Array | null): Float64Array {
  const influence = new Float64Array(graph.n);
  for (let row = graph.n - 1; row >= 0; row--) {
    const factor = (graph.probability[row] + influence[row]) * scale[row];
    if (factor === 0) continue;
    for (let e = graph.starts[row]; e < graph.starts[row + 1]; e++)
      if (!kept || kept[e]) influence[graph.sources[e]] += Math.abs(graph.weights[e]) * factor;
  }
  return influence;
}

/** Mask of the fewest values whose sum reaches the threshold; ties are kept, zeros never. */
function reaching(values: Float64Array, threshold: number, total: number | null): Uint8Array {
  const mask = new Uint8Array(values.length);
  const least = threshold < 1 ? leastReaching(values, threshold, total) : 0;
  if (least === null) return mask;
  for (let i = 0; i < values.length; i++) mask[i] = values[i] >= least && values[i] > 0 ? 1 : 0;
  return mask;
}

/** The least value of those that together reach the threshold; null where all are 0. */
function leastReaching(values: Float64Array, threshold: number, total: number | null): number | null {
  const sums = new Float64Array(BUCKETS);
  for (let i = 0; i < values.length; i++) sums[bucket(values[i])] += values[i];
  let all = 0;
  for (let b = BUCKETS - 1; b >= 0; b--) all += sums[b];
  if (all === 0) return null;
  const enough = (threshold - ROUNDING) * (total ?? all);
  let b = BUCKETS - 1, reached = 0;
  while (b > 0 && reached + sums[b] < enough) reached += sums[b--];
  const own = values.filter((value) => bucket(value) === b).sort();
  for (let i = own.length - 1; i >= 0; i--) {
    reached += own[i];
    if (reached >= enough) return own[i] * (1 - ROUNDING);
  }
  // If only part of the graph is here, all of it may fall short of the threshold; then all is kept.
  return 0;
}

function entryShares(values: Float64Array, total: number): Float64Array {
  const shares = new Float64Array(values.length).fill(1);
  if (!(total > 0)) return shares;
  const order = Array.from(values.keys()).sort((a, b) => values[b] - values[a]);
  let reached = 0, share = 0, previous = Infinity;
  for (const i of order) {
    reached += values[i];
    if (values[i] < previous * (1 - ROUNDING)) share = reached / total;
    previous = values[i];
    shares[i] = share;
  }
  return shares;
}

/** Features need an edge in and one out, errors one out; what lacks one is dropped, until nothing changes. */
function dropLooseEnds(graph: Graph, nodes: Uint8Array, kept: Uint8Array): void {
  const { kind, sources, targets } = graph;
  for (let changed = true; changed; ) {
    const feeds = new Uint8Array(graph.n), fed = new Uint8Array(graph.n);
    for (let e = 0; e < kept.length; e++) if (kept[e]) feeds[sources[e]] = fed[targets[e]] = 1;
    changed = false;
    for (let i = 0; i < graph.n; i++) {
      const loose = kind[i] === "feature" ? !feeds[i] || !fed[i] : kind[i] === "error" && !feeds[i];
      if (nodes[i] && loose) {
        nodes[i] = 0;
        changed = true;
      }
    }
    if (changed) for (let e = 0; e < kept.length; e++) kept[e] &= nodes[sources[e]] & nodes[targets[e]];
  }
}

function sum(values: Float64Array): number {
  let total = 0;
  for (const value of values) total += value;
  return total;
}
