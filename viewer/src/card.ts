// The card of a feature: what is known about it beyond its edges. Every part is optional.

import type { Card } from "./data";
import { h, svg } from "./dom";
import type { Model } from "./model";
import { percent, plain, signed, visible } from "./text";

export function featureCard(model: Model, node: number): HTMLElement[] {
  const fires = firing(model, node);
  return [...(fires ? [fires] : []), ...cardSections(model.card(node))];
}

/** What a card says, whatever prompt the feature fires in. */
export function cardSections(card: Card): HTMLElement[] {
  const parts = [tokens("Promotes", card.promoted, "plus"), tokens("Suppresses", card.suppressed, "minus"), histogram(card), contexts(card)];
  return parts.filter((part): part is HTMLElement => part !== null);
}

function section(title: string, ...content: (Node | string)[]): HTMLElement {
  return h("section", {}, h("h3", {}, title), ...content);
}

/** The prompt with the feature's activation drawn on each token. */
function firing(model: Model, node: number): HTMLElement | null {
  const fires = new Map(model.fires(node));
  if (!fires.size) return null;
  const activations = model.data.tokens.map((_, position) => fires.get(position) ?? 0);
  return section("In this prompt", marked(model.data.tokens, activations, model.position(node)));
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
  const chips = list.slice(0, 12).map((entry) => {
    const [text, value] = typeof entry === "string" ? [entry, null] : [String(entry[0]), Number(entry[1])];
    const shown = visible(text).replace(/^ +| +$/g, "") || "␣";
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
  return section("Top contexts", ...given.slice(0, 20).map((context) => marked(context.tokens, context.activations)));
}
