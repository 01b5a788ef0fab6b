// The panel: about the whole graph while nothing is selected, otherwise the card and edges of the node or group.

import { featureCard } from "./card";
import { button, byId, h, on } from "./dom";
import type { GraphView } from "./graph_view";
import { List } from "./list";
import type { Model, Neighbour } from "./model";
import { strongestPaths, type Path } from "./paths";
import { icon } from "./shapes";
import type { Store } from "./state";
import { percent, plain, probability, short, signed, visible, whole } from "./text";

const ROW = 30;

export class Panel {
  private element = byId("panel");
  private paths: Path[] | null = null;
  private later = 0;

  constructor(private model: Model, private store: Store, private view: GraphView) {}

  /** After pruning: paths and lists have changed. */
  pruned(): void {
    this.paths = null;
    this.update();
  }

  update(): void {
    const { clicked } = this.store.state;
    const group = /^supernode-(\d+)$/.exec(clicked);
    const node = this.model.node(clicked);
    if (group && this.store.state.supernodes[Number(group[1])]) this.showGroup(Number(group[1]));
    else if (node >= 0) this.showNode(node);
    else this.showOverview();
  }

  private replace(...parts: (HTMLElement | null)[]): void {
    this.element.replaceChildren(...parts.filter((part): part is HTMLElement => part !== null));
  }

  private showOverview(): void {
    const { model } = this;
    const target = model.topTarget;
    const influence = model.influence.values;
    const features = model.shown.filter((node) => model.kind(node) === "feature").sort((a, b) => influence[b] - influence[a]);
    const paths = h("section", {});
    const list = new List<number>("Strongest features", ROW, (node) => this.featureRow(node));
    const outputs = model.shown.filter((node) => model.kind(node) === "logit").sort((a, b) => model.probability(b) - model.probability(a));
    this.replace(
      h("div", { class: "scroll" },
        h("section", {}, h("h2", {}, "Output"), ...outputs.slice(0, 6).map((node) => this.outputRow(node))),
        paths,
        ...this.notes(),
      ),
      h("h2", { class: "list-title" }, `Features by influence (${whole(features.length)})`),
      list.element,
    );
    list.set(features);
    // After the graph is painted, because it takes a while in a large one.
    window.clearTimeout(this.later);
    this.later = window.setTimeout(() => this.showPaths(paths, target), this.paths ? 0 : 60);
  }

  private showPaths(section: HTMLElement, target: number): void {
    const { model } = this;
    this.paths ??= target >= 0 ? strongestPaths(model.graph, model.pruned, target, 5) : [];
    section.hidden = !this.paths.length;
    if (section.hidden) return;
    section.replaceChildren(h("h2", {}, `Strongest paths to ${model.name(target, 24)}`), ...this.paths.map((path) => this.pathRow(path)));
  }

  private notes(): HTMLElement[] {
    const { data, graph } = this.model;
    const notes = [...data.notes];
    if (data.whole.nodes > graph.n)
      notes.unshift(`This page holds the ${whole(graph.n)} most influential of the graph's ${whole(data.whole.nodes)} nodes.`);
    return notes.map((note) => h("p", { class: "note" }, note));
  }

  private outputRow(node: number): HTMLElement {
    const { model } = this;
    const chance = model.chance(node);
    const name = h("span", { class: "name", dir: "auto" }, model.name(node));
    if (chance === null) return this.nodeButton(node, "output", icon("logit"), name);
    const bar = h("span", { class: "meter" }, h("span", {}));
    (bar.firstChild as HTMLElement).style.width = `${100 * Math.min(chance, 1)}%`;
    return this.nodeButton(node, "output", icon("logit"), name, bar, h("span", { class: "number" }, probability(chance)));
  }

  private pathRow(path: Path): HTMLElement {
    const { model } = this;
    const steps = path.nodes.map((node, i) =>
      h("span", { class: "step" }, i ? h("span", { class: "arrow", "aria-hidden": "true" }, "→") : null, icon(model.kind(node)), h("span", { dir: "auto" }, model.name(node, 22))));
    const share = h("span", { class: `number ${path.sign > 0 ? "plus" : "minus"}` }, `${path.sign < 0 ? "−" : ""}${percent(path.strength)}`);
    const row = h("button", { type: "button", class: "path", title: "Show this path in the graph" }, share, h("span", { class: "steps" }, ...steps));
    return on(row, {
      mouseenter: () => this.view.showPath(path.edges),
      mouseleave: () => this.view.showPath(null),
      focus: () => this.view.showPath(path.edges),
      blur: () => this.view.showPath(null),
      click: () => path.nodes.forEach((node) => this.store.pin(model.id(node))),
    });
  }

  private featureRow(node: number): HTMLElement {
    const { model } = this;
    const share = model.influence.total > 0 ? model.influence.values[node] / model.influence.total : 0;
    return this.nodeButton(node, "neighbour", icon("feature"), h("span", { class: "name", dir: "auto" }, model.name(node)), h("span", { class: "place", dir: "auto" }, model.place(node)), h("span", { class: "number" }, percent(share)));
  }

