// The story of one target: groups, features, tokens, and quietly what remains, some forty boxes with the shares they carry.

import { ACROSS, arranged, drawLines, type Arranged, type BoardEdge, type BoardItem } from "./board";
import type { Story, StoryNode } from "./data";
import { byId, h, on, svg } from "./dom";
import type { GraphView } from "./graph_view";
import type { Model } from "./model";
import { icon } from "./shapes";
import type { Store } from "./state";
import { percent, short } from "./text";

/** Smaller letters cannot be read: then the board scrolls. */
const LEAST_SCALE = 0.54;
const MOST_ROWS = 9, GUTTER = 62, LABELLED = 18, LEAST_LABELLED = 0.1;

/** `L3`, `L3–6`, or to the output. */
export function layerRange([low, high]: [number, number], layers: number): string {
  if (low >= layers) return "the output";
  return low === high ? `L${low}` : `L${low}–${high >= layers ? "output" : high}`;
}

export class StoryView {
  readonly element = byId("story");
  private board = byId("story-board");
  private lines = byId("story-lines") as unknown as SVGElement;
  story: Story | null = null;
  private items: BoardItem[] = [];
  private edges: BoardEdge[] = [];
  private layout: Arranged | null = null;
  private scale = 1;

  constructor(private model: Model, private store: Store, private view: GraphView) {
    new ResizeObserver(() => this.arrange()).observe(this.element);
    window.addEventListener("beforeprint", () => this.arrange({ width: 700, height: 540 }));
    window.addEventListener("afterprint", () => this.arrange());
    this.board.addEventListener("keydown", (event) => this.step(event));
  }

  /** The nodes of the graph behind a story's node. */
  members(i: number): number[] {
    return (this.story?.nodes[i]?.ids ?? []).map((id) => this.model.node(id)).filter((node) => node >= 0);
  }

  /** What to call a node of the story. */
  name(i: number): string {
    const node = this.story!.nodes[i], { model } = this;
    const [first] = this.members(i);
    if (node.kind === "feature" || node.kind === "target" || node.kind === "token") return first === undefined ? node.name : model.name(first, 60);
    if (node.kind === "error") return "unexplained";
    return node.name;
  }

  /** Where and how large it is, in a few words. */
  facts(i: number): string {
    const node = this.story!.nodes[i], { model } = this;
    const layers = layerRange(node.layers, model.data.layers), passing = percent(Number(node.influence.toPrecision(3)));
    switch (node.kind) {
      case "token": return `${passing} enters`;
      case "target": return model.chanceText(this.members(i)[0]) && `p ${model.chanceText(this.members(i)[0])}`;
      case "error": return `errors · ${passing}`;
      case "feature": return `${model.label(this.members(i)[0]) ? `${model.number(this.members(i)[0])} · ` : ""}${passing}`;
      case "rest": return `${layers} · ${passing}`;
      default: return `${layers} · ${node.ids.length} features · ${passing}`;
    }
  }

  /** After the target has changed. */
  tell(): void {
    const { model, store } = this;
    this.story = model.story(model.answerPart(store.state.target)[0] ?? model.node(store.state.target));
    const { story } = this;
    const most = Math.max(...(story?.nodes ?? []).filter((node) => node.kind !== "target").map((node) => node.influence), 1e-9);
    const perRow = Math.ceil(model.data.layers / MOST_ROWS);
    const row = (node: StoryNode): number =>
      node.kind === "token" ? -2 : node.kind === "error" ? -1 : node.kind === "target" ? MOST_ROWS + 1 : Math.floor(Math.round(node.layer) / perRow);
    this.items = (story?.nodes ?? []).map((node, i) => ({
      id: this.clickedAs(i), row: row(node), column: node.position, name: this.name(i), element: this.box(node, i, most),
    }));
    const labelled = Math.max((story?.edges ?? []).map((edge) => edge[3]).sort((a, b) => b - a)[LABELLED - 1] ?? 0, LEAST_LABELLED);
    this.edges = (story?.edges ?? []).map(([from, to, weight, share]) => ({
      from: this.items[from], to: this.items[to], weight, strength: share,
      label: share >= labelled ? `${Math.round(100 * share)}%` : "", about: `${percent(share)} of its input`,
    }));
    this.board.replaceChildren(this.lines, ...this.items.map((item) => item.element));
    byId("story-said").replaceChildren(...this.sentences().map((text) => h("span", {}, text, " ")));
    this.arrange();
    this.update();
  }

