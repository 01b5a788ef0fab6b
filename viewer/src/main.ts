// Puts the page together.

import { Attention } from "./attention";
import { byId } from "./dom";
import type { PageData } from "./data";
import { decode } from "./data";
import { listenForFiles, save } from "./files";
import { GraphView } from "./graph_view";
import { listenForKeys } from "./keyboard";
import { Model } from "./model";
import { fail, framed, rememberSoon } from "./page";
import { Panel } from "./panel";
import { influenceOf, prune } from "./prune";
import { nodesOf, Search } from "./search";
import { fromFragment, fromQParams, Store, type State } from "./state";
import { Subgraph } from "./subgraph";
import { short, visible } from "./text";
import { Toolbar } from "./toolbar";

function start(data: PageData): { store: Store; model: Model; place: (id: string) => [number, number] } {
  const model = new Model(data);
  const known = (id: string): boolean => model.has(id);
  const { node, edge } = data.start;
  const initial: State = { pinned: [], supernodes: [], clicked: "", positions: {}, nodeThreshold: node, edgeThreshold: edge };
  const store = new Store({ ...initial, ...fromQParams(data.qParams, known), ...fromFragment(location.hash, known) });
  model.prune(store.state.nodeThreshold, store.state.edgeThreshold);

  const view = new GraphView(model, store);
  const panel = new Panel(model, store, view);
  const subgraph = new Subgraph(model, store, view);
  const toolbar = new Toolbar(model, store);
  const search = new Search(nodesOf(model, store, view));
  if (data.attention) new Attention(model, store, view, data.attention);
  title(model);

  store.listen((before) => {
    const { state } = store;
    const repruned = state.nodeThreshold !== before.nodeThreshold || state.edgeThreshold !== before.edgeThreshold;
    if (repruned) {
      model.prune(state.nodeThreshold, state.edgeThreshold);
      toolbar.update();
      view.arrange();
      panel.pruned();
    } else {
      view.update();
      const regrouped = state.pinned !== before.pinned || state.supernodes !== before.supernodes;
      // While nothing is selected, pins change nothing in the panel.
      if (state.clicked !== before.clicked || (regrouped && state.clicked)) panel.update();
      else if (JSON.stringify(state.leftOut) !== JSON.stringify(before.leftOut)) panel.leaveOut();
    }
    subgraph.update(before);
    if (state.clicked !== before.clicked) announce(model, state.clicked);
    rememberSoon(() => store.fragment());
  });
  window.addEventListener("hashchange", () => {
    if (location.hash.slice(1) !== store.fragment()) store.set(fromFragment(location.hash, known));
  });

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
    escape: () => {
      store.marked.clear();
      view.showPath(null);
      store.set({ clicked: "" });
    },
  });

  toolbar.update();
  panel.update();
  subgraph.toggle(store.state.pinned.length > 0);
  byId("app").removeAttribute("aria-busy");
  const place = (id: string): [number, number] => {
    const { left, top } = view.element.getBoundingClientRect();
    const [x, y] = view.painter.screen(model.node(id));
    return [left + x, top + y];
  };
  return { store, model, place };
}

function title(model: Model): void {
  const { data, topTarget } = model;
  const prompt = visible(data.prompt.replace(/^<bos>/, "")).trim() || visible(data.tokens.join(""));
  byId("prompt").textContent = prompt;
  byId("prompt").title = prompt;
  if (topTarget >= 0) {
    byId("answer").textContent = short(data.nodes.label[topTarget], 24);
    byId("answer-share").textContent = model.chanceText(topTarget);
  }
  byId("about").textContent = [data.model, data.transcoders].filter(Boolean).map(visible).join("  ·  ");
  byId("licences-text").textContent = byId("licences").textContent;
}

function announce(model: Model, clicked: string): void {
  const node = model.node(clicked);
  byId("spoken").textContent = node >= 0 ? model.spoken(node) : "";
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
