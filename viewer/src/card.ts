// The card of a feature: what is known about it beyond its edges. Every part is optional.

import type { Card } from "./data";
import { h, svg } from "./dom";
import type { Model } from "./model";
import { percent, plain, signed, visible, whole } from "./text";

export function featureCard(model: Model, node: number): HTMLElement[] {
  const card = model.card(node);
  const parts: (HTMLElement | null)[] = [
    contexts(card),
    effects(model, node),
    tokens("Promotes", card.promoted, "plus"),
    tokens("Suppresses", card.suppressed, "minus"),
    latents(card),
    links("Fed by, in general", card.inputs, model),
    links("Feeds, in general", card.outputs, model),
    firing(model, node),
    histogram(card),
  ];
  return there(parts);
}

/** What a card says, whatever prompt the feature fires in. */
export function cardSections(card: Card): HTMLElement[] {
  return there([contexts(card), tokens("Promotes", card.promoted, "plus"), tokens("Suppresses", card.suppressed, "minus"), links("Fed by, in general", card.inputs), links("Feeds, in general", card.outputs), histogram(card)]);
}

function there(parts: (HTMLElement | null)[]): HTMLElement[] {
  return parts.filter((part): part is HTMLElement => part !== null);
}

function section(title: string, ...content: (Node | string)[]): HTMLElement {
  return h("section", {}, h("h3", {}, title), ...content);
}

/** What it does to this graph's targets: its direct edges to them. */
function effects(model: Model, node: number): HTMLElement | null {
  const rows = model.targets.map((target) => ({ target, weight: model.weight(node, target) })).filter(({ weight }) => weight !== null);
  if (!rows.length) return null;
  const chips = rows.sort((a, b) => Math.abs(b.weight!) - Math.abs(a.weight!)).slice(0, 6).map(({ target, weight }) =>
    h("span", { class: `chip ${weight! > 0 ? "plus" : "minus"}`, dir: "auto" }, `${model.name(target, 20)} ${signed(weight!)}`));
  return section("Directly on this graph's outputs", h("p", { class: "chips" }, ...chips));
}

/** Latents of SAEs that it writes to directly: its decoder times their encoders. */
function latents(card: Card): HTMLElement | null {
  if (!Array.isArray(card.latents) || !card.latents.length) return null;
  const chips = card.latents.slice(0, 12).map(([name, effect]) =>
    h("span", { class: `chip ${effect > 0 ? "plus" : "minus"}`, title: "what a unit of activation adds, directly" }, `${name} ${signed(Number(effect))}`));
  return section("Writes to latents", h("p", { class: "chips" }, ...chips));
}

/** Global weights: features that write to it, or that it writes to, whatever the prompt. */
function links(title: string, list: Card["inputs"], model: Model | null = null): HTMLElement | null {
  if (!Array.isArray(list) || !list.length) return null;
  const here = new Set<string>();
  for (let i = 0; model && i < model.graph.n; i++) if (model.kind(i) === "feature") here.add(`L${model.featureKey(i)}`);
  const chips = list.slice(0, 12).map((link) => {
    const weight = Number(link.weight), expected = typeof link.expected === "number" ? link.expected : null;
    const said = [
      `${link.feature}: a unit of activation adds ${signed(weight)}`,
      link.head ? `through head ${link.head}, per unit of attention` : "",
      expected === null ? "" : `on average ${signed(expected)} where the later one is active`,
      link.interference ? "interference: never active together in the sample" : "",
      here.has(String(link.feature)) ? "in this graph" : "",
    ];
    const marks = `${link.interference ? " interference" : ""}${here.has(String(link.feature)) ? " here" : ""}`;
    const name = visible(String(link.label || link.feature));
    return h("span", { class: `chip ${weight > 0 ? "plus" : "minus"}${marks}`, dir: "auto", title: said.filter(Boolean).join("; ") },
      `${name}${link.head ? ` via ${link.head}` : ""} ${signed(weight)}${link.interference ? " (interference)" : ""}`);
  });
  return section(title, h("p", { class: "chips" }, ...chips));
}

const WHOLE_PROMPT = 300, AROUND = 8, MOST_PLACES = 12;

