// The graph's part of the page: zoom, hovering, clicking, moving from node to node with the arrow keys.

import { select, type Selection } from "d3-selection";
import { zoom, zoomIdentity, type D3ZoomEvent, type ZoomBehavior } from "d3-zoom";
import { byId } from "./dom";
import { arrange } from "./layout";
import type { Model } from "./model";
import { GUTTER, Painter, TOP } from "./painter";
import type { Look } from "./shapes";
import type { Store } from "./state";
import { readTheme } from "./theme";
import { tip } from "./tip";

export interface ViewOptions {
  /** Holds the three canvases. */
  element?: HTMLElement;
  look?: (node: number) => Look;
  /** Rows to keep even without nodes. */
  rows?: () => number[];
  /** Called with the node under the pointer, -1 for none. */
  hovering?: (node: number) => void;
  /** Without pins and marks, where there is no subgraph for them. */
  plain?: boolean;
}

export class GraphView {
  readonly element: HTMLElement;
  readonly painter: Painter;
  private zoom: ZoomBehavior<HTMLElement, unknown>;
  private selection: Selection<HTMLElement, unknown, null, undefined>;
  private hovered = -1;
  private hinted = -1;
  private path: number[] | null = null;
  private found: number[] = [];
  private frame = 0;
  private settle = 0;
  private moved = false;
  private pending = { edges: false, nodes: false, moving: false };