  /** What its box selects: the node itself, or the story's node. */
  private clickedAs(i: number): string {
    const node = this.story!.nodes[i];
    return node.ids.length === 1 ? node.ids[0] : `story-${i}`;
  }

  private box(node: StoryNode, i: number, most: number): HTMLElement {
    const members = this.members(i);
    const kind = { token: "token", feature: "feature", group: "feature", rest: "rest", error: "error", target: "logit" }[node.kind];
    const name = this.name(i), facts = this.facts(i);
    const box = h("button", { type: "button", class: `box ${kind} ${node.kind === "group" ? "group" : ""}`, "data-id": this.clickedAs(i), title: `${name}\n${facts}`, "aria-label": `${name}, ${facts}, at ${this.model.token(node.position)}` },
      h("span", { class: "box-name", dir: "auto" }, short(name, 44)), h("span", { class: "box-facts" }, facts));
    // The more influence, the larger; the target is always large.
    const size = node.kind === "target" ? 1 : node.kind === "rest" || node.kind === "error" ? 0 : Math.sqrt(Math.min(node.influence / most, 1));
    box.style.setProperty("--size", size.toFixed(3));
    return on(box, {
      click: () => this.store.set({ clicked: this.clickedAs(i) }),
      mouseenter: () => this.follow(i),
      mouseleave: () => this.follow(-1),
      focus: () => this.follow(i),
      blur: () => this.follow(-1),
      dblclick: () => members.length && (members.length > 1 ? this.store.group(name, members.map((member) => this.model.id(member))) : this.store.pin(this.model.id(members[0]))),
    });
  }

  /** Selects a node of the story, and moves the focus there. */
  select(i: number): void {
    this.store.set({ clicked: this.clickedAs(i) });
  }

  /** Dims what does not touch a box. */
  private follow(i: number): void {
    const own = i < 0 ? "" : this.items[i]?.id;
    this.board.classList.toggle("following", i >= 0);
    const near = new Set([own]);
    for (const line of this.lines.querySelectorAll<SVGElement>("path")) {
      const touches = line.dataset.source === own || line.dataset.target === own;
      line.classList.toggle("near", touches);
      if (touches) near.add(line.dataset.source!).add(line.dataset.target!);
    }
    for (const item of this.items) item.element.classList.toggle("near", near.has(item.id));
    this.view.showFound(i < 0 ? [] : this.members(i));
  }

  /** What is selected. */
  update(): void {
    const { clicked } = this.store.state;
    for (const [i, item] of this.items.entries())
      item.element.classList.toggle("selected", item.id === clicked || (!!clicked && this.story!.nodes[i].ids.includes(clicked)));
  }

  private step(event: KeyboardEvent): void {
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    const from = this.items.find((item) => item.element === document.activeElement);
    if (!way || !from || !this.layout) return;
    event.preventDefault();
    event.stopPropagation();
    const middle = (item: BoardItem): [number, number] => {
      const place = this.layout!.places.get(item)!;
      return [place.x + place.width / 2, place.y + place.height / 2];
    };
    const [x, y] = middle(from);
    let best: BoardItem | null = null, least = Infinity;
    for (const item of this.items) {
      const [dx, dy] = [middle(item)[0] - x, middle(item)[1] - y];
      const ahead = dx * way[0] + dy * way[1], aside = Math.abs(way[0] ? dy : dx);
      if (item !== from && ahead > 1 && ahead + 2 * aside < least) [best, least] = [item, ahead + 2 * aside];
    }
    best?.element.focus();
  }

