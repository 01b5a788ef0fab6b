// Pictures of what is on the page, as SVG and PNG files: the story, the graph as it is zoomed, or the subgraph.

import { curve, labelPlace, lineOpacity, lineWidth, type Arranged, type BoardEdge, type BoardItem } from "./board";
import { byId, h, on } from "./dom";
import { offer } from "./files";
import type { GraphView } from "./graph_view";
import type { Model } from "./model";
import { pngOf, svgOf, type Pen } from "./pen";
import type { Store } from "./state";
import type { StoryView } from "./story_view";
import type { Subgraph } from "./subgraph";
import { visible } from "./text";
import { readTheme, type Theme } from "./theme";

const MARGIN = 16, TITLE = 34, LINE = 15;

export interface Drawn {
  items: BoardItem[];
  edges: BoardEdge[];
  layout: Arranged;
  rowName?: (row: number) => string;
}

interface Picture {
  width: number;
  height: number;
  draw(pen: Pen): void;
}

export class Exporter {
  private menu = byId("export-menu");
  private opener = byId("open-export");

  constructor(private model: Model, private store: Store, private view: GraphView, private story: StoryView, private subgraph: Subgraph, private say: (message: string) => void) {
    this.opener.addEventListener("click", () => this.toggle());
    document.addEventListener("pointerdown", (event) => {
      if (!this.menu.contains(event.target as Node) && event.target !== this.opener) this.toggle(false);
    });
    this.menu.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      event.stopPropagation();
      this.toggle(false);
      this.opener.focus();
    });
  }

  private toggle(open = this.menu.hidden): void {
    this.menu.hidden = !open;
    this.opener.setAttribute("aria-expanded", String(open));
    if (!open) return;
    const what: [string, string, () => Picture | null][] = [["view", this.store.state.view === "story" ? "Story" : "Graph", () => this.viewPicture()]];
    if (this.subgraph.drawnBoard) what.push(["subgraph", "Subgraph", () => this.boardPicture(this.subgraph.drawnBoard!, [])]);
    this.menu.replaceChildren(...what.flatMap(([id, name, picture]) =>
      (["svg", "png"] as const).map((format) =>
        on(h("button", { type: "button", id: `export-${id}-${format}` }, `${name} as ${format.toUpperCase()}`), { click: () => this.save(id, format, picture()) }))));
    (this.menu.firstElementChild as HTMLElement).focus();
  }

  private async save(name: string, format: "svg" | "png", picture: Picture | null): Promise<void> {
    this.toggle(false);
    this.opener.focus();
    if (!picture) return this.say("There is nothing to draw.");
    const { width, height, draw } = picture;
    const blob = format === "svg" ? new Blob([svgOf(width, height, draw)], { type: "image/svg+xml" }) : await pngOf(width, height, draw);
    offer(blob, `${this.model.data.slug}.${name === "view" ? this.store.state.view : name}.${format}`);
  }

  private viewPicture(): Picture | null {
    if (this.store.state.view === "story") return this.story.drawn && this.boardPicture({ ...this.story.drawn, rowName: (row) => this.story.rowName(row) }, this.story.sentences());
    const { painter } = this.view, theme = readTheme();
    return painter.layout && this.framed(painter.width, painter.height, [], theme, (pen) => painter.drawOn(pen));
  }

  private get title(): string {
    const { model, store } = this;
    const chosen = model.node(store.state.target), target = chosen >= 0 ? chosen : model.topTarget;
    const goal = target < 0 ? "" : ` → ${model.name(target, 24)} ${model.chanceText(target)}`;
    return `${visible(model.prompt)}${goal}`;
  }

  /** With the prompt above and sentences below. */
  private framed(width: number, height: number, said: string[], theme: Theme, draw: (pen: Pen) => void): Picture {
    const outer = width + 2 * MARGIN;
    const lines = said.flatMap((text) => wrapped(text, Math.max(outer / 6.2, 40)));
    return {
      width: outer,
      height: height + TITLE + MARGIN + lines.length * LINE + (lines.length ? 8 : 0),
      draw: (pen) => {
        pen.fillStyle = theme.background;
        pen.fillRect(0, 0, outer, height + TITLE + MARGIN + lines.length * LINE + 8);
        pen.fillStyle = theme.text;
        pen.textAlign = "left";
        pen.textBaseline = "middle";
        pen.font = `600 15px ${theme.font}`;
        pen.fillText(this.title, MARGIN, TITLE / 2 + 2);
        pen.save();
        pen.translate(MARGIN, TITLE);
        draw(pen);
        pen.restore();
        pen.font = `11px ${theme.font}`;
        pen.fillStyle = theme.faint;
        pen.textAlign = "left";
        pen.textBaseline = "middle";
        lines.forEach((line, i) => pen.fillText(line, MARGIN, TITLE + height + 14 + i * LINE));
      },
    };
  }

  private boardPicture({ items, edges, layout, rowName }: Drawn, said: string[]): Picture {
    const theme = readTheme();
    return this.framed(layout.width, layout.height, said, theme, (pen) => {
      for (const edge of [...edges].sort((a, b) => a.strength - b.strength)) drawLine(pen, edge, layout, theme);
      for (const item of items) drawBox(pen, item, layout.places.get(item)!, theme);
      pen.font = `10px ${theme.font}`;
      pen.textAlign = "center";
      pen.textBaseline = "middle";
      for (const edge of edges) if (edge.label) drawLabel(pen, edge, layout, theme);
      pen.textAlign = "left";
      pen.fillStyle = theme.faint;
      if (rowName) for (const { row, top, bottom } of layout.rows) pen.fillText(rowName(row), 4, (top + bottom) / 2);
    });
  }
}

