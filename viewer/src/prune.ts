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
  let values = graph.influence;
  if (!values) {
    const whole = wholeOf(graph);
    values = spreadOver(whole, graph.probability, scales(whole, null));
  }
  const total = graph.influence ? graph.influenceTotal : sum(values);
  return { values, total, entry: entryShares(values, total) };
}

export function prune(graph: Graph, influence: Influence, nodeThreshold: number, edgeThreshold: number): Pruned {
  const { n, kind, probability, omitted } = graph;
  const nodes = reaching(influence.values, nodeThreshold, influence.total);
  for (let i = 0; i < n; i++) if (kind[i] === "token" || kind[i] === "logit") nodes[i] = 1;

  const between = edgesBetween(graph, nodes);
  const scale = scales(between, null), arriving = spreadOver(between, probability, scale);
  for (let i = 0; i < n; i++) arriving[i] = (arriving[i] + probability[i]) * scale[i];
  const score = timesRow(between, arriving), total = sum(score);
  let kept = only(between, reaching(score, edgeThreshold, null));
  for (let loose = looseEnds(graph, nodes, kept); loose; loose = looseEnds(graph, nodes, kept)) kept = only(kept, both(kept, nodes));

  const edgeShare = new Float64Array(graph.sources.length);
  if (total > 0) scatter(score, 1 / total, between.edges, edgeShare);
  return { nodes, edges: mostImportantFirst(kept.edges, edgeShare), edgeShare, ...scores(graph, kept, omitted) };
}

/** Some of a graph's edges side by side, by target row, so that the passes over them read memory in order. */
interface Edges {
  /** Their numbers in the graph. */
  edges: Uint32Array;
  sources: Uint32Array;
  /** Absolute weights. */
  sizes: Float64Array;
  /** (n + 1,) those into node i are `rows[i]` to `rows[i + 1]`. */
  rows: Uint32Array;
}

function edgesBetween(graph: Graph, nodes: Uint8Array): Edges {
  const { n, sources, starts, weights } = graph;
  const E = sources.length;
  const edges = new Uint32Array(E), ends = new Uint32Array(E), sizes = new Float64Array(E), rows = new Uint32Array(n + 1);
  let count = 0;
  for (let i = 0; i < n; i++) {
    if (nodes[i])
      for (let e = starts[i]; e < starts[i + 1]; e++) {
        const source = sources[e];
        edges[count] = e;
        ends[count] = source;
        sizes[count] = Math.abs(weights[e]);
        count += nodes[source]; // what is not kept is written over
      }
    rows[i + 1] = count;
  }
  return { edges: edges.subarray(0, count), sources: ends.subarray(0, count), sizes: sizes.subarray(0, count), rows };
}

/** Those of the edges that a mask has. */
function only(from: Edges, mask: Uint8Array): Edges {
  const E = from.edges.length, n = from.rows.length - 1;
  const edges = new Uint32Array(E), sources = new Uint32Array(E), sizes = new Float64Array(E), rows = new Uint32Array(n + 1);
  let count = 0;
  for (let i = 0; i < n; i++) {
    for (let k = from.rows[i]; k < from.rows[i + 1]; k++) {
      edges[count] = from.edges[k];
      sources[count] = from.sources[k];
      sizes[count] = from.sizes[k];
      count += mask[k];
    }
    rows[i + 1] = count;
  }
  return { edges: edges.subarray(0, count), sources: sources.subarray(0, count), sizes: sizes.subarray(0, count), rows };
}

/** Mask of the edges both of whose ends are kept. */
function both({ sources, rows }: Edges, nodes: Uint8Array): Uint8Array {
  const mask = new Uint8Array(sources.length);
  for (let i = 0; i < nodes.length; i++) if (nodes[i]) for (let k = rows[i]; k < rows[i + 1]; k++) mask[k] = nodes[sources[k]];
  return mask;
}

