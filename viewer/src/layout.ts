// Where nodes stand: one row per layer, tokens at the bottom, targets on top, columns by position of the prompt.
// A cell (row, column) with many nodes wraps into lines. Units are screen pixels at zoom 1, y downwards.

import type { Model } from "./model";

export interface Size {
  width: number;
  height: number;
}

export interface Row {
  name: string;
  y: number;
}

export interface Layout {
  x: Float32Array;
  y: Float32Array;
  /** (n,) room of each node; names are written inside where there is enough. */
  rooms: Float32Array;
  slotHeight: number;
  /** Room of a target, which may spread beyond its column. */
  topSlot: number;
  columns: { left: number; width: number; middle: number }[];
  rows: Row[];
  width: number;
  height: number;
}

/** Room of a node, and into how many lines a full cell wraps. */
interface Candidate {
  slotWidth: number;
  slotHeight: number;
  lines: number;
}

const NAMED = [164, 146, 128, 112, 98, 84, 72, 62];
const DOTS: [number, number][] = [
  [52, 22], [44, 22], [36, 22], [30, 22], [24, 22], [20, 20], [17, 17], [14, 14], [12, 12], [10, 10], [8, 8], [6.5, 6.5],
];

/** From roomy, with names inside, to dots: the first that fits the window is taken. */
function candidates(): Candidate[] {
  const found: Candidate[] = [];
  // A single line first: nodes on top of each other hide each other's edges.
  for (const [lines, least] of [[1, 84], [2, 84], [3, 62], [4, 62], [5, 62], [6, 62]])
    for (const slotWidth of NAMED) if (slotWidth >= least && (lines < 2 || slotWidth <= 128)) found.push({ slotWidth, slotHeight: 25, lines });
  for (const [slotWidth, slotHeight] of DOTS)
    for (let lines = 1; lines <= 80; lines = lines < 8 ? lines + 1 : Math.ceil(lines * 1.25)) found.push({ slotWidth, slotHeight, lines });
  return found;
}

function columnGap(columns: number): number {
  return columns > 24 ? 5 : 12;
}

interface Cells {
  rows: number[];
  /** By row, then position: the nodes of a cell without its error node. */
  nodes: Map<number, number[][]>;
  errors: Map<number, number[]>;
  /** Nodes of the top row when they all stand at one position: they may spread over the empty columns beside them. */
  top: number[] | null;
}

export interface Texts {
  /** How wide a column must be for its token. */
  token(position: number): number;
  /** How wide a node's slot must be for its whole name. */
  name(node: number): number;
}

/** `rows` are kept even without nodes, so that two graphs have the same rows. */
export function arrange(model: Model, area: Size, texts: Texts, rows: number[] = []): Layout {
  const cells = collect(model, rows);
  const P = model.data.tokens.length;
  for (const { slotWidth, slotHeight, lines } of candidates()) {
    const plan = measure(cells, P, lines, slotWidth, slotHeight, texts.token);
    // Edges need space between the rows to be told apart.
    const gap = Math.max(slotWidth > 56 ? 15 : 6, slotHeight * 0.4);
    const fits = plan.width <= area.width && plan.height + gap * cells.rows.length <= Math.max(area.height, 60);
    if (fits) return place(model, cells, plan, area, slotHeight, grow(cells, plan, area, slotWidth, texts));
  }
  // Nothing fits: take what has to shrink least.
  const [slotWidth, slotHeight] = DOTS[DOTS.length - 1];
  const excess = (plan: Plan): number => Math.max(plan.width / area.width, (plan.height + 6 * cells.rows.length) / Math.max(area.height, 60));
  const plans = [1, 2, 3, 4, 6, 9, 14, 20, 30, 50].map((lines) => measure(cells, P, lines, slotWidth, slotHeight, texts.token));
  const least = plans.reduce((best, plan) => (excess(plan) < excess(best) ? plan : best));
  return place(model, cells, least, area, slotHeight, new Array(P).fill(slotWidth));
}

function collect(model: Model, wanted: number[]): Cells {
  const P = model.data.tokens.length;
  const nodes = new Map<number, number[][]>(), errors = new Map<number, number[]>();
  const rows = new Set<number>(wanted);
  const row = (layer: number): number[][] => {
    if (!nodes.has(layer)) nodes.set(layer, Array.from({ length: P }, () => []));
    return nodes.get(layer)!;
  };
  let targets: number[] = [];
  for (const node of model.shown) {
    const kind = model.kind(node);
    if (kind === "token") continue;
    const layer = kind === "logit" ? model.data.layers : model.layer(node);
    rows.add(layer);
    if (kind === "error") {
      if (!errors.has(layer)) errors.set(layer, new Array(P).fill(-1));
      errors.get(layer)![model.position(node)] = node;
      row(layer);
    } else row(layer)[model.position(node)].push(node);
    if (kind === "logit") targets.push(node);
  }
  const together = new Set(targets.map((node) => model.position(node))).size === 1;
  targets.sort((a, b) => model.probability(b) - model.probability(a));
  if (together) nodes.delete(model.data.layers);
  else targets = [];
  const influence = model.influence.values;
  for (const cell of [...nodes.values()].flat()) cell.sort((a, b) => influence[b] - influence[a] || a - b);
  return { rows: [...rows].sort((a, b) => b - a), nodes, errors, top: together ? targets : null };
}

interface Plan {
  across: number[];
  strips: number[];
  widths: number[];
  bands: Map<number, number>;
  width: number;
  height: number;
}