  arrange(room?: { width: number; height: number }): void {
    const { board } = this;
    const width = room?.width ?? this.element.clientWidth, height = room?.height ?? byId("story-room").clientHeight;
    if (!this.items.length || !width) return;
    board.style.transform = board.style.zoom = "";
    // Boxes are measured as they are; the whole is then made to fit, as long as its letters can be read.
    // First as they are, then narrower, then in taller cells: what needs to shrink least is taken, what needs not to at once.
    let across = ACROSS, tight = false;
    this.scale = 0;
    for (const [few, narrow] of [[ACROSS, false], [2, false], [ACROSS, true], [2, true], [1, true]] as const) {
      board.classList.toggle("tight", narrow);
      const natural = arranged(this.items, { width: 0, height: 0 }, GUTTER, few);
      const scale = Math.min(1, width / natural.width, height / natural.height);
      if (scale > this.scale * 1.05) [this.scale, across, tight] = [scale, few, narrow];
      if (this.scale >= 0.95) break;
    }
    board.classList.toggle("tight", tight);
    this.scale = Math.max(this.scale, room ? 0.3 : LEAST_SCALE);
    this.layout = arranged(this.items, { width: width / this.scale, height: height / this.scale }, GUTTER, across);
    const { places, rows } = this.layout;
    board.style.width = `${this.layout.width}px`;
    board.style.height = `${this.layout.height}px`;
    // Paper is cut into pages by the sizes before a transform, so boxes would land on the next page: there the sizes change.
    if (this.scale < 1 && room) board.style.zoom = String(this.scale);
    else if (this.scale < 1) board.style.transform = `scale(${this.scale})`;
    const frame = byId("story-frame");
    frame.style.width = `${this.layout.width * this.scale}px`;
    frame.style.height = `${this.layout.height * this.scale}px`;
    for (const [item, place] of places) {
      item.element.style.left = `${place.x}px`;
      item.element.style.top = `${place.y}px`;
    }
    drawLines(this.lines, this.edges, places);
    // The answer stands at the right end, and is in view.
    byId("story-room").scrollLeft = this.layout.width;
    for (const band of rows) {
      const name = svg("text", { x: 4, y: ((band.top + band.bottom) / 2 + 4).toFixed(1), class: "row-name" });
      name.textContent = this.rowName(band.row);
      this.lines.append(name);
    }
  }

  rowName(row: number): string {
    const { layers } = this.model.data, perRow = Math.ceil(layers / MOST_ROWS);
    if (row < 0) return row < -1 ? "tokens" : "errors";
    if (row > MOST_ROWS) return "output";
    return layerRange([row * perRow, Math.min((row + 1) * perRow, layers) - 1], layers);
  }

  /** The story in words. */
  sentences(): string[] {
    const { story, model } = this;
    if (!story) return ["This page was made from a file that holds no story: see all nodes."];
    const order = story.entering.map((share, p) => ({ share, p })).sort((a, b) => b.share - a.share).filter(({ share }) => share >= 0.01).slice(0, 3);
    const enters = order.map(({ share, p }) => `${percent(share)} at ${short(model.token(p), 16)}`).join(", ");
    const target = model.name(model.node(story.target), 24);
    return [
      `Of the influence on ${target}${model.data.onlyKept ? ", as far as pruning kept it," : ""} ${enters ? `${enters.replace("%", "% enters")};` : ""} ${percent(story.unexplained)} is unexplained (errors).`,
      `Left out: ${story.leftOut.toLocaleString("en-US")} weaker features (shown: ${percent(story.covered)} of all features' influence) and ${story.cutEdges.toLocaleString("en-US")} weaker edges.`,
    ];
  }

  /** Boxes and lines where they stand, for an export. */
  get drawn(): { items: BoardItem[]; edges: BoardEdge[]; layout: Arranged } | null {
    return this.layout && { items: this.items, edges: this.edges, layout: this.layout };
  }

  /** Legend of the kinds of boxes. */
  static legend(): HTMLElement[] {
    return (["feature", "token", "logit"] as const).map((kind) => h("span", {}, icon(kind), kind === "feature" ? "group or feature" : kind === "logit" ? "output" : "token"));
  }
}
