// Draws the graph on three canvases: edges, nodes, and on top what hovering and selecting highlight. Only the topmost is
// drawn again on hover, which keeps it quick with thousands of nodes; the lower two are dimmed by the style sheet.

import type { ZoomTransform } from "d3-zoom";
import type { Layout, Texts } from "./layout";
import type { Model } from "./model";
import { outline, type Look } from "./shapes";
import { short } from "./text";
import type { Theme } from "./theme";

export const GUTTER = 56;
export const TOP = 44;
export const RIGHT = 14;
const STRIP = 48, TALL_STRIP = 92;
/** Beyond these, more lines would only darken the picture; all edges count everywhere else. */
const MOST_EDGES = 1600, MOVING_EDGES = 400, MOST_TOUCHING = 160;
const NAME_FONT = 12, TOKEN_FONT = 13, SMALL_FONT = 11;

export interface Focus {
  /** The node whose edges are highlighted, or -1. */
  node: number;
  /** A path to highlight instead. */
  edges: number[] | null;
  selected: number;
  found: number[];
  pinned: number[];
  marked: number[];
}

export interface Box {
  x: number;
  y: number;
  width: number;
  height: number;
  /** The name written inside; "" for a small shape. */
  text: string;
}

export class Painter {
  width = 0;
  height = 0;
  theme!: Theme;
  /** The colour of an edge; null for that of its sign. */
  edgeColour: ((edge: number) => string | null) | null = null;
  private currentLayout!: Layout;
  private currentTransform!: ZoomTransform;
  private boxes: Box[] = [];
  private slanted = false;
  private heaviestFeature = 0;
  private widths = new Map<string, number>();
  private contexts: CanvasRenderingContext2D[];

  constructor(private model: Model, private canvases: HTMLCanvasElement[], private look: (node: number) => Look = (node) => ({ shape: model.kind(node), tone: model.kind(node) as Look["tone"] })) {
    this.contexts = canvases.map((canvas) => canvas.getContext("2d")!);
  }

  get layout(): Layout {
    return this.currentLayout;
  }

  set layout(layout: Layout) {
    this.currentLayout = layout;
    this.boxes = [];
  }

  get transform(): ZoomTransform {
    return this.currentTransform;
  }

  set transform(transform: ZoomTransform) {
    this.currentTransform = transform;
    this.boxes = [];
  }

  resize(width: number, height: number): void {
    this.boxes = [];
    this.width = width;
    this.height = height;
    const ratio = window.devicePixelRatio || 1;
    this.canvases.forEach((canvas, i) => {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
      this.contexts[i].setTransform(ratio, 0, 0, ratio, 0, 0);
    });
    const P = Math.max(this.model.data.tokens.length, 1);
    const widest = this.model.data.tokens.reduce((sum, _, p) => sum + this.tokenRoom(p), 0);
    this.slanted = widest + 12 * P > width - GUTTER - RIGHT;
  }

  get strip(): number {
    return this.slanted ? TALL_STRIP : STRIP;
  }

  /** Room for the graph above the prompt. */
  get area(): { width: number; height: number } {
    return { width: this.width - GUTTER - RIGHT, height: this.height - TOP - this.strip };
  }

  readonly texts: Texts = {
    token: (position) => (this.slanted ? 12 : this.tokenRoom(position)),
    name: (node) => this.textWidth(this.inside(node), NAME_FONT) + 21,
  };

  private tokenRoom(position: number): number {
    return this.textWidth(short(this.model.token(position)), TOKEN_FONT) + 18;
  }

  screen(node: number): [number, number] {
    const { k, x, y } = this.transform;
    const sx = x + k * this.layout.x[node];
    if (this.model.kind(node) === "token") return [sx, this.height - this.strip + (this.slanted ? 10 : STRIP / 2)];
    return [sx, y + k * this.layout.y[node]];
  }

  /** Where and how large a node is drawn; computed once per zoom. */
  box(node: number): Box {
    return (this.boxes[node] ??= this.boxOf(node));
  }

