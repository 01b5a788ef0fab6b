// Puts the page of a comparison together: two graphs, one panel; what is selected in one is found in the other.

import { ComparePanel } from "./compare_panel";
import { byId, h } from "./dom";
import { GraphView } from "./graph_view";
import { listenForKeys } from "./keyboard";
import { Pair, type ComparisonData, type Place, type Side } from "./pair";
import { fail, rememberSoon } from "./page";
import { Search } from "./search";
import { icon } from "./shapes";
import { short, visible, whole } from "./text";
import { Sliders } from "./toolbar";

function start(data: ComparisonData): object {
  const saved = new URLSearchParams(location.hash.slice(1));
  const share = (name: string, otherwise: number): number => {
    const value = Number(saved.get(name) ?? NaN);
    return value >= 0 && value <= 1 ? value : otherwise;
  };
  const begin = data.graphs[0].start;
  let nodeThreshold = share("pruningThreshold", begin.node), edgeThreshold = share("edgeThreshold", begin.edge);
  let stacked = saved.get("arrangement") === "stacked";
  let selected: Place | null = null;
  const pair = new Pair(data, nodeThreshold, edgeThreshold);
  const panel = new ComparePanel(pair, { select: (place) => select(place), hint: (place) => hint(place) });
  for (const side of pair.sides) {
    const pane = byId(side.number === 0 ? "pane-a" : "pane-b");
    side.view = new GraphView(side.model, side.store, {
      element: pane.querySelector<HTMLElement>(".graph")!,
      rows: () => pair.rows(),
      look: (node) => pair.look({ side: side.number, node }),
      hovering: (node) => showPartner(side, node),
      plain: true,
    });
    side.store.listen((before) => {
      if (side.store.state.clicked === before.clicked) return;
      const node = side.model.node(side.store.state.clicked);
      select(node < 0 ? null : { side: side.number, node });
    });
  }
  const sliders = new Sliders(Math.min(...data.graphs.map((graph) => graph.start.nodeLimit)), (node, edge) => {
    [nodeThreshold, edgeThreshold] = [node, edge];
    for (const { model } of pair.sides) model.prune(node, edge);
    for (const { view } of pair.sides) view.arrange();
    show();
    panel.update(selected);
  });

  function partner(side: Side, node: number): number {
    return node < 0 ? -1 : pair.both({ side: side.number, node })[1 - side.number];
  }

  function showPartner(side: Side, node: number): void {
    pair.other(side.number).view.hint(partner(side, node));
  }

  function hint(place: Place | null): void {
    const both = place ? pair.both(place) : [-1, -1];
    pair.sides.forEach((side) => side.view.hint(both[side.number]));
  }

  let selecting = false;

  /** Selects a node, and in the other graph the node that it is there. */
  function select(place: Place | null): void {
    if (selecting) return;
    selecting = true;
    selected = place;
    const both = place ? pair.both(place) : [-1, -1];
    for (const { number, model, store, view } of pair.sides) {
      store.set({ clicked: both[number] < 0 ? "" : model.id(both[number]) });
      view.update();
      if (both[number] >= 0) view.reveal(both[number]);
    }
    selecting = false;
    hint(null);
    panel.update(selected);
    byId("spoken").textContent = place ? `${pair.sides[place.side].model.spoken(place.node)}. ${pair.elsewhere(place)}` : "";
    remember();
  }

  function remember(): void {
    const parts = new URLSearchParams();
    if (selected) parts.set(selected.side === 0 ? "clickedA" : "clickedB", pair.sides[selected.side].model.id(selected.node));
    parts.set("pruningThreshold", String(nodeThreshold));
    parts.set("edgeThreshold", String(edgeThreshold));
    if (stacked) parts.set("arrangement", "stacked");
    rememberSoon(() => parts.toString());
  }

  function show(): void {
    sliders.show(nodeThreshold, edgeThreshold);
    byId("panes").classList.toggle("stacked", stacked);
    byId("turn").textContent = stacked ? "Side by side" : "Stacked";
    const counts = pair.sides.map(({ name, model }) => `${short(name, 12)} ${whole(model.shown.length)} nodes, ${whole(model.pruned.edges.length)} edges`);
    byId("counts").textContent = counts.join("  ·  ");
    const features = pair.shown("feature").map((both) => pair.placeOf(both));
    const only = (side: number): number => features.filter((place) => place.side === side && !pair.isShared(place)).length;
    const shared = features.filter((place) => pair.kindOf(place) === "shared").length;
    const untraced = features.filter((place) => pair.kindOf(place) === "untraced").length;
    byId("shared-count").textContent = whole(shared) + (untraced ? ` (and ${whole(untraced)} not traced in both)` : "");
    byId("only-a-count").textContent = whole(only(0));
    byId("only-b-count").textContent = whole(only(1));
    remember();
  }

  function turn(): void {
    stacked = !stacked;
    show();
  }

  byId("turn").addEventListener("click", turn);
  const search = new Search<Place>({
    search: (query) => pair.sides.flatMap(({ number: side, model }) =>
      model.search(query).map((node) => ({ side, node })).filter((place) => side === 0 || !pair.sides[0].isShown(pair.both(place)[0]))),
    mark: (found) => pair.sides.forEach((side) => side.view.showFound(found.map((place) => pair.both(place)[side.number]).filter((node) => node >= 0))),
    hint,
    row: (place) => {
      const { model } = pair.sides[place.side], { shape, tone } = pair.look(place);
      return h("button", { type: "button", class: "neighbour", "data-id": model.id(place.node) }, icon(shape, tone) as unknown as HTMLElement,
        h("span", { class: "name", dir: "auto" }, model.name(place.node)), h("span", { class: "place", dir: "auto" }, model.place(place.node)));
    },
    choose: (place) => select(place),
    leave: () => pair.sides[selected?.side ?? 0].view.element.focus(),
  });
  listenForKeys({
    search: () => search.input.focus(),
    fit: () => pair.sides.forEach((side) => side.view.fit()),
    zoom: (factor) => pair.sides.forEach((side) => side.view.zoomBy(factor)),
    turn,
    escape: () => select(null),
  });

  titles(pair);
  show();
  for (const [name, side] of [["clickedA", pair.sides[0]], ["clickedB", pair.sides[1]]] as const) {
    const node = side.model.node(saved.get(name) ?? "");
    if (node >= 0) select({ side: side.number, node });
  }
  panel.update(selected);
  byId("app").removeAttribute("aria-busy");
  return {
    pair, select,
    place(side: number, id: string): [number, number] {
      const { view, model } = pair.sides[side];
      const { left, top } = view.element.getBoundingClientRect();
      const [x, y] = view.painter.screen(model.node(id));
      return [left + x, top + y];
    },
  };
}