/** (n,) factors that scale the rows to sum 1; 0 for empty rows. */
function scales({ sizes, rows }: Edges, extra: Float32Array | null): Float64Array {
  const scale = new Float64Array(rows.length - 1);
  for (let i = 0; i < scale.length; i++) {
    let total = extra ? Math.abs(extra[i]) : 0;
    for (let k = rows[i]; k < rows[i + 1]; k++) total += sizes[k];
    scale[i] = total > 0 ? 1 / total : 0;
  }
  return scale;
}

/** Each edge's absolute weight times its row's factor. */
function timesRow({ sizes, rows }: Edges, factors: Float64Array): Float64Array {
  const products = new Float64Array(sizes.length);
  for (let i = 0; i < factors.length; i++) {
    const factor = factors[i], end = rows[i + 1];
    for (let k = rows[i]; k < end; k++) products[k] = sizes[k] * factor;
  }
  return products;
}

function scatter(values: Float64Array, factor: number, places: Uint32Array, into: Float64Array): void {
  for (let k = 0; k < values.length; k++) into[places[k]] = values[k] * factor;
}

/** (n,) Σ_{j≥1} w·Aʲ. Rows with edges come after their sources, so one sweep from the last row is enough. */
function spreadOver({ sources, sizes, rows }: Edges, probability: ArrayLike<number>, scale: Float64Array): Float64Array {
  const influence = new Float64Array(scale.length);
  for (let row = scale.length - 1; row >= 0; row--) {
    const factor = (probability[row] + influence[row]) * scale[row];
    if (factor === 0) continue;
    for (let k = rows[row]; k < rows[row + 1]; k++) influence[sources[k]] += sizes[k] * factor;
  }
  return influence;
}

/** The edges, the `FIRST_EDGES` with the largest scores first, in order. */
function mostImportantFirst(kept: Uint32Array, score: Float64Array): Uint32Array {
  const values = new Float64Array(kept.length);
  for (let k = 0; k < kept.length; k++) values[k] = score[kept[k]];
  const least = kept.length > FIRST_EDGES ? largest(values, FIRST_EDGES) : -1;
  const first: number[] = [];
  const edges = new Uint32Array(kept.length);
  for (let k = 0; k < kept.length; k++) if (values[k] >= least) first.push(kept[k]);
  edges.set(first.sort((a, b) => score[b] - score[a] || a - b));
  let next = first.length;
  if (next < kept.length) for (let k = 0; k < kept.length; k++) if (values[k] < least) edges[next++] = kept[k];
  return edges;
}

// Sorting all edges takes longer than all else together. Values (0 or more) are sorted into buckets by their leading bits,
// which keep their order; only the bucket in which a threshold is reached is sorted.

const DROPPED_BITS = 15;

const BUCKETS = bucketsOf(Float64Array.of(Infinity))[0] + 1;

/** The `rank`-th largest of the values. */
function largest(values: Float64Array, rank: number): number {
  const counts = new Uint32Array(BUCKETS), buckets = bucketsOf(values);
  for (let i = 0; i < values.length; i++) counts[buckets[i]]++;
  let b = BUCKETS - 1, above = 0;
  while (b > 0 && above + counts[b] < rank) above += counts[b--];
  const own = inBucket(values, buckets, b, counts[b]);
  return own[own.length - (rank - above)];
}

function bucketsOf(values: Float64Array): Uint32Array {
  const buckets = new Uint32Array(new Float32Array(values).buffer);
  for (let i = 0; i < buckets.length; i++) buckets[i] >>>= DROPPED_BITS;
  return buckets;
}

/** The values of a bucket, ascending. */
function inBucket(values: Float64Array, buckets: Uint32Array, b: number, count: number): Float64Array {
  const own = new Float64Array(count);
  for (let i = 0, next = 0; next < count; i++) if (buckets[i] === b) own[next++] = values[i];
  return own.sort();
}

