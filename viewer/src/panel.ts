// The panel: about the whole graph while nothing is selected, otherwise the card and edges of the node or group.

import { featureCard } from "./card";
import { EdgeTools, sorted, type FeatureSort } from "./list_tools";
import { button, byId, h, on } from "./dom";
import type { GraphView } from "./graph_view";
import { List } from "./list";
import type { Model, Neighbour } from "./model";
import { strongestPaths, trivialShare, type Path } from "./paths";
import { icon } from "./shapes";
import { MOST_PATH_FEATURES, NOTHING_LEFT_OUT, type LeftOut, type Store } from "./state";
import { layerRange, type StoryView } from "./story_view";
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
  private tools = new EdgeTools(() => this.update());
  private featureSort: FeatureSort = "influence";
  /** "", "p3" or "l5": only paths through a feature at that position or in that layer. */
  private through = "";
  private trivial = 0;

  constructor(private model: Model, private store: Store, private view: GraphView, private story: StoryView) {}

  /** The target that is told of. */
  private get target(): number {
    const chosen = this.model.node(this.store.state.target);
    return chosen >= 0 ? chosen : this.model.topTarget;
  }

  /** After pruning: paths and lists have changed. */
  pruned(): void {
    this.paths = null;
    this.update();
  }

  update(): void {
    const { clicked } = this.store.state;
    const group = /^supernode-(\d+)$/.exec(clicked);
    const node = this.model.node(clicked);
    const told = /^story-(\d+)$/.exec(clicked);
    if (told && this.story.story?.nodes[Number(told[1])]) this.showStoryNode(Number(told[1]));
    else if (group && this.store.state.supernodes[Number(group[1])]) this.showGroup(Number(group[1]));
    else if (node >= 0) this.showNode(node);
    else this.showOverview();
  }

  private replace(...parts: (HTMLElement | null)[]): void {
    this.overview = null;
    this.element.classList.remove("two");
    this.element.replaceChildren(...parts.filter((part): part is HTMLElement => part !== null));
  }

  private showOverview(): void {
    const { model } = this;
    const paths = h("section", {});
    const list = new List<number>("Strongest features", ROW, (node) => this.featureRow(node));
    const title = h("h2", { class: "list-title" });
    const order = h("select", { id: "feature-sort", "aria-label": "Order of the features" },
      ...(["influence", "layer", "activation"] as const).map((value) => h("option", { value }, `by ${value}`)));
    order.value = this.featureSort;
    on(order, {
      change: () => {
        this.featureSort = order.value as FeatureSort;
        this.fill();
      },
      keydown: (event) => event.stopPropagation(),
    });
    const outputs = model.shown.filter((node) => model.kind(node) === "logit").sort((a, b) => model.probability(b) - model.probability(a));
    this.replace(
      h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Outputs, flow and paths" },
        h("section", {}, h("h2", {}, "Output"), ...outputs.slice(0, 6).map((node) => this.outputRow(node))),
        this.flow(),
        paths,
        ...this.notes(),
      ),
      this.leaveOutControls(),
      h("div", { class: "list-head" }, title, order),
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
    const by: Record<FeatureSort, (a: number, b: number) => number> = {
      influence: (a, b) => influence[b] - influence[a],
      layer: (a, b) => model.layer(a) - model.layer(b) || influence[b] - influence[a],
      activation: (a, b) => (model.activation(b) ?? 0) - (model.activation(a) ?? 0),
    };
    const features = all.filter((node) => !model.isLeftOut(node, leftOut)).sort(by[this.featureSort]);
    const count = features.length < all.length ? `${whole(features.length)} of ${whole(all.length)}` : whole(all.length);
    title.textContent = `Features (${count})`;
    list.set(features);
    // After the graph is painted and a slider is at rest, because it takes a while in a large one.
    window.clearTimeout(this.later);
    this.later = window.setTimeout(() => this.showPaths(paths, this.target), this.paths ? 0 : 200);
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
    const last = target >= 0 ? model.position(target) : -1;
    const isFeature = (node: number): boolean => model.kind(node) === "feature";
    if (!this.paths && target >= 0) {
      const wanted = Number(this.through.slice(1));
      if (this.through) {
        const at = this.through[0] === "p" ? (node: number) => model.position(node) === wanted : (node: number) => model.layer(node) === wanted;
        this.paths = strongestPaths(model.graph, model.edges, target, 5, 1, (node) => (isFeature(node) && at(node) ? 1 : 0));
      } else if (least) this.paths = strongestPaths(model.graph, model.edges, target, 5, least, (node) => (isFeature(node) && !model.isLeftOut(node, this.leftOut) ? 1 : 0));
      // A path says something if it has two features, or one elsewhere than where the output is read.
      else this.paths = strongestPaths(model.graph, model.edges, target, 5, 2, (node) => (isFeature(node) ? (model.position(node) === last ? 1 : 2) : 0));
      this.trivial = trivialShare(model.graph, model.edges, target, (node) => model.position(node) === last);
    }
    this.paths ??= [];
    section.hidden = target < 0;
    if (section.hidden) return;
    const through = h("select", { id: "paths-through", "aria-label": "Paths through" }, h("option", { value: "" }, "all that say something"),
      ...model.data.tokens.map((_, p) => h("option", { value: `p${p}` }, `through ${short(model.token(p), 16)}`)).slice(0, 200),
      ...Array.from({ length: model.data.layers }, (_, l) => h("option", { value: `l${l}` }, `through L${l}`)));
    through.value = this.through;
    on(through, {
      change: () => {
        this.through = through.value;
        this.paths = null;
        this.showPaths(section, target);
        document.getElementById("paths-through")?.focus();
      },
      keydown: (event) => event.stopPropagation(),
    });
    section.replaceChildren(
      h("div", { class: "list-head" }, h("h2", {}, `Strongest paths to ${model.name(target, 24)}`), through),
      ...(this.paths.length ? this.paths.map((path) => this.pathRow(path)) : [h("p", { class: "note" }, "None at these thresholds.")]),
      h("p", { class: "facts", id: "trivial" }, `Token → output, and token → one feature at the end → output, together ${percent(this.trivial)}.`),
    );
  }

  /** How much of the answer's influence enters at which token, and moves where, in which layers. */
  private flow(): HTMLElement | null {
    const { model } = this, { story } = this.story;
    if (!story) return null;
    const { layers } = model.data;
    const moves = (p: number): string =>
      story.moves.filter(([from]) => from === p).slice(0, 2).map(([, to, share, low, high]) => `${short(model.token(to), 12)} ${percent(share)} (${layerRange([low, high], layers)})`).join(", ");
    const rows = story.entering.map((enters, p) => ({ p, enters, lost: story.lost[p] ?? 0 })).filter(({ p, enters, lost }) => enters + lost >= 0.01 || moves(p));
    const most = [...rows].sort((a, b) => b.enters + b.lost - (a.enters + a.lost)).slice(0, 12);
    const cells = rows.filter((row) => most.includes(row)).map(({ p, enters, lost }) =>
      h("tr", {}, h("th", { scope: "row", dir: "auto" }, short(model.token(p), 14)), h("td", {}, percent(Number(enters.toPrecision(3)))), h("td", {}, percent(Number(lost.toPrecision(3)))), h("td", { class: "moves", dir: "auto" }, moves(p))));
    return h("section", { id: "flow" }, h("h2", {}, "Flow of influence"),
      h("table", {}, h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "at"), h("th", { scope: "col" }, "enters"), h("th", { scope: "col" }, "errors"), h("th", { scope: "col", class: "moves" }, "moves to (where it is read)"))), h("tbody", {}, ...cells)),
      h("p", { class: "facts" }, `${percent(story.unexplained)}${model.data.onlyKept ? " of what pruning kept" : ""} is unexplained: it ends in errors.`));
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
    const beside = button("Compare", "Keep this card beside the next one", () => store.set({ beside: id }));
    beside.id = "keep-beside";
    const other = model.node(store.state.beside);
    this.replace(
      h("div", { class: "head" },
        h("div", { class: "title" }, icon(kind), h("h2", { dir: "auto" }, model.name(node, 120))),
        h("div", { class: "actions" }, kind === "feature" && other < 0 ? beside : null, pin, button("✕", "Close (Esc)", () => store.set({ clicked: "" }), "quiet")),
      ),
      h("p", { class: "where", dir: "auto" }, where, group >= 0 ? ` · in ${visible(store.state.supernodes[group].name)}` : null),
      h("dl", { class: "facts" }, ...facts.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)))),
      model.isShown(node) ? null : h("p", { class: "note" }, "Below the thresholds: not shown in the graph."),
      this.cards(node, other),
      this.pathsThrough([node]),
      ...this.edgeLists(model.feeders(node), model.fed(node)),
    );
    this.element.classList.toggle("two", other >= 0 && other !== node);
  }

  /** The card, and beside it the one that was kept. */
  private cards(node: number, other: number): HTMLElement | null {
    const own = this.cardOf(node);
    if (other < 0 || other === node) {
      if (other === node) own?.prepend(h("p", { class: "note" }, "Select another feature to see both cards side by side."));
      return own;
    }
    const { model } = this;
    const one = (shown: number, card: HTMLElement | null): HTMLElement => h("div", { class: "column" },
      h("h3", { dir: "auto" }, `${model.name(shown, 60)} `, h("span", { class: "place" }, model.place(shown))), card ?? h("p", { class: "note" }, "No card."));
    const end = button("End comparison", "Show one card again", () => this.store.set({ beside: "" }));
    end.id = "end-beside";
    return h("div", { class: "pair-of-cards" }, end, h("div", { class: "columns" }, one(other, this.cardOf(other)), one(node, own)));
  }

  private cardOf(node: number): HTMLElement | null {
    const parts = featureCard(this.model, node);
    return parts.length ? h("div", { class: "card scroll", tabindex: 0, role: "region", "aria-label": `Card of ${this.model.name(node)}` }, ...parts) : null;
  }

  /** The strongest paths to the target through any of some nodes. */
  private pathsThrough(nodes: number[]): HTMLElement | null {
    const { model, target } = this, inside = new Set(nodes.filter((node) => model.isShown(node) && model.kind(node) === "feature"));
    if (target < 0 || !inside.size) return null;
    const section = h("section", { class: "through" });
    // After the panel is shown, because it takes a while in a large graph.
    window.setTimeout(() => {
      if (!section.isConnected) return;
      const found = strongestPaths(model.graph, model.edges, target, 3, 1, (node) => (inside.has(node) ? 1 : 0));
      if (found.length) section.replaceChildren(h("h3", {}, "Strongest paths through it"), ...found.map((path) => this.pathRow(path)));
    }, 30);
    return section;
  }

  private edgeLists(into: Neighbour[], outOf: Neighbour[]): (HTMLElement | null)[] {
    const lists = [...this.edges("Fed by", into), ...this.edges("Feeds", outOf)];
    return lists.length ? [this.tools.element(), ...lists] : [];
  }

  /** A heading and the list under it. */
  private edges(title: string, list: Neighbour[]): HTMLElement[] {
    if (!list.length) return [];
    const most = Math.abs(list[0].weight);
    const shown = sorted(list, this.tools, this.model);
    const sum = list.reduce((total, { weight }) => total + weight, 0);
    const rows = new List<Neighbour>(title, ROW, (entry) => this.edgeRow(entry, most));
    rows.element.id = title === "Feeds" ? "feeds" : "fed-by";
    queueMicrotask(() => rows.set(shown));
    const count = shown.length < list.length ? `${whole(shown.length)} of ${whole(list.length)}` : whole(list.length);
    return [h("h3", { class: "list-title" }, `${title} (${count})`, h("span", { class: "number", title: "Sum" }, signed(sum))), rows.element];
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
      this.pathsThrough(members),
      ...this.edgeLists(model.edgesOfGroup(members, true), model.edgesOfGroup(members, false)),
    );
    list.set(members);
  }

  /** A group, a remainder or the errors of a position, as the story draws them. */
  private showStoryNode(i: number): void {
    const { model, store, story } = this;
    const node = story.story!.nodes[i], members = story.members(i), influence = model.influence.values;
    const ids = members.map((member) => model.id(member));
    const list = new List<number>("Members", ROW, (member) => this.featureRow(member));
    const pin = button("To subgraph", "Add it to the subgraph as a group", () => store.group(story.name(i), ids));
    pin.id = "pin";
    const own = new Set(members);
    const flows = (incoming: boolean): HTMLElement[] => {
      const rows = story.story!.edges.filter(([from, to]) => (incoming ? to : from) === i).sort((a, b) => b[3] - a[3]);
      return rows.map(([from, to, weight, share]) => {
        const other = incoming ? from : to;
        return on(h("button", { type: "button", class: "neighbour" }, h("span", { class: "name", dir: "auto" }, story.name(other)),
          h("span", { class: "place", dir: "auto" }, `${model.token(story.story!.nodes[other].position)} · ${signed(weight)}`), h("span", { class: `number ${weight > 0 ? "plus" : "minus"}` }, percent(share))),
        { click: () => story.select(other) });
      });
    };
    const fedBy = flows(true), feeds = flows(false);
    this.replace(
      h("div", { class: "head" }, h("div", { class: "title" }, h("h2", { dir: "auto" }, story.name(i))), h("div", { class: "actions" }, node.kind === "group" ? pin : null,
        button("✕", "Close (Esc)", () => store.set({ clicked: "" }), "quiet"))),
      h("p", { class: "where" }, `${story.facts(i)} · at ${short(model.token(node.position))}`),
      h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Edges in the story" },
        fedBy.length ? h("section", {}, h("h3", {}, "Fed by, with the share of what it receives"), ...fedBy) : null,
        feeds.length ? h("section", {}, h("h3", {}, "Feeds, with the share of what that receives"), ...feeds) : null,
        node.kind === "group" ? this.pathsThrough([...own]) : null),
      h("h3", { class: "list-title" }, `Members (${whole(members.length)})`),
      list.element,
    );
    list.set(members.sort((a, b) => influence[b] - influence[a]));
  }
}