function titles(pair: Pair): void {
  for (const { number, name, model } of pair.sides) {
    const pane = byId(number === 0 ? "pane-a" : "pane-b");
    const prompt = visible(model.data.prompt.replace(/^<bos>/, "")).trim() || visible(model.data.tokens.join(""));
    const part = (selector: string): HTMLElement => pane.querySelector<HTMLElement>(selector)!;
    part(".pane-name").textContent = short(name, 24);
    part(".prompt").textContent = prompt;
    part(".prompt").title = prompt;
    if (model.topTarget < 0) continue;
    part(".answer").textContent = short(model.data.nodes.label[model.topTarget], 24);
    part(".answer-share").textContent = model.chanceText(model.topTarget);
  }
  const [a, b] = pair.sides;
  byId("about").textContent = [a.model.data.model, a.model.data.transcoders].filter(Boolean).map(visible).join("  ·  ");
  byId("only-a-name").textContent = `only ${short(a.name, 12)}`;
  byId("only-b-name").textContent = `only ${short(b.name, 12)}`;
  byId("licences-text").textContent = byId("licences").textContent;
}

if (typeof document !== "undefined") {
  try {
    Object.assign(globalThis, { crosstrace: start(JSON.parse(byId("data").textContent!) as ComparisonData) });
  } catch (problem) {
    fail(problem);
  }
}
