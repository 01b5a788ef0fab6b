// The targets: the story is told of one of them, the others are a click away.

import { byId, button } from "./dom";
import type { Model } from "./model";
import type { Store } from "./state";

export class TargetBar {
  private bar = byId("targets");

  constructor(model: Model, private store: Store) {
    const targets = model.targets.slice(0, 10);
    this.bar.hidden = targets.length < 2;
    this.bar.append(...targets.map((node) => {
      const chosen = button(`${model.name(node, 20)} ${model.chanceText(node)}`.trim(), "Tell what leads to this one", () => store.set({ target: model.id(node) }));
      chosen.dir = "auto";
      chosen.dataset.id = model.id(node);
      return chosen;
    }));
    this.update();
  }

  update(): void {
    for (const chosen of this.bar.children) chosen.setAttribute("aria-pressed", String((chosen as HTMLElement).dataset.id === this.store.state.target));
  }
}
