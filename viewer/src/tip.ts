// The small card beside the pointer: what the node is, and its strongest edges both ways.

import { byId, h } from "./dom";
import type { Model, Neighbour } from "./model";
import { icon } from "./shapes";
import { percent, plain, signed } from "./text";

let shownFor: [Model, number] | null = null;

export const tip = {
  show(model: Model, node: number, x: number, y: number): void {
    const element = byId("tip");
    element.hidden = node < 0;
    if (node < 0) {
      shownFor = null;
      return;
    }
    if (shownFor?.[0] !== model || shownFor[1] !== node) {
      shownFor = [model, node];
      const facts = [model.place(node)];
      const activation = model.activation(node);
      if (activation !== null) facts.push(`activation ${plain(activation)}`);
      if (model.kind(node) !== "logit" && model.influence.total > 0)
        facts.push(`influence ${percent(model.influence.values[node] / model.influence.total)}`);
      element.replaceChildren(
        h("div", { class: "tip-name" }, icon(model.kind(node)), h("strong", { dir: "auto" }, model.name(node, 60))),
        h("div", { class: "tip-facts" }, facts.join("  ·  ")),
        ...side("fed by", model, model.feeders(node)),
        ...side("feeds", model, model.fed(node)),
      );
    }
    const { offsetWidth, offsetHeight } = element;
    const left = x + 16 + offsetWidth > innerWidth ? x - 14 - offsetWidth : x + 16;
    element.style.left = `${Math.max(left, 4)}px`;
    element.style.top = `${Math.max(Math.min(y + 14, innerHeight - offsetHeight - 8), 4)}px`;
  },
};

function side(title: string, model: Model, list: Neighbour[]): HTMLElement[] {
  if (!list.length) return [];
  const rows = list.slice(0, 4).map(({ node, weight }) =>
    h("div", { class: "tip-row" }, h("span", { dir: "auto" }, model.name(node, 30)), h("span", { class: weight > 0 ? "plus" : "minus" }, signed(weight))),
  );
  return [h("div", { class: "tip-side" }, h("div", { class: "tip-title" }, `${title} ${list.length}`), ...rows)];
}