function measure(
  cells: Cells, P: number, lines: number, slotWidth: number, slotHeight: number, tokenWidth: (p: number) => number,
): Plan {
  const across: number[] = [], strips: number[] = [], widths: number[] = [];
  for (let p = 0; p < P; p++) {
    let most = 0, strip = 0;
    for (const row of cells.nodes.values()) most = Math.max(most, row[p].length);
    for (const row of cells.errors.values()) if (row[p] >= 0) strip = Math.min(slotWidth, 18);
    across.push(Math.max(Math.ceil(most / lines), 1));
    strips.push(strip);
    widths.push(Math.max(strip + (most ? across[p] * slotWidth : 0), tokenWidth(p)));
  }
  const bands = new Map<number, number>();
  let height = 0;
  for (const row of cells.rows) {
    let deepest = 1;
    cells.nodes.get(row)?.forEach((cell, p) => (deepest = Math.max(deepest, Math.ceil(cell.length / across[p]))));
    bands.set(row, Math.max(deepest * slotHeight, cells.top && row === cells.rows[0] ? 26 : 0));
    height += bands.get(row)!;
  }
  return { across, strips, widths, bands, width: widths.reduce((a, b) => a + b, columnGap(P) * (P - 1)), height };
}

/** Slots by position: spare width goes to the columns whose names are cut; their widths grow too. */
function grow(cells: Cells, plan: Plan, area: Size, slotWidth: number, texts: Texts): number[] {
  if (slotWidth < NAMED[NAMED.length - 1]) return plan.widths.map(() => slotWidth);
  const wanted = plan.widths.map((_, p) => {
    let most = slotWidth;
    for (const row of cells.nodes.values()) for (const node of row[p]) most = Math.max(most, texts.name(node));
    return Math.min(most, NAMED[0]);
  });
  const growth = plan.widths.map((width, p) => Math.max(plan.strips[p] + plan.across[p] * wanted[p] - width, 0));
  const total = growth.reduce((a, b) => a + b, 0);
  const share = total ? Math.min((area.width - plan.width) / total, 1) : 0;
  growth.forEach((more, p) => (plan.widths[p] += share * more));
  plan.width += share * total;
  return wanted.map((most, p) => Math.min(most, Math.max(slotWidth, (plan.widths[p] - plan.strips[p]) / plan.across[p])));
}

function place(model: Model, cells: Cells, plan: Plan, area: Size, slotHeight: number, slots: number[]): Layout {
  const n = model.graph.n, P = plan.widths.length;
  const x = new Float32Array(n), y = new Float32Array(n), rooms = new Float32Array(n);
  const width = Math.max(area.width, plan.width);
  const spareX = (width - plan.width) / P;
  const columns: Layout["columns"] = [];
  let left = 0;
  for (let p = 0; p < P; p++) {
    const own = plan.widths[p] + spareX;
    columns.push({ left, width: own, middle: left + own / 2 });
    left += own + columnGap(P);
  }
  const R = cells.rows.length;
  // The last gap separates the lowest row from the prompt.
  const gap = Math.max((area.height - plan.height) / Math.max(R, 1), slotHeight * 0.6);
  const height = plan.height + gap * R;
  const rows: Row[] = [];
  let top = 0;
  for (const row of cells.rows) {
    const band = plan.bands.get(row)!;
    const middle = top + band / 2;
    rows.push({ name: model.rowName(row), y: middle });
    for (let p = 0; p < P; p++) {
      const error = cells.errors.get(row)?.[p] ?? -1;
      const cell = cells.nodes.get(row)?.[p] ?? [];
      const strip = plan.strips[p], { middle: centre } = columns[p];
      const inner = centre + strip / 2;
      const depth = Math.ceil(cell.length / plan.across[p]);
      cell.forEach((node, i) => {
        const line = Math.floor(i / plan.across[p]);
        const inLine = Math.min(plan.across[p], cell.length - line * plan.across[p]);
        // Where there are fewer nodes than elsewhere in the column, each has more room.
        rooms[node] = Math.max(slots[p], Math.min((plan.across[p] * slots[p]) / inLine, slots[p] < NAMED[NAMED.length - 1] ? 0 : NAMED[0]));
        x[node] = inner + (i - line * plan.across[p] - (inLine - 1) / 2) * rooms[node];
        y[node] = middle + (line - (depth - 1) / 2) * slotHeight;
      });
      if (error >= 0) {
        rooms[error] = slots[p];
        x[error] = inner - (Math.min(cell.length, plan.across[p]) * (rooms[cell[0]] ?? 0)) / 2 - (cell.length ? strip / 2 : 0);
        y[error] = middle;
      }
    }
    top += band + gap;
  }
  const topSlot = cells.top ? placeTop(model, cells.top, columns, rows[0].y, width, x, y) : Math.min(...slots);
  for (const node of model.shown)
    if (model.kind(node) === "token") [x[node], y[node]] = [columns[model.position(node)].middle, height];
  return { x, y, rooms, slotHeight, topSlot, columns, rows, width, height };
}

/** Targets side by side around their column, the most likely first, kept inside the picture. */
function placeTop(
  model: Model, top: number[], columns: Layout["columns"], y0: number, width: number, x: Float32Array, y: Float32Array,
): number {
  const room = Math.min(118, width / top.length);
  const middle = columns[model.position(top[0])].middle;
  const left = Math.max(0, Math.min(middle - (top.length * room) / 2, width - top.length * room));
  top.forEach((node, i) => {
    x[node] = left + (i + 0.5) * room;
    y[node] = y0;
  });
  return room;
}
