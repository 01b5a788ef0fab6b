// Puts the page together.

import { Attention } from "./attention";
import { byId } from "./dom";
import type { PageData } from "./data";
import { decode } from "./data";
import { Exporter } from "./export";
import { listenForFiles, save } from "./files";
import { FilterBar } from "./filters";
import { GraphView } from "./graph_view";
import { listenForKeys } from "./keyboard";
import { Model } from "./model";
import { fail, framed, rememberSoon } from "./page";
import { Panel } from "./panel";
import { influenceOf, prune } from "./prune";
import { nodesOf, Search } from "./search";
import { splitter } from "./splitter";
import { fromFragment, fromQParams, initialState, NO_FILTERS, Store, type State } from "./state";
import { StoryView } from "./story_view";
import { Subgraph } from "./subgraph";
import { TargetBar } from "./target_bar";
import { short, visible } from "./text";
import { Toolbar } from "./toolbar";

function start(data: PageData): { store: Store; model: Model; view: GraphView; place: (id: string) => [number, number]; story: StoryView } {
  const model = new Model(data);
  const known = (id: string): boolean => model.has(id);
  const { node, edge } = data.start;
  const initial: State = {
    ...initialState(node, edge), view: data.stories.length ? "story" : "graph", target: model.topTarget >= 0 && !data.answer.length ? model.id(model.topTarget) : "",
  };
  const store = new Store({ ...initial, ...fromQParams(data.qParams, known), ...fromFragment(location.hash, known) });
  if (data.hideTemplate && !location.hash.includes("filters=")) store.state.filters = { ...NO_FILTERS, hideTemplate: true };
  model.weigh(store.state.target);
  model.prune(store.state.nodeThreshold, store.state.edgeThreshold);
  model.filter(store.state.filters, model.node(store.state.target));

  const view = new GraphView(model, store);
  const story = new StoryView(model, store, view);
  const targets = new TargetBar(model, store);
  const panel = new Panel(model, store, view, story);
  const subgraph = new Subgraph(model, store, view);
  const toolbar = new Toolbar(model, store);
  const filters = new FilterBar(model, store);
  const search = new Search(nodesOf(model, store, view));
  if (data.attention) new Attention(model, store, view, data.attention);
  new Exporter(model, store, view, story, subgraph, say);
  splitter("panel-size", byId("panel"), "width", 260, () => innerWidth - 320);
  splitter("subgraph-size", byId("subgraph"), "height", 120, () => innerHeight - 240);
  title(model, store.state.target);

  /** Which of the two views is there. */
  function showView(): void {
    const { view: which, embed } = store.state;
    document.body.classList.toggle("embed", embed);
    byId("story").hidden = which !== "story";
    for (const id of ["graph", "corner"]) byId(id).hidden = which === "story";
    for (const name of ["story", "graph"] as const) byId(`view-${name}`).setAttribute("aria-pressed", String(which === name));
  }

  store.listen((before) => {
    const { state } = store;
    const retargeted = state.target !== before.target;
    if (retargeted) model.weigh(state.target);
    const repruned = (retargeted && model.data.answer.length > 0) || state.nodeThreshold !== before.nodeThreshold || state.edgeThreshold !== before.edgeThreshold;
    const filtered = retargeted || JSON.stringify(state.filters) !== JSON.stringify(before.filters);
    if (state.view !== before.view || state.embed !== before.embed) showView();
    if (retargeted) {
      title(model, state.target);
      targets.update();
      story.tell();
    }
    if (repruned || filtered) {
      if (repruned) model.prune(state.nodeThreshold, state.edgeThreshold);
      if (filtered) model.filter(state.filters, model.node(state.target));
      filters.update();
      toolbar.update();
      view.arrange();
      panel.pruned();
    } else {
      view.update();
      const regrouped = state.pinned !== before.pinned || state.supernodes !== before.supernodes;
      // While nothing is selected, pins change nothing in the panel.
      story.update();
      if (state.clicked !== before.clicked || state.beside !== before.beside || (regrouped && state.clicked)) panel.update();
      else if (JSON.stringify(state.leftOut) !== JSON.stringify(before.leftOut)) panel.leaveOut();
    }
    subgraph.update(before);
    if (state.clicked !== before.clicked) announce(model, story, state.clicked);
    rememberSoon(() => store.fragment());
  });
  window.addEventListener("hashchange", () => {
    if (location.hash.slice(1) !== store.fragment()) store.set(fromFragment(location.hash, known));
  });

  const turn = (): void => store.set({ view: store.state.view === "story" ? "graph" : "story" });
  byId("view-story").addEventListener("click", () => store.set({ view: "story" }));
  byId("view-graph").addEventListener("click", () => store.set({ view: "graph" }));
  byId("fit").addEventListener("click", () => view.fit());
  byId("zoom-in").addEventListener("click", () => view.zoomBy(1.5));
  byId("zoom-out").addEventListener("click", () => view.zoomBy(1 / 1.5));
  byId("save").addEventListener("click", () => save(model, store));
  byId("save").hidden = framed();
  byId("load").addEventListener("click", () => byId("load-file").click());
  listenForFiles(model, store, say);
  const clicked = (act: (id: string) => void): void => {
    if (known(store.state.clicked)) act(store.state.clicked);
  };
  listenForKeys({
    search: () => search.input.focus(),
    pin: () => clicked((id) => store.toggle(id)),
    mark: () => clicked((id) => store.mark(id)),
    group: () => {
      if (!store.marked.size) clicked((id) => store.mark(id));
      subgraph.toggle(true);
      subgraph.group();
    },
    undo: () => store.undo(),
    fit: () => view.fit(),
    zoom: (factor) => view.zoomBy(factor),
    subgraph: () => subgraph.toggle(),
    story: turn,
    escape: () => {
      store.marked.clear();
      view.showPath(null);
      store.set({ clicked: "" });
    },
  });

  showView();
  story.tell();
  toolbar.update();
  panel.update();
  subgraph.toggle(store.state.pinned.length > 0);
  byId("app").removeAttribute("aria-busy");
  const place = (id: string): [number, number] => {
    const { left, top } = view.element.getBoundingClientRect();
    const [x, y] = view.painter.screen(model.node(id));
    return [left + x, top + y];
  };
  return { store, model, view, place, story };
}

