// The page of an aggregate: the circuit at the left, what is known of the chosen box at the right, its prompts below that.
// `graphs/page/aggregate.py` declares what it holds.

import { byId, h, on, svg } from "./dom";
import { fail } from "./page";
import { percent, plain, probability, short, signed, visible } from "./text";

interface Prompt {
  graph: string;
  prompt: string;
  tokens: string[];
  targets: [string, number][];
  roles: string[];
  metadata: Record<string, unknown>;
  page: string | null;
}

interface Box {
  kind: "feature" | "named" | "token" | "error" | "target";
  name: string;
  role: string;
  feature: string | null;
  layers: [number, number];
  layer: number;
  position: number;
  share: number;
  share_interval: [number, number];
  influence: number;
  influence_interval: [number, number];
  spread: number;
  activation: number;
  selected: number;
  features: [string, number][];
  targets: Record<string, number>;
  prompts: [number, number][];
}

/** Source, target, share of the prompts, weight, its interval, mean share of the influence. */
type Edge = [number, number, number, number, number, number, number];

interface Comparison {
  key: string;
  groups: string[];
  sizes: number[];
  tested: number;
  false_discovery_rate: number;
  nodes: { node: number; means: number[]; shares: number[]; p: number; q: number }[];
}

interface AggregateData {
  format: "crosstrace-aggregate-page";
  version: number;
  title: string;
  model: string;
  transcoders: string;
  layers: number;
  roles: string[];
  prompts: Prompt[];
  nodes: Box[];
  edges: Edge[];
  start: [number, number, number];
  stability: { nodes: number; edges: number; overlap: number; splits: number } | null;
  comparison: Comparison | null;
  leftOut: number;
}

interface Placed { i: number; x: number; y: number; width: number; height: number; lines: string[] }

const TOKENS = -2, ERRORS = -1, MOST_ROWS = 9, LINE = 16, GAP = 14, ROW_GAP = 72, LEFT = 84, BEND = 90;

/** The numbers of the circuit's boxes and its edges; the same rule as `Aggregate.circuit`. */
export function circuit(data: AggregateData, share: number, influence: number, strength: number): { nodes: number[]; edges: Edge[] } {
  const strong = data.nodes.map((node) => node.kind === "target" || (node.share >= share && node.influence >= influence));
  const kept = data.edges.filter(([source, target, often, , , , flow]) => strong[source] && strong[target] && often >= share && flow >= strength);
  const into = new Map<number, number[]>();
  for (const [source, target] of kept) into.set(target, [...(into.get(target) ?? []), source]);
  const waiting = data.nodes.flatMap((node, i) => (node.kind === "target" ? [i] : []));
  const reached = new Set(waiting);
  for (let target = waiting.pop(); target !== undefined; target = waiting.pop())
    for (const source of into.get(target) ?? []) if (!reached.has(source)) { reached.add(source); waiting.push(source); }
  const edges = kept.filter(([, target]) => reached.has(target));
  return { nodes: [...new Set(edges.flatMap(([source, target]) => [source, target]))].sort((a, b) => a - b), edges };
}