function drawLine(pen: Pen, edge: BoardEdge, { places }: Arranged, theme: Theme): void {
  const a = places.get(edge.from), b = places.get(edge.to);
  if (!a || !b) return;
  const points = curve(a, b);
  pen.beginPath();
  pen.moveTo(...points[0]);
  pen.bezierCurveTo(...points[1], ...points[2], ...points[3]);
  pen.lineWidth = lineWidth(edge);
  pen.globalAlpha = lineOpacity(edge);
  pen.strokeStyle = edge.weight > 0 ? theme.positive : theme.negative;
  pen.setLineDash(edge.weight > 0 ? [] : [6, 4]);
  pen.stroke();
  pen.setLineDash([]);
  pen.globalAlpha = 1;
}

function drawLabel(pen: Pen, edge: BoardEdge, { places }: Arranged, theme: Theme): void {
  const a = places.get(edge.from), b = places.get(edge.to);
  if (!a || !b) return;
  const [x, y] = labelPlace(curve(a, b));
  pen.lineWidth = 3;
  pen.strokeStyle = theme.background;
  pen.strokeText(edge.label, x, y);
  pen.fillStyle = theme.text;
  pen.fillText(edge.label, x, y);
}

function drawBox(pen: Pen, item: BoardItem, place: DOMRect, theme: Theme): void {
  const style = getComputedStyle(item.element);
  pen.beginPath();
  pen.roundRect(place.x + 0.5, place.y + 0.5, place.width - 1, place.height - 1, Math.min(parseFloat(style.borderTopLeftRadius) || 0, place.height / 2));
  pen.fillStyle = style.backgroundColor;
  pen.fill();
  pen.lineWidth = parseFloat(style.borderTopWidth) || 1;
  pen.strokeStyle = style.borderTopColor;
  pen.setLineDash(style.borderTopStyle === "dashed" ? [4, 3] : []);
  pen.stroke();
  pen.setLineDash([]);
  pen.textAlign = "center";
  pen.textBaseline = "middle";
  // Text stands where the browser broke its lines.
  const frame = item.element.getBoundingClientRect(), scale = frame.width / place.width || 1;
  for (const span of item.element.querySelectorAll<HTMLElement>("span")) {
    const node = span.firstChild;
    if (!node || node.nodeType !== Node.TEXT_NODE) continue;
    const own = getComputedStyle(span);
    pen.font = `${Number(own.fontWeight) >= 600 ? "600 " : ""}${own.fontSize} ${theme.font}`;
    pen.fillStyle = own.color;
    for (const line of linesOf(node as Text)) pen.fillText(line.text, place.x + (line.x - frame.x) / scale, place.y + (line.y - frame.y) / scale);
  }
}

/** The lines into which the browser broke a text, with their middles. */
function linesOf(node: Text): { text: string; x: number; y: number }[] {
  const range = document.createRange(), text = node.data;
  const found: { text: string; left: number; right: number; y: number }[] = [];
  for (let i = 0; i < text.length; i++) {
    range.setStart(node, i);
    range.setEnd(node, i + 1);
    const place = range.getBoundingClientRect();
    const last = found[found.length - 1];
    if (last && (Math.abs(last.y - (place.y + place.height / 2)) < 3 || !place.width)) {
      last.text += text[i];
      last.right = Math.max(last.right, place.right);
    } else found.push({ text: text[i], left: place.x, right: place.right, y: place.y + place.height / 2 });
  }
  return found.map(({ text: line, left, right, y }) => ({ text: line.trim(), x: (left + right) / 2, y }));
}

function wrapped(text: string, letters: number): string[] {
  const lines = [""];
  for (const word of text.split(" ")) {
    if (lines[lines.length - 1].length + word.length > letters) lines.push("");
    lines[lines.length - 1] += `${word} `;
  }
  return lines;
}