function title(model: Model, target: string): void {
  const { data } = model;
  const chosen = model.node(target), topTarget = chosen >= 0 ? chosen : model.topTarget;
  const part = model.answerPart(target), told = part.length ? part : data.answer.map((id) => model.node(id));
  const prompt = visible(model.prompt);
  byId("prompt").textContent = prompt;
  byId("prompt").title = prompt;
  if (topTarget >= 0) {
    byId("answer").textContent = told.length > 1 ? short(told.map((i) => data.nodes.label[i]).join(" "), 24) : short(data.nodes.label[topTarget], 24);
    byId("answer-share").textContent = told.length > 1 ? "" : model.chanceText(topTarget);
  }
  byId("about").textContent = [data.model, data.transcoders].filter(Boolean).map(visible).join("  ·  ");
  byId("licences-text").textContent = byId("licences").textContent;
}

function announce(model: Model, story: StoryView, clicked: string): void {
  const node = model.node(clicked), told = /^story-(\d+)$/.exec(clicked);
  byId("spoken").textContent = node >= 0 ? model.spoken(node) : told && story.story?.nodes[Number(told[1])] ? `${story.name(Number(told[1]))}, ${story.facts(Number(told[1]))}` : "";
}

let saying = 0;

function say(message: string): void {
  const element = byId("message");
  element.textContent = message;
  element.hidden = false;
  window.clearTimeout(saying);
  saying = window.setTimeout(() => (element.hidden = true), 5000);
}

// For scripts and tests: the page's own pruning, which works without a browser too; in a browser, what is on the page.
Object.assign(globalThis, {
  crosstrace: {
    prune(data: PageData, nodeThreshold: number, edgeThreshold: number) {
      const graph = decode(data);
      const influence = influenceOf(graph);
      return { graph, influence, pruned: prune(graph, influence, nodeThreshold, edgeThreshold) };
    },
  },
});

if (typeof document !== "undefined") {
  try {
    const page = start(JSON.parse(byId("data").textContent!) as PageData);
    Object.assign((globalThis as unknown as { crosstrace: object }).crosstrace, page);
  } catch (problem) {
    fail(problem);
  }
}
