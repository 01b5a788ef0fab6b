// A small graph of boxes and lines: the story, or the subgraph. Boxes stand in rows of layers and columns of positions; a
// crowded cell wraps, so that boxes never pile up, and what does not fit scrolls. The same places are drawn on the page
// (elements that the keyboard reaches) and exported (`export.ts`).

import { svg } from "./dom";
import { signed, visible } from "./text";

export interface BoardItem {
  /** Its id on the page. */
  id: string;
  row: number;
  /** Columns by position; only those that occur take room. */
  column: number;
  element: HTMLElement;
  /** Named in the lines' titles. */
  name: string;
}

export interface BoardEdge {
  from: BoardItem;
  to: BoardItem;
  weight: number;
  /** 0 to 1: how wide the line is. */
  strength: number;
  /** Stands on the line; "" for nothing. */
  label: string;
  /** What the title says after the names. */
  about?: string;
}

export interface Arranged {
  places: Map<BoardItem, DOMRect>;
  rows: { row: number; top: number; bottom: number }[];
  width: number;
  height: number;
}

const GAP = 10, ROW_GAP = 26, COLUMN_GAP = 12;
export const ACROSS = 3;

/** Places for boxes of the sizes that their elements have, in at least the room given; at most `most` side by side in a cell. */
export function arranged(items: BoardItem[], room: { width: number; height: number }, left = 0, most = ACROSS): Arranged {
  const rows = [...new Set(items.map((item) => item.row))].sort((a, b) => b - a);
  const columns = [...new Set(items.map((item) => item.column))].sort((a, b) => a - b);
  const size = new Map(items.map((item) => [item, { width: item.element.offsetWidth, height: item.element.offsetHeight }]));
  const cell = (row: number, column: number): BoardItem[] => items.filter((item) => item.row === row && item.column === column);
  const lines = (own: BoardItem[]): BoardItem[][] => {
    const across = Math.max(1, Math.min(most, Math.ceil(Math.sqrt(own.length))));
    return Array.from({ length: Math.ceil(own.length / across) }, (_, i) => own.slice(i * across, (i + 1) * across));
  };
  const lineWidth = (line: BoardItem[]): number => line.reduce((sum, item) => sum + size.get(item)!.width + GAP, -GAP);
  const lineHeight = (line: BoardItem[]): number => Math.max(...line.map((item) => size.get(item)!.height));
  const widths = columns.map((column) => Math.max(...rows.flatMap((row) => lines(cell(row, column)).map(lineWidth)), 0));
  const heights = rows.map((row) => Math.max(...columns.map((column) => lines(cell(row, column)).reduce((sum, line) => sum + lineHeight(line) + GAP, -GAP))));
  const natural = { width: widths.reduce((a, b) => a + b, COLUMN_GAP * (columns.length + 1)), height: heights.reduce((a, b) => a + b, 16) };
  const spareX = Math.max(room.width - left - natural.width, 0) / Math.max(columns.length, 1);
  const gapY = Math.min(Math.max((room.height - natural.height) / Math.max(rows.length - 1, 1), ROW_GAP), 150);
  const places = new Map<BoardItem, DOMRect>();
  const bands: Arranged["rows"] = [];
  let top = 8;
  rows.forEach((row, r) => {
    let x = left + COLUMN_GAP;
    columns.forEach((column, c) => {
      const own = lines(cell(row, column));
      const height = own.reduce((sum, line) => sum + lineHeight(line) + GAP, -GAP);
      let y = top + (heights[r] - height) / 2;
      // Every other row stands a little aside: lines between rows further apart pass beside the boxes between them.
      const aside = own.length && columns.length > 1 ? (r % 2 ? 1 : -1) * Math.min((widths[c] + spareX - lineWidth(own[0])) / 2, 26) : 0;
      for (const line of own) {
        let at = x + (widths[c] + spareX - lineWidth(line)) / 2 + (own.length > 1 || line.length > 1 ? 0 : aside);
        for (const item of line) {
          const { width, height: tall } = size.get(item)!;
          places.set(item, new DOMRect(at, y + (lineHeight(line) - tall) / 2, width, tall));
          at += width + GAP;
        }
        y += lineHeight(line) + GAP;
      }
      x += widths[c] + spareX + COLUMN_GAP;
    });
    bands.push({ row, top, bottom: top + heights[r] });
    top += heights[r] + gapY;
  });
  return { places, rows: bands, width: Math.max(left + natural.width + spareX * columns.length, room.width), height: Math.max(top - gapY + 8, 40) };
}

