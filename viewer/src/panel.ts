// The panel: about the whole graph while nothing is selected, otherwise the card and edges of the node or group.

import { featureCard } from "./card";
import { button, byId, h, on } from "./dom";
import type { GraphView } from "./graph_view";
import { List } from "./list";
import type { Model, Neighbour } from "./model";
import { strongestPaths, type Path } from "./paths";
import { icon } from "./shapes";
import { MOST_PATH_FEATURES, NOTHING_LEFT_OUT, type LeftOut, type Store } from "./state";
import { percent, plain, probability, short, signed, visible, whole } from "./text";

const ROW = 30;

/** A share as what stands in an input; nothing for all. */
const percentOf = (share: number): string => (share < 1 ? String(Number((100 * share).toPrecision(6))) : "");

export class Panel {
  private element = byId("panel");
  private paths: Path[] | null = null;
  /** Of the overview, while it is shown. */
  private overview: { list: List<number>; title: HTMLElement; paths: HTMLElement } | null = null;
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
    this.overview = null;
    this.element.replaceChildren(...parts.filter((part): part is HTMLElement => part !== null));
  }

  private showOverview(): void {
    const { model } = this;
    const paths = h("section", {});
    const list = new List<number>("Strongest features", ROW, (node) => this.featureRow(node));
    const title = h("h2", { class: "list-title" });
    const outputs = model.shown.filter((node) => model.kind(node) === "logit").sort((a, b) => model.probability(b) - model.probability(a));
    this.replace(
      h("div", { class: "scroll" },
        h("section", {}, h("h2", {}, "Output"), ...outputs.slice(0, 6).map((node) => this.outputRow(node))),
        paths,
        ...this.notes(),
      ),
      this.leaveOutControls(),
      title,
      list.element,
    );
    this.overview = { list, title, paths };
    this.fill();
  }

  private get leftOut(): LeftOut {
    return this.store.state.leftOut ?? NOTHING_LEFT_OUT;
  }

  /** What the lists leave out has changed; what is typed keeps its focus. */
  leaveOut(): void {
    this.paths = null;
    if (!this.overview) return;
    this.fill();
    const { pathFeatures, lastPosition, maxFiringRate } = this.leftOut;
    const control = (id: string): HTMLInputElement | null => this.element.querySelector(`#${id}`);
    for (const [id, value] of [["path-features", String(pathFeatures)], ["max-firing-rate", percentOf(maxFiringRate)]] as const) {
      const input = control(id);
      if (input && input !== document.activeElement) input.value = value;
    }
    const last = control("before-last");
    if (last) last.checked = lastPosition;
  }

  private fill(): void {
    if (!this.overview) return;
    const { model, leftOut } = this, { list, title, paths } = this.overview;
    const influence = model.influence.values;
    const all = model.shown.filter((node) => model.kind(node) === "feature");
    const features = all.filter((node) => !model.isLeftOut(node, leftOut)).sort((a, b) => influence[b] - influence[a]);
    const count = features.length < all.length ? `${whole(features.length)} of ${whole(all.length)}` : whole(all.length);
    title.textContent = `Features by influence (${count})`;
    list.set(features);
    // After the graph is painted, because it takes a while in a large one.
    window.clearTimeout(this.later);
    this.later = window.setTimeout(() => this.showPaths(paths, model.topTarget), this.paths ? 0 : 60);
  }

  private leaveOutControls(): HTMLElement {
    const { pathFeatures, lastPosition, maxFiringRate } = this.leftOut;
    const set = (change: Partial<LeftOut>): void => this.store.set({ leftOut: { ...this.leftOut, ...change } });
    const within = (value: string, most: number): number => Math.min(Math.max(Number(value) || 0, 0), most);
    const last = h("input", { type: "checkbox", id: "before-last" });
    last.checked = lastPosition;
    on(last, { change: () => set({ lastPosition: last.checked }) });
    const paths = h("input", { type: "number", id: "path-features", min: 0, max: MOST_PATH_FEATURES, step: 1 });
    paths.value = String(pathFeatures);
    on(paths, { input: () => set({ pathFeatures: Math.floor(within(paths.value, MOST_PATH_FEATURES)) }), keydown: (event) => event.stopPropagation() });
    const rate = h("input", { type: "number", id: "max-firing-rate", min: 0, max: 100, step: "any" });
    rate.value = percentOf(maxFiringRate);
    on(rate, { input: () => set({ maxFiringRate: rate.value === "" ? 1 : within(rate.value, 100) / 100 }), keydown: (event) => event.stopPropagation() });
    const known = Object.values(this.model.data.cards).some((card) => card.firing_rate !== undefined);
    return h("div", { class: "left-out", role: "group", "aria-label": "Left out of the lists" },
      h("span", {}, "Leave out"),
      h("label", { title: "Features at the last position of the prompt" }, last, "last position"),
      known ? h("label", { title: "Features that fire on more than this share of the tokens that their cards were made from" }, "firing on over", rate, "%") : null,
      h("label", { title: "Paths through fewer features than this" }, "paths under", paths, "features"),
    );
  }

  private showPaths(section: HTMLElement, target: number): void {
    const { model } = this;
    const { pathFeatures, lastPosition, maxFiringRate } = this.leftOut;
    // A path whose features are all left out is trivial, too.
    const least = Math.max(pathFeatures, lastPosition || maxFiringRate < 1 ? 1 : 0);
    const counts = (node: number): boolean => !model.isLeftOut(node, this.leftOut);
    this.paths ??= target >= 0 ? strongestPaths(model.graph, model.pruned, target, 5, least, counts) : [];
    section.hidden = !this.paths.length;
    if (section.hidden) return;
    section.replaceChildren(h("h2", {}, `Strongest paths to ${model.name(target, 24)}`), ...this.paths.map((path) => this.pathRow(path)));
  }

  private notes(): HTMLElement[] {
    const { data, graph } = this.model;
    const notes = [...data.notes];
    if (data.whole.untraced)
      notes.unshift(`${whole(data.whole.untraced)} active features were not traced. The scores count them as errors and would be as high or higher with them.`);
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
