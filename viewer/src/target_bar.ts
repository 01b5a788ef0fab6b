// The targets: the story is told of one of them, the others are a click away. Of an answer they stand in its order, and
// influence is that on the token which is chosen, on a span (click, then click another with Shift), or on the whole answer.

import { byId, button } from "./dom";
import type { Model } from "./model";
import type { Store } from "./state";

const MOST = 10, MOST_OF_ANSWER = 40;

export class TargetBar {
  private bar = byId("targets");

  constructor(private model: Model, private store: Store) {
    const { answer } = model.data;
    const targets = answer.length ? answer.slice(0, MOST_OF_ANSWER).map((id) => model.node(id)) : model.targets.slice(0, MOST);
    this.bar.hidden = targets.length < 2;
    if (answer.length) {
      const whole = button("whole answer", "Read influence on all of the answer", () => store.set({ target: "" }));
      whole.dataset.id = "";
      this.bar.append(whole);
    }
    this.bar.append(...targets.map((node) => {
      const id = model.id(node);
      const about = answer.length ? "Read influence on this token; with Shift, on all from the chosen one to it" : "Tell what leads to this one";
      const chosen = button(`${model.name(node, 20)} ${model.chanceText(node)}`.trim(), about, (event) => {
        const first = store.state.target.split("..")[0];
        store.set({ target: event.shiftKey && answer.includes(first) && first !== id ? `${first}..${id}` : id });
      });
      chosen.dir = "auto";
      chosen.dataset.id = id;
      return chosen;
    }));
    this.update();
  }

  update(): void {
    const { target } = this.store.state;
    const part = new Set(this.model.answerPart(target).map((node) => this.model.id(node)));
    for (const chosen of this.bar.children) {
      const id = (chosen as HTMLElement).dataset.id!;
      chosen.setAttribute("aria-pressed", String(id === target || part.has(id)));
    }
  }
}