/** The curve of a line between two boxes: points of a cubic Bézier. */
export function curve(a: DOMRect, b: DOMRect): [number, number][] {
  const down = a.y < b.y - 4, level = Math.abs(a.y - b.y) <= 4;
  const x1 = a.x + a.width / 2, x2 = b.x + b.width / 2;
  if (level) {
    const right = x2 > x1;
    const from: [number, number] = [right ? a.right : a.x, a.y + a.height / 2], to: [number, number] = [right ? b.x : b.right, b.y + b.height / 2];
    const reach = Math.max(Math.abs(to[0] - from[0]) * 0.4, 8) * (right ? 1 : -1);
    return [from, [from[0] + reach, from[1]], [to[0] - reach, to[1]], to];
  }
  const y1 = down ? a.bottom : a.y, y2 = down ? b.y : b.bottom;
  const bend = Math.max(Math.abs(y1 - y2) * 0.45, 12) * (down ? -1 : 1);
  return [[x1, y1], [x1, y1 - bend], [x2, y2 + bend], [x2, y2]];
}

export const lineWidth = (edge: BoardEdge): number => 0.6 + 5 * Math.sqrt(edge.strength);
export const lineOpacity = (edge: BoardEdge): number => 0.25 + 0.65 * Math.sqrt(edge.strength);

/** Where a line's label stands: nearer to its target, where lines of one source have parted. */
export function labelPlace(points: [number, number][]): [number, number] {
  const t = 0.62, u = 1 - t;
  const at = (axis: 0 | 1): number => u ** 3 * points[0][axis] + 3 * u * u * t * points[1][axis] + 3 * u * t * t * points[2][axis] + t ** 3 * points[3][axis];
  return [at(0), at(1)];
}

/** Draws the lines, the weakest first. */
export function drawLines(image: SVGElement, edges: BoardEdge[], places: Map<BoardItem, DOMRect>): void {
  image.replaceChildren();
  const labels: SVGElement[] = [];
  const taken: [number, number][] = [];
  for (const edge of [...edges].sort((a, b) => a.strength - b.strength)) {
    const a = places.get(edge.from), b = places.get(edge.to);
    if (!a || !b) continue;
    const points = curve(a, b);
    const text = (point: [number, number]): string => `${point[0].toFixed(1)},${point[1].toFixed(1)}`;
    const line = svg("path", {
      d: `M${text(points[0])}C${text(points[1])} ${text(points[2])} ${text(points[3])}`,
      class: edge.weight > 0 ? "plus" : "minus",
      "stroke-width": lineWidth(edge).toFixed(2), "stroke-opacity": lineOpacity(edge).toFixed(2),
      "data-source": edge.from.id, "data-target": edge.to.id, "data-weight": edge.weight,
    });
    const title = svg("title");
    title.textContent = `${visible(edge.from.name)} → ${visible(edge.to.name)}: ${signed(edge.weight)}${edge.about ? `, ${edge.about}` : ""}`;
    line.append(title);
    image.append(line);
    if (!edge.label) continue;
    const [x, y] = labelPlace(points);
    if (taken.some(([p, q]) => Math.abs(p - x) < 34 && Math.abs(q - y) < 13)) continue;
    taken.push([x, y]);
    const label = svg("text", { x: x.toFixed(1), y: (y + 3.5).toFixed(1), class: "line-label", "text-anchor": "middle" });
    label.textContent = edge.label;
    labels.push(label);
  }
  image.append(...labels);
}
