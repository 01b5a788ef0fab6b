// How lists of edges are ordered and what of them is shown.

import { h, on } from "./dom";
import type { Model, Neighbour } from "./model";

export type FeatureSort = "influence" | "layer" | "activation";

const CHOICES = {
  sort: [["weight", "by weight"], ["layer", "by layer"], ["position", "by token"]],
  sign: [["both", "+ and −"], ["plus", "+ only"], ["minus", "− only"]],
  kind: [["all", "all kinds"], ["feature", "features"], ["error", "errors"], ["token", "tokens"], ["logit", "outputs"]],
} as const;
const NAMES = { sort: "Order of the edges", sign: "Sign of the edges", kind: "Kind of their nodes" };

export class EdgeTools {
  sort = "weight";
  sign = "both";
  kind = "all";

  constructor(private changed: () => void) {}

  element(): HTMLElement {
    const choices = (Object.keys(CHOICES) as (keyof typeof CHOICES)[]).map((name) => {
      const box = h("select", { id: `edges-${name}`, "aria-label": NAMES[name] }, ...CHOICES[name].map(([value, text]) => h("option", { value }, text)));
      box.value = this[name];
      return on(box, {
        change: () => {
          this[name] = box.value;
          this.changed();
          document.getElementById(`edges-${name}`)?.focus();
        },
        keydown: (event) => event.stopPropagation(),
      });
    });
    return h("div", { class: "list-tools", role: "group", "aria-label": "Edges" }, ...choices);
  }
}

/** What the tools leave of a list that is sorted by weight. */
export function sorted(list: Neighbour[], { sort, sign, kind }: EdgeTools, model: Model): Neighbour[] {
  const shown = list.filter(({ node, weight }) => (sign === "both" || weight > 0 === (sign === "plus")) && (kind === "all" || model.kind(node) === kind));
  if (sort === "layer") return shown.sort((a, b) => model.layer(a.node) - model.layer(b.node));
  return sort === "position" ? shown.sort((a, b) => model.position(a.node) - model.position(b.node)) : shown;
}