  private boxOf(node: number): Box {
    const [x, y] = this.screen(node);
    const { k } = this.transform, { slotHeight } = this.layout;
    const slotWidth = this.layout.rooms[node];
    const kind = this.model.kind(node);
    if (kind === "token") {
      if (this.slanted) return { x, y, width: 9, height: 9, text: "" };
      const text = short(this.model.data.nodes.label[node]);
      return { x, y, width: this.textWidth(text, TOKEN_FONT) + 14, height: 24, text };
    }
    const across = (kind === "logit" ? this.layout.topSlot : slotWidth) * k;
    if (kind !== "error" && across >= (kind === "logit" ? 40 : 56) && (slotHeight * k >= 20 || kind === "logit")) {
      const room = across - 5;
      const text = this.fitted(this.inside(node), room - 14);
      return { x, y, width: Math.min(this.textWidth(text, NAME_FONT) + 16, room), height: 21, text };
    }
    // The more influence, the larger.
    const largest = kind === "error" ? 11 : 18;
    const size = Math.max(3.5, Math.min(Math.min(slotWidth, slotHeight) * k * 0.85, largest) * (0.5 + 0.5 * this.weight(node)));
    return { x, y, width: size, height: size, text: "" };
  }

  /** 0 to 1: the root of a node's influence, as a part of that of the most influential feature. */
  private weight(node: number): number {
    const { influence, graph } = this.model;
    if (this.model.kind(node) === "logit") return 1;
    if (!this.heaviestFeature) for (let i = 0; i < graph.n; i++) if (graph.kind[i] === "feature") this.heaviestFeature = Math.max(this.heaviestFeature, influence.values[i]);
    return this.heaviestFeature > 0 ? Math.sqrt(Math.min(influence.values[node] / this.heaviestFeature, 1)) : 1;
  }

  private inside(node: number): string {
    const model = this.model;
    if (model.kind(node) === "logit") {
      const name = short(model.data.nodes.label[node]);
      const full = `${name} ${model.chanceText(node)}`.trim();
      const fits = this.textWidth(full, NAME_FONT) * 1.08 <= this.layout.topSlot * this.transform.k - 16;
      return model.layer(node) === model.data.layers && fits ? full : name;
    }
    // The row already shows the layer.
    const number = `#${model.data.nodes.feature[node]}`;
    if (!model.label(node)) return number;
    return model.isAmbiguous(node) ? `${short(model.label(node), 30)} ${number}` : short(model.label(node), 40);
  }

  /** Draws what is in view with another pen, for an export. */
  drawOn(pen: CanvasRenderingContext2D): void {
    const own = this.contexts;
    this.contexts = [pen, pen, pen];
    try {
      this.drawEdges();
      this.drawNodes();
    } finally {
      this.contexts = own;
    }
  }

  drawEdges(moving = false): void {
    const pen = this.contexts[0];
    pen.clearRect(0, 0, this.width, this.height);
    const edges = this.model.edges.subarray(0, moving ? MOVING_EDGES : MOST_EDGES);
    if (!edges.length) return;
    this.clip(pen);
    const share = this.model.pruned.edgeShare, most = share[edges[0]];
    const heaviest = this.heaviest(edges);
    // Where there are many lines they are thinner, so that the strong ones stand out.
    const fine = Math.min(Math.max(Math.sqrt(260 / edges.length), 0.42), 1);
    // Least important first: the others are drawn over them.
    for (let i = edges.length - 1; i >= 0; i--) {
      const strength = Math.sqrt(share[edges[i]] / most);
      this.stroke(pen, edges[i], heaviest, (0.08 + 0.77 * strength ** (1 / fine)) * (0.4 + 0.6 * fine), fine);
    }
    pen.restore();
  }

  private heaviest(edges: ArrayLike<number>): number {
    let most = 0;
    for (let i = 0; i < edges.length; i++) most = Math.max(most, Math.abs(this.model.graph.weights[edges[i]]));
    return most || 1;
  }