export function start(data: AggregateData): unknown {
  if (data.format !== "crosstrace-aggregate-page" || data.version !== 1) throw new Error("it is of another version of crosstrace");
  const [share, influence, strength] = ["share", "influence", "strength"].map((id) => byId<HTMLInputElement>(id));
  share.value = String(Math.round(100 * data.start[0]));
  influence.value = String(position(data.start[1]));
  strength.value = String(position(data.start[2]));
  let chosen = -1, shown: Placed[] = [];

  function draw(): void {
    const least = [Number(share.value) / 100, size(Number(influence.value)), size(Number(strength.value))];
    byId("share-now").textContent = percent(least[0]);
    byId("influence-now").textContent = `≥ ${percent(least[1])}`;
    byId("strength-now").textContent = `≥ ${percent(least[2])}`;
    const { nodes, edges } = circuit(data, least[0], least[1], least[2]);
    byId("count").textContent = `${nodes.length} of ${data.nodes.length} boxes, ${edges.length} of ${data.edges.length} edges`;
    if (!nodes.includes(chosen)) chosen = -1;
    const placed = place(data, nodes);
    shown = placed.boxes;
    const at = new Map(shown.map((box) => [box.i, box]));
    const near = new Set(edges.filter(([a, b]) => a === chosen || b === chosen).flatMap(([a, b]) => [a, b]));
    const picture = svg("svg", { viewBox: `0 0 ${placed.width} ${placed.height}`, width: placed.width, height: placed.height, role: "group" });
    for (const row of placed.rows) {
      const text = svg("text", { x: 0, y: row.y, class: "row-name", "dominant-baseline": "middle" });
      text.textContent = row.name;
      picture.append(text);
    }
    const most = Math.max(...edges.map((edge) => edge[6]), 1e-9);
    for (const edge of edges) {
      const from = at.get(edge[0])!, to = at.get(edge[1])!;
      const line = svg("line", {
        x1: from.x, y1: from.y - from.height / 2, x2: to.x, y2: to.y + to.height / 2,
        "stroke-width": (0.6 + 7 * Math.sqrt(edge[6] / most)).toFixed(2), "stroke-opacity": (0.25 + 0.65 * Math.sqrt(edge[6] / most)).toFixed(2),
        class: `edge${edge[3] < 0 ? " lowers" : ""}${edge[0] === chosen || edge[1] === chosen ? " near" : ""}`,
      });
      const title = svg("title");
      title.textContent = `${called(data, edge[0])} → ${called(data, edge[1])}: ${signed(edge[3])}, in ${percent(edge[2])} of prompts, ${percent(edge[6])} of the influence`;
      line.append(title);
      picture.append(line);
    }
    for (const box of shown) picture.append(drawn(box, near));
    byId("circuit").replaceChildren(picture);
    byId("circuit").classList.toggle("chosen", chosen >= 0);
    tell(edges);
  }

  function drawn(box: Placed, near: Set<number>): SVGElement {
    const node = data.nodes[box.i];
    const group = svg("g", {
      class: `node ${node.kind}${near.has(box.i) || box.i === chosen ? " near" : ""}`, tabindex: 0, role: "button", "data-node": box.i,
      "aria-pressed": String(box.i === chosen), "aria-label": `${called(data, box.i)}, ${percent(node.influence)} of the influence, in ${percent(node.share)} of prompts`,
    });
    const x = box.x - box.width / 2, y = box.y - box.height / 2, round = node.kind === "token" ? 0 : 9;
    group.append(svg("rect", { x, y, width: box.width, height: box.height, rx: round }));
    if (node.kind === "named") group.append(svg("rect", { x: x - 3, y: y - 3, width: box.width + 6, height: box.height + 6, rx: round + 3, class: "outer" }));
    box.lines.forEach((line, i) => {
      const text = svg("text", { x: box.x, y: y + 15 + i * LINE, "text-anchor": "middle", class: i >= box.lines.length - 1 ? "facts-line" : "" });
      text.textContent = line;
      group.append(text);
    });
    group.addEventListener("click", () => choose(box.i));
    group.addEventListener("keydown", (event) => {
      const key = (event as KeyboardEvent).key;
      if (key === "Enter" || key === " ") { event.preventDefault(); choose(box.i); }
    });
    return group;
  }

  function choose(i: number): void {
    chosen = i;
    draw();
    if (i >= 0) byId("circuit").querySelector<SVGElement>(`[data-node="${i}"]`)?.focus();
  }

  function tell(edges: Edge[]): void {
    byId("card").replaceChildren(...(chosen < 0 ? overview() : details(edges)));
    byId("panel").scrollTop = 0;
  }

  function overview(): Node[] {
    const said: (Node | string)[] = [h("h2", {}, "What holds across the prompts"), h("p", { class: "hint" }, "Click a box for its figures and its prompts.")];
    if (data.leftOut) said.push(h("p", { class: "hint" }, `${data.leftOut} graphs are of no pattern and left out.`));
    const stable = data.stability;
    if (stable)
      said.push(h("h3", {}, "How stable it is"), h("p", {}, `Over ${stable.splits} random halves of the prompts, the features' influence correlates with ${probability(stable.nodes)}, the edges' weights with ${probability(stable.edges)}, and ${percent(stable.overlap)} of the features are in both circuits.`));
    const compared = data.comparison;
    if (compared) {
      said.push(h("h3", {}, `What differs by ${visible(compared.key)}`),
        h("p", { class: "hint" }, `${compared.nodes.length} of ${compared.tested} boxes tested; at most ${percent(compared.false_discovery_rate)} of them are expected to be mistakes.`),
        ...compared.nodes.slice(0, 60).map((one) => h("div", { class: "difference" }, link(called(data, one.node), () => reveal(one.node)),
          h("p", { class: "hint", dir: "auto" }, `${compared.groups.map((group, i) => `${visible(group)} ${percent(one.means[i])}`).join(" · ")} · q = ${plain(one.q)}`))));
    }
    said.push(h("h3", {}, `${data.prompts.length} prompts`), ...list(data.prompts.map((_, i) => [i, NaN])));
    return said as Node[];
  }

  function details(edges: Edge[]): Node[] {
    const node = data.nodes[chosen], span = (range: [number, number]): string => `${percent(range[0])} to ${percent(range[1])}`;
    const facts: [string, string][] = [
      ["kept in", `${percent(node.share)} of prompts (${span(node.share_interval)})`],
      ["influence", `${percent(node.influence)} on average (${span(node.influence_interval)}), spread ${percent(node.spread)}`],
      ["in the circuit", `of ${percent(node.selected)} of the resamples`],
    ];
    if (node.activation > 0) facts.push(["activation", plain(node.activation)]);
    if (node.layers[0] >= 0 && node.kind !== "target") facts.push(["layers", node.layers[0] === node.layers[1] ? `L${node.layers[0]}` : `L${node.layers[0]}–${node.layers[1]}`]);
    const rows = (pairs: [string, string][]): HTMLElement => h("table", {}, ...pairs.map(([name, value]) => h("tr", {}, h("th", {}, name), h("td", { dir: "auto" }, value))));
    const group = data.comparison?.nodes.find((one) => one.node === chosen);
    const ends = (which: 0 | 1, title: string): Node[] => {
      const own = edges.filter((edge) => edge[which] === chosen).sort((a, b) => b[6] - a[6]);
      return own.length ? [h("h3", {}, title), h("table", {}, ...own.slice(0, 30).map((edge) => h("tr", {},
        h("td", {}, link(called(data, edge[1 - which]), () => choose(edge[1 - which]))), h("td", { class: "n" }, signed(edge[3])),
        h("td", { class: "n" }, percent(edge[2])), h("td", { class: "n" }, percent(edge[6])))))] : [];
    };
    return [
      h("h2", { dir: "auto" }, called(data, chosen)), rows(facts),
      ...(group && data.comparison ? [h("h3", {}, `By ${visible(data.comparison.key)} (q = ${plain(group.q)})`),
        rows(data.comparison.groups.map((name, i) => [name, `${percent(group.means[i])}, in ${percent(group.shares[i])}`]))] : []),
      ...(node.features.length > (node.kind === "feature" ? 1 : 0) ? [h("h3", {}, "Features, by prompts"), h("p", {}, node.features.map(([name, times]) => `${name} (${times})`).join(", "))] : []),
      ...(Object.keys(node.targets).length ? [h("h3", {}, "Influence on targets"), rows(Object.entries(node.targets).map(([text, part]) => [visible(text), percent(part)]))] : []),
      ...ends(1, "From: weight, prompts, influence"), ...ends(0, "To: weight, prompts, influence"),
      h("h3", {}, "Prompts, most influence first"), ...list(node.prompts, node.role),
    ];
  }

  function list(prompts: [number, number][], role = ""): Node[] {
    const table = h("table", {}, ...prompts.slice(0, 200).map(([i, value]) => {
      const place = h("div", { hidden: true });
      const open = link(short(data.prompts[i].prompt.replace(/^<bos>\s*/, ""), 90), () => {
        if (place.hidden) place.replaceChildren(...told(i, role));
        place.hidden = !place.hidden;
        open.setAttribute("aria-expanded", String(!place.hidden));
      });
      open.setAttribute("aria-expanded", "false");
      return h("tr", {}, h("td", {}, open, place), Number.isNaN(value) ? null : h("td", { class: "n" }, percent(value)));
    }));
    return [table, ...(prompts.length > 200 ? [h("p", { class: "hint" }, `and ${prompts.length - 200} more`)] : [])];
  }

  function told(i: number, role: string): Node[] {
    const prompt = data.prompts[i], text = h("p", { class: "prompt-text", dir: "auto" });
    prompt.tokens.forEach((token, at) => text.append(prompt.roles[at] === role ? h("mark", {}, visible(token)) : visible(token), " "));
    const known = Object.entries(prompt.metadata).map(([key, value]) => `${key}: ${typeof value === "string" ? value : JSON.stringify(value)}`);
    return [text, h("p", { class: "hint", dir: "auto" }, `→ ${prompt.targets.slice(0, 4).map(([name, weight]) => `${visible(name)} (${probability(weight)})`).join(", ")}${known.length ? ` · ${visible(known.join(", "))}` : ""}`),
      prompt.page ? h("p", {}, h("a", { href: prompt.page }, "its own graph")) : h("p", { class: "hint" }, "Its own graph: ", h("code", {}, `crosstrace view FOLDER/graphs/${prompt.graph}.safetensors`))];
  }

  function reveal(i: number): void {
    if (!shown.some((box) => box.i === i)) {
      const node = data.nodes[i];
      share.value = String(Math.min(Number(share.value), Math.floor(100 * node.share)));
      influence.value = String(Math.min(Number(influence.value), Math.floor(position(node.influence))));
      strength.value = "0";
    }
    chosen = i;
    draw();
    if (chosen < 0) { chosen = i; byId("card").replaceChildren(...details(data.edges)); }
  }

  function step(across: number, up: number): void {
    const from = shown.find((box) => box.i === chosen);
    if (!from) { if (shown.length) choose(shown[shown.length - 1].i); return; }
    let best: Placed | null = null, least = Infinity;
    for (const box of shown) {
      const along = across * (box.x - from.x) - up * (box.y - from.y);
      const aside = Math.abs(across ? box.y - from.y : box.x - from.x);
      if (box.i !== chosen && along > 2 && along + 2 * aside < least) { least = along + 2 * aside; best = box; }
    }
    if (best) choose(best.i);
  }

  for (const input of [share, influence, strength]) input.addEventListener("input", draw);
  const help = byId<HTMLDialogElement>("help");
  byId("open-help").addEventListener("click", () => help.showModal());
  byId("close-help").addEventListener("click", () => help.close());
  byId("licences-text").textContent = byId("licences").textContent;
  document.addEventListener("keydown", (event) => {
    if (help.open || event.ctrlKey || event.metaKey || event.altKey || event.target instanceof HTMLInputElement) return;
    const act: Record<string, () => void> = {
      ArrowLeft: () => step(-1, 0), ArrowRight: () => step(1, 0), ArrowUp: () => step(0, 1), ArrowDown: () => step(0, -1),
      Escape: () => choose(-1), "?": () => help.showModal(),
    };
    if (!act[event.key]) return;
    event.preventDefault();
    act[event.key]();
  });
  byId("title").textContent = visible(data.title);
  byId("about").textContent = [data.model, data.transcoders].filter(Boolean).map(visible).join("  ·  ");
  draw();
  byId("app").removeAttribute("aria-busy");
  return { data, choose };
}

