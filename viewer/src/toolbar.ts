// The sliders and what they keep.

import { byId } from "./dom";
import type { Model } from "./model";
import type { Store } from "./state";
import { probability, whole } from "./text";

export class Sliders {
  private node = byId<HTMLInputElement>("node-threshold");
  private edge = byId<HTMLInputElement>("edge-threshold");
  private frame = 0;

  /** A page with a part of the graph cannot show more nodes than it holds: `most` is the share they reach. */
  constructor(most: number, changed: (nodeThreshold: number, edgeThreshold: number) => void) {
    this.node.max = String(Math.ceil(most * 100) / 100);
    const change = (): void => {
      this.frame ||= requestAnimationFrame(() => {
        this.frame = 0;
        changed(Number(this.node.value), Number(this.edge.value));
      });
    };
    this.node.addEventListener("input", change);
    this.edge.addEventListener("input", change);
  }

  show(nodeThreshold: number, edgeThreshold: number): void {
    for (const [input, value, name] of [[this.node, nodeThreshold, "node-value"], [this.edge, edgeThreshold, "edge-value"]] as const) {
      if (document.activeElement !== input || Number(input.value) !== value) input.value = String(value);
      byId(name).textContent = probability(value);
    }
  }
}

export class Toolbar {
  private sliders: Sliders;

  constructor(private model: Model, private store: Store) {
    this.sliders = new Sliders(model.data.start.nodeLimit, (nodeThreshold, edgeThreshold) => store.set({ nodeThreshold, edgeThreshold }));
  }

  update(): void {
    const { pruned, data, keptNodes } = this.model;
    this.sliders.show(this.store.state.nodeThreshold, this.store.state.edgeThreshold);
    byId("node-count").textContent = `${whole(keptNodes)} of ${whole(data.whole.nodes)}`;
    byId("edge-count").textContent = `${whole(pruned.edges.length)} of ${whole(data.whole.edges)}`;
    byId("replacement").textContent = score(pruned.replacement);
    byId("completeness").textContent = score(pruned.completeness);
    // Unknown where the file held a pruned graph.
    const of = data.whole.untraced ? "traced graph" : "whole graph";
    byId("whole-replacement").textContent = data.scores ? `(${of} ${score(data.scores.replacement)})` : "";
    byId("whole-completeness").textContent = data.scores ? `(${score(data.scores.completeness)})` : "";
  }
}

/** A score, or a dash where there is none. */
function score(value: number | null): string {
  return value === null || Number.isNaN(value) ? "–" : probability(value);
}