  /** The Bézier curve of an edge on the screen: its start, two control points, its end. */
  curve(edge: number): [number, number][] {
    const { sources, targets } = this.model.graph;
    const from = this.box(sources[edge]), to = this.box(targets[edge]);
    const startY = from.y - from.height / 2, endY = to.y + to.height / 2;
    const bend = Math.max((startY - endY) * 0.45, 14);
    // Straight up, an edge would run through the nodes between its ends.
    const aside = Math.abs(from.x - to.x) < 24 ? Math.min((startY - endY) * 0.14, 26) : 0;
    return [[from.x, startY], [from.x - aside, startY - bend], [to.x - aside, endY + bend], [to.x, endY]];
  }

  private stroke(pen: CanvasRenderingContext2D, edge: number, heaviest: number, opacity: number, fine = 1): void {
    const { weights } = this.model.graph;
    const [[fromX, startY], [ax, ay], [bx, by], [toX, endY]] = this.curve(edge);
    const width = 0.5 + 4.5 * fine * Math.sqrt(Math.abs(weights[edge]) / heaviest);
    pen.beginPath();
    pen.moveTo(fromX, startY);
    pen.bezierCurveTo(ax, ay, bx, by, toX, endY);
    pen.globalAlpha = opacity;
    pen.lineWidth = width;
    pen.strokeStyle = this.edgeColour?.(edge) ?? (weights[edge] > 0 ? this.theme.positive : this.theme.negative);
    // The sign is shown by dashes as well as by colour.
    pen.setLineDash(weights[edge] > 0 ? [] : [2 + 1.5 * width, 2 + width]);
    pen.stroke();
    pen.setLineDash([]);
    pen.globalAlpha = 1;
  }

  drawNodes(): void {
    const pen = this.contexts[1], { theme, layout, transform, model } = this;
    pen.clearRect(0, 0, this.width, this.height);
    this.clip(pen);
    const taken: Box[] = [];
    const bare: number[] = [];
    for (const node of model.shown) {
      if (model.kind(node) === "token") continue;
      const box = this.box(node);
      if (box.x < -80 || box.x > this.width + 80 || box.y < -20 || box.y > this.height) continue;
      this.drawNode(pen, node, box);
      taken.push(box);
      if (!box.text && model.kind(node) !== "error") bare.push(node);
    }
    this.nameTheBare(pen, bare, taken);
    pen.restore();
    this.drawPrompt(pen);
    pen.font = `${SMALL_FONT}px ${theme.font}`;
    pen.textAlign = "left";
    pen.textBaseline = "middle";
    let above = -Infinity;
    for (const row of [...layout.rows].reverse()) {
      const y = transform.y + transform.k * row.y;
      if (y < 8 || y > this.height - this.strip - 4 || Math.abs(y - above) < 13) continue;
      above = y;
      pen.fillStyle = theme.faint;
      pen.fillText(row.name, 14, y);
    }
  }

  /** The graph's part of the canvas: neither the row names nor the prompt. */
  private clip(pen: CanvasRenderingContext2D): void {
    pen.save();
    pen.beginPath();
    pen.rect(GUTTER - 10, 0, this.width, this.height);
    pen.clip();
  }

  private drawNode(pen: CanvasRenderingContext2D, node: number, box: Box, heavy = false): void {
    const { theme, model } = this;
    const kind = model.kind(node);
    const { shape, tone } = this.look(node);
    outline(pen, shape, box.x, box.y, box.width, box.height);
    pen.fillStyle = theme.fill[tone];
    pen.fill();
    pen.lineWidth = heavy ? 2.25 : box.text ? 1 : 1.25;
    pen.strokeStyle = heavy ? theme.accent : theme.stroke[tone];
    pen.stroke();
    if (!box.text) return;
    pen.font = `${kind === "logit" ? "600 " : ""}${kind === "token" ? TOKEN_FONT : NAME_FONT}px ${theme.font}`;
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    pen.fillStyle = kind === "feature" && !model.label(node) ? theme.faint : theme.text;
    pen.fillText(box.text, box.x, box.y + 0.5);
  }