const link = (text: string, act: () => void): HTMLElement => on(h("button", { type: "button", class: "link", dir: "auto" }, visible(text)), { click: act });

/** Sliders of strength are quadratic: most of what can be told apart is small. */
const size = (at: number): number => (at / 100) ** 2 / 4;
const position = (value: number): number => Math.min(100 * Math.sqrt(4 * value), 100);

function called(data: AggregateData, i: number): string {
  const node = data.nodes[i], name = node.name.trim() || node.feature || "";
  const full = node.kind === "feature" && node.name.trim() ? `${name} (${node.feature})` : name;
  return node.kind === "target" ? full : node.kind === "token" ? `token ${full}` : `${full} @ ${node.role}`;
}

/** Where the boxes stand: a column a role, a row a few layers; what shares a cell stands one above the other. */
function place(data: AggregateData, nodes: number[]): { boxes: Placed[]; rows: { name: string; y: number }[]; width: number; height: number } {
  const band = Math.ceil(data.layers / MOST_ROWS);
  const rowOf = (node: Box): number => node.kind === "token" ? TOKENS : node.kind === "error" ? ERRORS : node.kind === "target" ? data.layers : Math.floor(Math.floor(node.layer) / band) * band;
  const boxes = nodes.map((i): Placed => {
    const node = data.nodes[i];
    const lines = node.kind === "feature" && node.name.trim() ? [short(node.name, 26), node.feature!] : [short(node.name.trim() || node.feature || "", 26)];
    lines.push(percent(node.influence) + (node.share < 0.995 ? ` · in ${percent(node.share)}` : ""));
    return { i, x: 0, y: 0, width: Math.max(...lines.map((line) => 7.2 * line.length + 18), 64), height: 8 + LINE * lines.length, lines };
  });
  const cells = new Map<string, Placed[]>(), columns = new Map<number, number>(), rows = new Map<number, number>();
  for (const box of boxes) {
    const node = data.nodes[box.i], key = `${rowOf(node)}/${node.position}`;
    cells.set(key, [...(cells.get(key) ?? []), box]);
  }
  for (const [key, cell] of cells) {
    const [row, column] = key.split("/").map(Number), across = cell.length > 2 ? 2 : 1;
    const width = across * Math.max(...cell.map((box) => box.width)) + (across - 1) * GAP;
    const height = Math.ceil(cell.length / across) * (Math.max(...cell.map((box) => box.height)) + GAP) - GAP;
    columns.set(column, Math.max(columns.get(column) ?? 0, width));
    rows.set(row, Math.max(rows.get(row) ?? 0, height));
  }
  const left = new Map<number, number>(), top = new Map<number, number>();
  let x = LEFT, y = 10;
  for (const column of [...columns.keys()].sort((a, b) => a - b)) { left.set(column, x); x += columns.get(column)! + 2 * GAP; }
  const names: { name: string; y: number }[] = [];
  for (const row of [...rows.keys()].sort((a, b) => b - a)) {
    top.set(row, y);
    const last = Math.min(row + band, data.layers) - 1;
    names.push({ name: row === TOKENS ? "tokens" : row === ERRORS ? "errors" : row === data.layers ? "output" : last === row ? `layer ${row}` : `layers ${row}–${last}`, y: y + rows.get(row)! / 2 });
    y += rows.get(row)! + ROW_GAP;
  }
  for (const [key, cell] of cells) {
    const [row, column] = key.split("/").map(Number), across = cell.length > 2 ? 2 : 1, lines = Math.ceil(cell.length / across);
    const width = Math.max(...cell.map((box) => box.width)), height = Math.max(...cell.map((box) => box.height));
    cell.forEach((box, k) => {
      const middle = left.get(column)! + columns.get(column)! / 2;
      box.x = middle + ((k % across) - (across - 1) / 2) * (width + GAP);
      box.y = top.get(row)! + rows.get(row)! / 2 + (Math.floor(k / across) - (lines - 1) / 2) * (height + GAP);
    });
  }
  // Columns are arcs, so that edges of one column do not all run along one line; there is room to the right of the last.
  const height = Math.max(y - ROW_GAP + 10, 100), last = Math.max(...columns.keys());
  for (const box of boxes) {
    const column = data.nodes[box.i].position, along = box.y / height;
    box.x += 4 * along * (1 - along) * (column === last ? BEND : Math.min(BEND, 0.3 * columns.get(column)!));
  }
  return { boxes, rows: names, width: Math.max(x + BEND, 300), height };
}

if (typeof document !== "undefined") {
  try {
    Object.assign(globalThis, { crosstrace: start(JSON.parse(byId("data").textContent!) as AggregateData) });
  } catch (problem) {
    fail(problem);
  }
}
