// The shape of each kind of node, as in graphs/pictures/dot.py: rounded box, diamond, box, octagon; small ones without a
// name inside are a circle, a diamond, a square and an octagon. Where two graphs are compared, what only one of them has
// is a tag that points to its side; small, a triangle.

import type { Kind } from "./data";
import { svg } from "./dom";

export type Shape = Kind | "left" | "right";

/** How a node is drawn: a feature is a feature in shape and colour, unless two graphs are compared. */
export interface Look {
  shape: Shape;
  tone: Tone;
}

export const TONES = ["feature", "error", "token", "logit", "shared", "only-a", "only-b"] as const;
export type Tone = (typeof TONES)[number];

type Pen = { moveTo(x: number, y: number): void; lineTo(x: number, y: number): void; closePath(): void };

/** Traces the outline of a node around (x, y). */
export function outline(pen: CanvasRenderingContext2D, kind: Shape, x: number, y: number, width: number, height: number): void {
  pen.beginPath();
  if (kind === "feature") pen.roundRect(x - width / 2, y - height / 2, width, height, height / 2);
  else if (kind === "token") pen.roundRect(x - width / 2, y - height / 2, width, height, 2);
  else if (kind === "left" || kind === "right") polygon(pen, tag(kind, x, y, width, height));
  else if (kind === "error") polygon(pen, [[x, y - height / 2], [x + width / 2, y], [x, y + height / 2], [x - width / 2, y]]);
  else polygon(pen, octagon(x, y, width, height));
}

function tag(side: "left" | "right", x: number, y: number, width: number, height: number): [number, number][] {
  const a = width / 2, b = height / 2, way = side === "left" ? -1 : 1;
  const shoulder = x + way * (width > 1.15 * height ? a - 0.36 * height : -a);
  return [[x - way * a, y - b], [shoulder, y - b], [x + way * a, y], [shoulder, y + b], [x - way * a, y + b]];
}

function octagon(x: number, y: number, width: number, height: number): [number, number][] {
  const a = width / 2, b = height / 2, cut = 0.3 * height;
  return [
    [x - a + cut, y - b], [x + a - cut, y - b], [x + a, y - b + cut], [x + a, y + b - cut],
    [x + a - cut, y + b], [x - a + cut, y + b], [x - a, y + b - cut], [x - a, y - b + cut],
  ];
}

function polygon(pen: Pen, corners: [number, number][]): void {
  corners.forEach(([x, y], i) => (i ? pen.lineTo(x, y) : pen.moveTo(x, y)));
  pen.closePath();
}

/** The small shape as an icon in text. */
export function icon(kind: Shape, tone: Tone = kind as Kind): SVGElement {
  const image = svg("svg", { viewBox: "0 0 12 12", class: `icon ${tone}`, "aria-hidden": "true" });
  if (kind === "feature") image.append(svg("circle", { cx: 6, cy: 6, r: 4.5 }));
  else if (kind === "token") image.append(svg("rect", { x: 1.5, y: 1.5, width: 9, height: 9, rx: 1 }));
  else {
    const corners = kind === "error" ? [[6, 1], [11, 6], [6, 11], [1, 6]] : kind === "logit" ? octagon(6, 6, 10, 10) : tag(kind, 6, 6, 10, 11);
    image.append(svg("polygon", { points: corners.map((corner) => corner.join(",")).join(" ") }));
  }
  return image;
}
