// The strongest paths from a token to a target, as graphs/analysis/paths.py finds them: a path's strength is the product of each
// edge's share of its target's whole input. Sources come before targets, so the best paths into every node follow from
// those into its sources in one pass.

import type { Graph } from "./data";
import { rowScale } from "./prune";

export interface Path {
  nodes: number[];
  edges: number[];
  strength: number;
  sign: number;
}

interface Step {
  log: number;
  edge: number;
  before: Step | null;
}

/** Paths over some edges whose nodes count for `least` or more together; a node counts for 0, 1, 2, …, features for 1 by themselves. */
export function strongestPaths(graph: Graph, edges: Uint32Array, target: number, count: number, least = 0, counts: (node: number) => number = (node) => (graph.kind[node] === "feature" ? 1 : 0)): Path[] {
  const scale = rowScale(graph);
  const incoming: number[][] = Array.from({ length: graph.n }, () => []);
  for (const e of edges) incoming[graph.targets[e]].push(e);
  const none = (): Step[][] => Array.from({ length: least + 1 }, () => []);
  // best[node][c]: with c counted features before the node; the last list holds those with more, too.
  const best: Step[][][] = graph.kind.map((kind) => {
    const lists = none();
    if (kind === "token") lists[0].push({ log: 0, edge: -1, before: null });
    return lists;
  });
  const fill = (row: number, skipTokens: boolean): void => {
    const lists = none();
    for (const edge of incoming[row]) {
      const source = graph.sources[edge];
      if (skipTokens && graph.kind[source] === "token") continue;
      const own = Math.log(Math.abs(graph.weights[edge]) * scale[row]);
      const more = counts(source);
      best[source].forEach((steps, c) => {
        const found = lists[Math.min(c + more, least)];
        for (const before of steps) {
          const log = before.log + own;
          // A source's paths come strongest first: once one is too weak, so are the rest.
          if (found.length === count && log <= found[count - 1].log) break;
          insert(found, { log, edge, before }, count);
        }
      });
    }
    best[row] = lists;
  };
  for (let row = 0; row < graph.n; row++) if (graph.kind[row] === "feature" && row !== target) fill(row, false);
  fill(target, true);
  if (!least && !best[target][0].length) fill(target, false);
  return best[target][least].map((step) => walk(graph, step));
}

/** The share of a target's input that comes from tokens directly, or through one feature at the position where it is read. */
export function trivialShare(graph: Graph, edges: Uint32Array, target: number, isTrivial: (node: number) => boolean): number {
  const scale = rowScale(graph);
  const fromTokens = new Float64Array(graph.n);
  for (const e of edges) if (graph.kind[graph.sources[e]] === "token") fromTokens[graph.targets[e]] += Math.abs(graph.weights[e]) * scale[graph.targets[e]];
  let share = fromTokens[target];
  for (const e of edges)
    if (graph.targets[e] === target && graph.kind[graph.sources[e]] === "feature" && isTrivial(graph.sources[e])) share += Math.abs(graph.weights[e]) * scale[target] * fromTokens[graph.sources[e]];
  return share;
}

function insert(found: Step[], step: Step, count: number): void {
  let place = found.length;
  while (place > 0 && found[place - 1].log < step.log) place--;
  if (place >= count) return;
  found.splice(place, 0, step);
  if (found.length > count) found.pop();
}

function walk(graph: Graph, last: Step): Path {
  const edges: number[] = [];
  for (let step: Step | null = last; step && step.edge >= 0; step = step.before) edges.unshift(step.edge);
  const nodes = edges.map((e) => graph.sources[e]);
  nodes.push(graph.targets[edges[edges.length - 1]]);
  const sign = edges.reduce((product, e) => product * Math.sign(graph.weights[e]), 1);
  return { nodes, edges, strength: Math.exp(last.log), sign };
}