/** The prompt with the feature's activation drawn on each token; of a long one, the places where it fires most. */
function firing(model: Model, node: number): HTMLElement | null {
  const fires = new Map(model.fires(node));
  if (!fires.size) return null;
  const { tokens: texts } = model.data, here = model.position(node);
  const part = (from: number, to: number): HTMLElement => {
    const own = texts.slice(from, to);
    return marked(own, own.map((_, i) => fires.get(from + i) ?? 0), here - from);
  };
  if (texts.length <= WHOLE_PROMPT) return section("In this prompt", part(0, texts.length));
  const strongest = [...fires].sort((a, b) => b[1] - a[1]).slice(0, MOST_PLACES).map(([position]) => position);
  const ranges: [number, number][] = [];
  for (const position of [...new Set([here, ...strongest])].sort((a, b) => a - b)) {
    const last = ranges[ranges.length - 1], from = Math.max(position - AROUND, 0), to = Math.min(position + AROUND + 1, texts.length);
    if (last && from <= last[1]) last[1] = to;
    else ranges.push([from, to]);
  }
  const parts = ranges.flatMap(([from, to]) => [h("p", { class: "facts" }, `tokens ${whole(from)} to ${whole(to - 1)}`), part(from, to)]);
  return section(`In this prompt, at ${whole(fires.size)} of ${whole(texts.length)} tokens`, ...parts);
}

/** Tokens with their activations as shades; the strongest also underlined, for readers who cannot tell the shades apart. */
function marked(texts: string[], activations: number[], here = -1): HTMLElement {
  const most = activations.reduce((a, b) => Math.max(a, b), 0);
  const line = h("p", { class: "tokens", dir: "auto" });
  // A tokenizer of whole words drops the blanks.
  const words = texts.length > 1 && !texts.some((text) => /^\s|\s$/.test(String(text)));
  texts.forEach((text, i) => {
    if (words && i) line.append(" ");
    const value = activations[i] ?? 0;
    const token = h("span", {}, visible(String(text)));
    if (value > 0 && most > 0) {
      token.className = i === here || value === most ? "on most" : "on";
      token.style.setProperty("--strength", `${Math.round(12 + 68 * (value / most))}%`);
      token.title = `activation ${plain(value)}`;
    }
    line.append(token);
  });
  return line;
}

function tokens(title: string, list: Card["promoted"], className: string): HTMLElement | null {
  if (!Array.isArray(list) || !list.length) return null;
  const entries = list.slice(0, 12).map((entry): [string, number | null] => (typeof entry === "string" ? [entry, null] : [String(entry[0]), Number(entry[1])]));
  const bare = (text: string): string => visible(text).replace(/^ +| +$/g, "");
  const chips = entries.map(([text, value]) => {
    // " Paris" and "Paris" are two tokens: where both are there, blanks are shown.
    const alike = entries.filter(([other]) => bare(other) === bare(text)).length > 1;
    const shown = (alike ? visible(text).replace(/^ +| +$/g, (blanks) => "␣".repeat(blanks.length)) : bare(text)) || "␣";
    return h("span", { class: `chip ${className}`, dir: "auto", title: value === null ? null : signed(value) }, shown);
  });
  return section(title, h("p", { class: "chips" }, ...chips));
}

function histogram(card: Card): HTMLElement | null {
  const counts = card.histogram?.counts;
  const rate = typeof card.firing_rate === "number" ? `Fires on ${percent(card.firing_rate)} of tokens` : "";
  if (!Array.isArray(counts) || !counts.length) return rate ? h("p", { class: "facts" }, rate) : null;
  const most = Math.max(...counts, 1);
  const image = svg("svg", { viewBox: `0 0 ${counts.length} 40`, class: "histogram", preserveAspectRatio: "none", role: "img", "aria-label": "Histogram of activations" });
  counts.forEach((count, i) => {
    // Logarithmic, because high activations are rare and matter most.
    const height = count > 0 ? Math.max((36 * Math.log1p(count)) / Math.log1p(most), 1) : 0;
    image.append(svg("rect", { x: i + 0.08, y: 40 - height, width: 0.84, height }));
  });
  const edges = card.histogram?.edges ?? [];
  const range = edges.length ? [plain(Number(edges[0])), plain(Number(edges[edges.length - 1]))] : ["", ""];
  return section("Activations", image as unknown as HTMLElement, h("p", { class: "facts ends" }, h("span", {}, range[0]), h("span", {}, rate), h("span", {}, range[1])));
}

function contexts(card: Card): HTMLElement | null {
  const given = Array.isArray(card.contexts) ? card.contexts.filter((c) => Array.isArray(c?.tokens) && Array.isArray(c?.activations)) : [];
  if (!given.length) return null;
  return section("Fires on", ...given.slice(0, 20).map((context) => marked(context.tokens, context.activations)));
}