function scores(graph: Graph, kept: Edges, omitted: Float32Array): { replacement: number; completeness: number } {
  const { rows, sources, sizes } = kept;
  const scale = scales(kept, omitted), influence = spreadOver(kept, graph.probability, scale);
  const isError = Uint8Array.from(graph.kind, (kind) => Number(kind === "error")), isToken = Uint8Array.from(graph.kind, (kind) => Number(kind === "token"));
  // As in scores.py: without an edge from a feature or an error there is nothing to explain.
  let explains = omitted.some((weight) => weight !== 0);
  let intoErrors = 0, intoTokens = 0, total = 0;
  for (let i = 0; i < graph.n; i++) {
    let errors = omitted[i], fromOthers = 0;
    for (let k = rows[i]; k < rows[i + 1]; k++) {
      const source = sources[k];
      errors += isError[source] * sizes[k];
      fromOthers |= 1 - isToken[source];
    }
    explains ||= fromOthers === 1;
    const arriving = influence[i] + graph.probability[i];
    total += arriving;
    intoErrors += arriving * errors * scale[i];
    if (isToken[i]) intoTokens += influence[i];
  }
  if (!explains || intoErrors + intoTokens === 0 || total === 0) return { replacement: NaN, completeness: NaN };
  return { replacement: intoTokens / (intoErrors + intoTokens), completeness: 1 - intoErrors / total };
}

/** (n,) factors that scale the absolute rows of the whole graph to sum 1; 0 for empty rows. */
export function rowScale(graph: Graph): Float64Array {
  let scale = rowScales.get(graph);
  if (!scale) rowScales.set(graph, (scale = scales(wholeOf(graph), null)));
  return scale;
}

const rowScales = new WeakMap<Graph, Float64Array>();

function wholeOf(graph: Graph): Edges {
  return edgesBetween(graph, new Uint8Array(graph.n).fill(1));
}

/** Mask of the fewest values whose sum reaches the threshold; ties are kept, zeros never. */
function reaching(values: Float64Array, threshold: number, total: number | null): Uint8Array {
  const mask = new Uint8Array(values.length);
  const least = threshold < 1 ? leastReaching(values, threshold, total) : 0;
  if (least === null) return mask;
  const lowest = Math.max(least, Number.MIN_VALUE);
  for (let i = 0; i < values.length; i++) mask[i] = Number(values[i] >= lowest);
  return mask;
}

/** The least value of those that together reach the threshold; null where all are 0. */
function leastReaching(values: Float64Array, threshold: number, total: number | null): number | null {
  const sums = new Float64Array(BUCKETS), counts = new Uint32Array(BUCKETS), buckets = bucketsOf(values);
  for (let i = 0; i < values.length; i++) {
    sums[buckets[i]] += values[i];
    counts[buckets[i]]++;
  }
  let all = 0;
  for (let b = BUCKETS - 1; b >= 0; b--) all += sums[b];
  if (all === 0) return null;
  const enough = (threshold - ROUNDING) * (total ?? all);
  let b = BUCKETS - 1, reached = 0;
  while (b > 0 && reached + sums[b] < enough) reached += sums[b--];
  const own = inBucket(values, buckets, b, counts[b]);
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

/** Features need an edge in and one out, errors one out. Drops nodes that lack one; says whether there were any. */
function looseEnds(graph: Graph, nodes: Uint8Array, { sources, rows }: Edges): boolean {
  const feeds = new Uint8Array(graph.n);
  for (let k = 0; k < sources.length; k++) feeds[sources[k]] = 1;
  let changed = false;
  for (let i = 0; i < graph.n; i++) {
    const kind = graph.kind[i];
    const loose = kind === "feature" ? !feeds[i] || rows[i] === rows[i + 1] : kind === "error" && !feeds[i];
    if (nodes[i] && loose) {
      nodes[i] = 0;
      changed = true;
    }
  }
  return changed;
}

function sum(values: Float64Array): number {
  let total = 0;
  for (const value of values) total += value;
  return total;
}