  /** Names beside small shapes, the most important first, where there is room. */
  private nameTheBare(pen: CanvasRenderingContext2D, bare: number[], taken: Box[]): void {
    const { model, theme } = this;
    const influence = model.influence.values;
    const named = bare.filter((node) => model.label(node)).sort((a, b) => influence[b] - influence[a]);
    let count = 0;
    for (const node of named.slice(0, 200)) {
      if (count > 70) break;
      const box = this.box(node);
      const text = short(model.label(node), 22), width = this.textWidth(text, SMALL_FONT);
      const beside = box.width / 2 + 4 + width / 2, above = box.height / 2 + 8;
      const places = [[beside, 0], [-beside, 0], [0, above], [0, -above]];
      const free = places.find(([dx, dy]) => this.isFree(box.x + dx, box.y + dy, width, taken));
      if (!free) continue;
      const [x, y] = [box.x + free[0], box.y + free[1]];
      count++;
      taken.push({ x, y, width: width + 4, height: 12, text });
      this.haloed(pen, text, x - width / 2, y, theme.text);
    }
  }

  private isFree(x: number, y: number, width: number, taken: Box[]): boolean {
    if (x - width / 2 < GUTTER - 8 || x + width / 2 > this.width - 2 || y < TOP - 20 || y > this.height - this.strip - 7) return false;
    return taken.every((o) => Math.abs(o.x - x) * 2 >= o.width + width + 4 || Math.abs(o.y - y) * 2 >= o.height + 11);
  }

  private haloed(pen: CanvasRenderingContext2D, text: string, x: number, y: number, colour: string): void {
    pen.font = `${SMALL_FONT}px ${this.theme.font}`;
    pen.textAlign = "left";
    pen.textBaseline = "middle";
    pen.lineJoin = "round";
    pen.lineWidth = 3.5;
    pen.strokeStyle = this.theme.background;
    pen.strokeText(text, x, y);
    pen.fillStyle = colour;
    pen.fillText(text, x, y);
  }

  /** The prompt stays at the lower edge, whatever the zoom. */
  private drawPrompt(pen: CanvasRenderingContext2D, only: Set<number> | null = null): void {
    const { theme, model } = this;
    const top = this.height - this.strip;
    if (!only) {
      pen.fillStyle = theme.background;
      pen.fillRect(0, top - 1, this.width, this.strip + 1);
      pen.strokeStyle = theme.line;
      pen.lineWidth = 1;
      pen.beginPath();
      pen.moveTo(0, top - 0.5);
      pen.lineTo(this.width, top - 0.5);
      pen.stroke();
    }
    let right = -Infinity;
    for (const node of model.shown) {
      if (model.kind(node) !== "token" || (only && !only.has(node))) continue;
      const box = this.box(node);
      if (box.x < GUTTER - 30 || box.x > this.width + 60) continue;
      this.drawNode(pen, node, box);
      if (!this.slanted || box.x < right + 12) continue;
      right = box.x;
      pen.save();
      pen.translate(box.x, box.y + 12);
      pen.rotate(Math.PI / 3);
      pen.font = `${NAME_FONT}px ${theme.font}`;
      pen.textAlign = "left";
      pen.textBaseline = "middle";
      pen.fillStyle = theme.text;
      pen.fillText(this.fitted(short(model.data.nodes.label[node]), 74), 0, 0);
      pen.restore();
    }
  }

  drawOverlay(focus: Focus): void {
    const pen = this.contexts[2], { model, theme } = this;
    pen.clearRect(0, 0, this.width, this.height);
    let edges: number[] = focus.edges ?? [];
    if (!focus.edges && focus.node >= 0) {
      const half = (list: { edge: number }[]): number[] => list.slice(0, MOST_TOUCHING).map((entry) => entry.edge);
      edges = [...half(model.feeders(focus.node)), ...half(model.fed(focus.node))];
    }
    const touched = new Set<number>(focus.node >= 0 ? [focus.node] : []);
    if (edges.length) {
      const weights = model.graph.weights;
      const heaviest = this.heaviest(edges);
      this.clip(pen);
      [...edges]
        .sort((a, b) => Math.abs(weights[a]) - Math.abs(weights[b]))
        .forEach((edge) => {
          const strength = focus.edges ? 1 : Math.sqrt(Math.abs(weights[edge]) / heaviest);
          this.stroke(pen, edge, heaviest, 0.2 + 0.75 * strength);
        });
      pen.restore();
      for (const edge of edges) touched.add(model.graph.sources[edge]).add(model.graph.targets[edge]);
    }
    this.clip(pen);
    for (const node of touched)
      if (model.isShown(node) && model.kind(node) !== "token") this.drawNode(pen, node, this.box(node));
    this.nameTouched(pen, touched, edges);
    pen.restore();
    this.drawPrompt(pen, touched);
    for (const node of focus.pinned) this.ring(pen, node, theme.accent, 2.5, []);
    for (const node of focus.marked) this.ring(pen, node, theme.accent, 4, [3, 2]);
    for (const node of focus.found) this.ring(pen, node, theme.text, 3, []);
    if (focus.selected >= 0 && model.isShown(focus.selected)) this.drawNode(pen, focus.selected, this.box(focus.selected), true);
  }