  constructor(private model: Model, private store: Store, private options: ViewOptions = {}) {
    this.element = options.element ?? byId("graph");
    this.painter = new Painter(model, [...this.element.querySelectorAll("canvas")], options.look);
    this.painter.theme = readTheme();
    this.painter.transform = zoomIdentity;
    this.selection = select(this.element);
    this.zoom = zoom<HTMLElement, unknown>()
      .scaleExtent([0.5, 40])
      .clickDistance(4)
      .filter((event: Event & { ctrlKey: boolean; button: number }) => (!event.ctrlKey || event.type === "wheel") && !event.button)
      .on("zoom", (event: D3ZoomEvent<HTMLElement, unknown>) => this.zoomed(event));
    this.selection.call(this.zoom).on("dblclick.zoom", null);
    this.listen();
    new ResizeObserver(() => this.resized()).observe(this.element);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
      this.painter.theme = readTheme();
      this.redraw();
    });
  }

  private resized(): void {
    const { clientWidth, clientHeight } = this.element;
    if (!clientWidth || !clientHeight) return;
    if (clientWidth === this.painter.width && clientHeight === this.painter.height) return;
    this.painter.resize(clientWidth, clientHeight);
    this.arrange();
  }

  /** Places the shown nodes again, after pruning or resizing. */
  arrange(): void {
    if (!this.painter.width) return;
    this.painter.layout = arrange(this.model, this.painter.area, this.painter.texts, this.options.rows?.());
    const { width, height } = this.painter.layout, area = this.painter.area;
    const least = Math.min(1, area.width / width, area.height / height);
    this.zoom.scaleExtent([least * 0.6, 40]).extent([[GUTTER, TOP], [GUTTER + area.width, TOP + area.height]]);
    this.zoom.translateExtent([[-0.5 * width, -0.5 * height], [1.5 * width, 1.5 * height]]);
    if (!this.moved) this.fit();
    else this.redraw();
  }

  /** The whole graph in view. */
  fit(): void {
    const { width, height } = this.painter.layout, area = this.painter.area;
    const k = Math.min(1, area.width / width, area.height / height);
    this.zoom.transform(this.selection, zoomIdentity.translate(GUTTER + (area.width - k * width) / 2, TOP + (area.height - k * height) / 2).scale(k));
    this.moved = false;
    this.redraw();
  }

  zoomBy(factor: number): void {
    this.zoom.scaleBy(this.selection, factor);
    this.moved = true;
  }

  private zoomed(event: D3ZoomEvent<HTMLElement, unknown>): void {
    this.painter.transform = event.transform;
    if (event.sourceEvent) this.moved = true;
    // While it moves, only the most important edges are drawn; all of them once it stops.
    this.request({ edges: true, nodes: true, moving: true });
    window.clearTimeout(this.settle);
    this.settle = window.setTimeout(() => this.request({ edges: true, moving: false }), 140);
  }

  redraw(): void {
    this.request({ edges: true, nodes: true, moving: false });
  }

  /** Redraws the topmost canvas, and the others where asked, before the next frame. */
  private request(what: Partial<typeof this.pending> = {}): void {
    this.pending.edges ||= what.edges ?? false;
    this.pending.nodes ||= what.nodes ?? false;
    if (what.moving !== undefined) this.pending.moving = what.moving;
    this.frame ||= requestAnimationFrame(() => {
      this.frame = 0;
      if (!this.painter.layout) return;
      const { edges, nodes, moving } = this.pending;
      this.pending = { edges: false, nodes: false, moving: false };
      if (edges) this.painter.drawEdges(moving && this.model.edges.length > 800);
      if (nodes) this.painter.drawNodes();
      this.drawOverlay();
    });
  }

  private drawOverlay(): void {
    const { state, marked } = this.store;
    const ids = (list: Iterable<string>): number[] => [...list].map((id) => this.model.node(id)).filter((node) => node >= 0);
    const selected = this.model.node(state.clicked);
    const shown = (node: number): number => (node >= 0 && this.model.isShown(node) ? node : -1);
    const group = /^supernode-(\d+)$/.exec(state.clicked);
    const members = group ? ids(state.supernodes[Number(group[1])]?.ids ?? []) : [];
    const hovered = shown(this.hovered >= 0 ? this.hovered : this.hinted);
    const path = hovered < 0 ? this.path : null;
    const node = hovered >= 0 ? hovered : path ? -1 : shown(selected);
    this.painter.drawOverlay({
      node, edges: path, selected: shown(selected), found: [...this.found, ...members], pinned: ids(state.pinned), marked: ids(marked),
    });
    this.element.classList.toggle("focused", node >= 0 || path !== null);
  }

  /** Highlights a node as if the pointer were on it; -1 ends that. */
  hint(node: number): void {
    this.hinted = node;
    this.request();
  }

  showPath(edges: number[] | null): void {
    this.path = edges;
    this.request();
  }

  showFound(nodes: number[]): void {
    this.found = nodes;
    this.request();
  }

  update(): void {
    this.request();
  }

  /** Brings a node into view if it is outside. */
  reveal(node: number): void {
    if (!this.painter.layout || !this.model.isShown(node)) return;
    const [x, y] = this.painter.screen(node);
    const inside = x > GUTTER && x < this.painter.width - 20 && (this.model.kind(node) === "token" || (y > TOP / 2 && y < this.painter.height - this.painter.strip));
    if (inside) return;
    this.zoom.translateTo(this.selection, this.painter.layout.x[node], this.painter.layout.y[node]);
    this.moved = true;
  }

  private listen(): void {
    const { element } = this;
    const at = (event: MouseEvent): number => {
      const place = element.getBoundingClientRect();
      return this.painter.layout ? this.painter.hit(event.clientX - place.left, event.clientY - place.top) : -1;
    };
    let last: PointerEvent | null = null;
    element.addEventListener("pointermove", (event) => {
      const waiting = last !== null;
      last = event;
      if (waiting) return;
      requestAnimationFrame(() => {
        const latest = last!;
        last = null;
        if (!latest.buttons) this.hover(at(latest), latest.clientX, latest.clientY);
      });
    });
    element.addEventListener("pointerleave", () => this.hover(-1, 0, 0));
    element.addEventListener("click", (event) => {
      const node = at(event);
      const id = node < 0 ? "" : this.model.id(node);
      if (id && !this.options.plain && (event.shiftKey || event.ctrlKey || event.metaKey)) this.store.mark(id);
      else {
        this.path = null;
        this.store.set({ clicked: id });
      }
    });
    element.addEventListener("dblclick", (event) => {
      const node = at(event);
      if (node >= 0 && !this.options.plain) this.store.toggle(this.model.id(node));
    });
    element.addEventListener("keydown", (event) => this.arrow(event));
  }

  private hover(node: number, x: number, y: number): void {
    tip.show(this.model, node, x, y);
    if (node === this.hovered) return;
    this.hovered = node;
    this.element.classList.toggle("pointing", node >= 0);
    this.options.hovering?.(node);
    this.request();
  }

  private arrow(event: KeyboardEvent): void {
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!way || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    const from = this.model.node(this.store.state.clicked);
    let next = -1;
    if (from < 0 || !this.model.isShown(from)) next = this.model.targets.find((target) => this.model.isShown(target)) ?? -1;
    else if (event.shiftKey && way[1]) next = (way[1] < 0 ? this.model.fed(from) : this.model.feeders(from))[0]?.node ?? -1;
    else next = this.beside(from, way[0], way[1]);
    if (next < 0) return;
    this.path = null;
    this.store.set({ clicked: this.model.id(next) });
    this.reveal(next);
  }

  /** The nearest shown node in a direction; what lies off to the side counts as farther. */
  private beside(from: number, right: number, down: number): number {
    const { x, y } = this.painter.layout;
    let best = -1, least = Infinity;
    for (const node of this.model.shown) {
      const dx = x[node] - x[from], dy = y[node] - y[from];
      const ahead = dx * right + dy * down, aside = Math.abs(right ? dy : dx);
      if (ahead < 0.5) continue;
      const distance = ahead + (right ? 4 : 1.5) * aside;
      if (distance < least) [best, least] = [node, distance];
    }
    return best;
  }
}