  private nodeButton(node: number, className: string, ...content: (Node | string)[]): HTMLElement {
    const { model } = this;
    // Read out in full; "listitem" lets screen readers count a long list.
    const row = h("button", { type: "button", class: className, "data-id": model.id(node) }, ...(content as HTMLElement[]));
    return on(row, {
      click: () => {
        this.store.set({ clicked: model.id(node) });
        this.view.reveal(node);
      },
      mouseenter: () => this.view.hint(node),
      mouseleave: () => this.view.hint(-1),
      focus: () => this.view.hint(node),
      blur: () => this.view.hint(-1),
    });
  }

  private showNode(node: number): void {
    const { model, store } = this;
    const id = model.id(node), kind = model.kind(node), pinned = store.isPinned(id);
    const facts: [string, string][] = [["id", visible(id)]];
    const activation = model.activation(node);
    if (activation !== null) facts.unshift(["activation", plain(activation)]);
    const chance = model.chance(node);
    if (chance !== null) facts.unshift(["probability", probability(chance)]);
    else if (kind !== "logit" && model.influence.total > 0) facts.unshift(["influence", percent(model.influence.values[node] / model.influence.total)]);
    const where = kind === "feature" ? `feature L${model.featureKey(node)} at ${short(model.token(model.position(node)))}` : kind === "error" ? `error at ${short(model.token(model.position(node)))}` : kind === "token" ? `token ${model.position(node)}` : "output";
    const pin = button(pinned ? "Unpin" : "Pin", "Pin to the subgraph (p)", () => store.toggle(id), pinned ? "active" : "");
    pin.id = "pin";
    pin.setAttribute("aria-pressed", String(pinned));
    const group = store.groupOf(id);
    this.replace(
      h("div", { class: "head" },
        h("div", { class: "title" }, icon(kind), h("h2", { dir: "auto" }, model.name(node, 120))),
        h("div", { class: "actions" }, pin, button("✕", "Close (Esc)", () => store.set({ clicked: "" }), "quiet")),
      ),
      h("p", { class: "where", dir: "auto" }, where, group >= 0 ? ` · in ${visible(store.state.supernodes[group].name)}` : null),
      h("dl", { class: "facts" }, ...facts.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)))),
      model.isShown(node) ? null : h("p", { class: "note" }, "Below the thresholds: not shown in the graph."),
      this.cardOf(node),
      ...this.edges("Fed by", model.feeders(node)),
      ...this.edges("Feeds", model.fed(node)),
    );
  }

  private cardOf(node: number): HTMLElement | null {
    const parts = featureCard(this.model, node);
    return parts.length ? h("div", { class: "card scroll" }, ...parts) : null;
  }

  /** A heading and the list under it. */
  private edges(title: string, list: Neighbour[]): HTMLElement[] {
    if (!list.length) return [];
    const most = Math.abs(list[0].weight);
    const sum = list.reduce((total, { weight }) => total + weight, 0);
    const rows = new List<Neighbour>(title, ROW, (entry) => this.edgeRow(entry, most));
    rows.element.id = title === "Feeds" ? "feeds" : "fed-by";
    queueMicrotask(() => rows.set(list));
    return [h("h3", { class: "list-title" }, `${title} (${whole(list.length)})`, h("span", { class: "number", title: "Sum" }, signed(sum))), rows.element];
  }

  private edgeRow({ node, weight }: Neighbour, most: number): HTMLElement {
    const { model } = this;
    const bar = h("span", { class: `bar ${weight > 0 ? "plus" : "minus"}`, "aria-hidden": "true" });
    bar.style.width = `${(100 * Math.abs(weight)) / most}%`;
    return this.nodeButton(node, "neighbour", bar, icon(model.kind(node)), h("span", { class: "name", dir: "auto" }, model.name(node)), h("span", { class: "place", dir: "auto" }, model.place(node)), h("span", { class: `number ${weight > 0 ? "plus" : "minus"}` }, signed(weight)));
  }

  private showGroup(i: number): void {
    const { model, store } = this;
    const group = store.state.supernodes[i];
    const name = h("input", { type: "text", value: group.name, "aria-label": "Name of the group", class: "rename", id: "rename", maxlength: 80 });
    name.value = group.name;
    on(name, {
      change: () => store.rename(i, name.value),
      keydown: (event) => {
        if (event.key === "Enter") name.blur();
        event.stopPropagation();
      },
    });
    const members = group.ids.map((id) => model.node(id)).filter((node) => node >= 0);
    const list = new List<number>("Members", ROW, (node) => this.featureRow(node));
    this.replace(
      h("div", { class: "head" }, h("div", { class: "title" }, name), h("div", { class: "actions" },
        button("Ungroup", "Take the group apart", () => store.ungroup(i)),
        button("✕", "Close (Esc)", () => store.set({ clicked: "" }), "quiet"))),
      h("p", { class: "where" }, `group of ${members.length}; edges are sums over the members`),
      h("h3", { class: "list-title" }, "Members"),
      list.element,
      ...this.edges("Fed by", model.edgesOfGroup(members, true)),
      ...this.edges("Feeds", model.edgesOfGroup(members, false)),
    );
    list.set(members);
  }
}