  /** Names of small shapes at the ends of the heaviest edges. */
  private nameTouched(pen: CanvasRenderingContext2D, touched: Set<number>, edges: number[]): void {
    const weights = this.model.graph.weights, { sources, targets } = this.model.graph;
    const order = [...edges].sort((a, b) => Math.abs(weights[b]) - Math.abs(weights[a]));
    const named = new Set([...order.flatMap((edge) => [sources[edge], targets[edge]])].filter((node) => touched.has(node)));
    const placed: { x: number; y: number; width: number }[] = [];
    for (const node of [...named].slice(0, 24)) {
      const box = this.box(node);
      if (box.text || this.model.kind(node) === "token") continue;
      const text = this.model.name(node, 22), width = this.textWidth(text, SMALL_FONT);
      const right = box.x + box.width / 2 + 4;
      const x = right + width > this.width - 4 ? box.x - box.width / 2 - 4 - width : right;
      if (placed.some((other) => Math.abs(other.y - box.y) < 13 && x < other.x + other.width + 6 && other.x < x + width + 6)) continue;
      placed.push({ x, y: box.y, width });
      this.haloed(pen, text, x, box.y, this.theme.text);
    }
  }

  private ring(pen: CanvasRenderingContext2D, node: number, colour: string, gap: number, dash: number[]): void {
    if (!this.model.isShown(node)) return;
    const box = this.box(node);
    outline(pen, this.look(node).shape, box.x, box.y, box.width + 2 * gap, box.height + 2 * gap);
    pen.setLineDash(dash);
    pen.lineWidth = 1.75;
    pen.strokeStyle = colour;
    pen.stroke();
    pen.setLineDash([]);
  }

  /** The shown node at a point of the canvas, -1 for none; a few pixels beside a small one still count. */
  hit(px: number, py: number): number {
    const inPrompt = py > this.height - this.strip;
    let best = -1, nearest = Infinity;
    for (const node of this.model.shown) {
      if ((this.model.kind(node) === "token") !== inPrompt) continue;
      const box = this.box(node);
      const dx = Math.max(Math.abs(px - box.x) - box.width / 2, 0), dy = Math.max(Math.abs(py - box.y) - box.height / 2, 0);
      const reach = inPrompt && this.slanted ? 60 : 4;
      const distance = Math.hypot(px - box.x, py - box.y);
      if (dx <= 4 && dy <= reach && distance < nearest) [best, nearest] = [node, distance];
    }
    return best;
  }

  private textWidth(text: string, size: number): number {
    const key = `${size} ${text}`;
    let width = this.widths.get(key);
    if (width === undefined) {
      if (this.widths.size > 20000) this.widths.clear();
      this.contexts[2].font = `${size}px ${this.theme.font}`;
      width = this.contexts[2].measureText(text).width;
      this.widths.set(key, width);
    }
    return width;
  }

  private fitted(text: string, room: number): string {
    if (this.textWidth(text, NAME_FONT) <= room) return text;
    const signs = Array.from(text);
    let low = 0, high = signs.length;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (this.textWidth(`${signs.slice(0, middle).join("").trimEnd()}…`, NAME_FONT) <= room) low = middle;
      else high = middle - 1;
    }
    return low ? `${signs.slice(0, low).join("").trimEnd()}…` : "…";
  }
}
