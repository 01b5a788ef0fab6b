// The page of a reading: tokens above, the latents of the chosen token below, the chosen latent's card beside them.
// `graphs/page/reading.py` declares what it holds.

import { cardSections } from "./card";
import type { Card } from "./data";
import { byId, h, on } from "./dom";
import { fail } from "./page";
import { plain, short, visible } from "./text";

interface Latent {
  name: string;
  dictionary: number;
  layer: number;
  label: string;
  fires: [number, number][];
  card: Card | null;
}

interface ReadingData {
  format: "crosstrace-reading-page";
  version: number;
  prompt: string;
  model: string;
  tokens: string[];
  excluded: number;
  dictionaries: { name: string; site: string; layers: [number, number, number | null][] }[];
  latents: Latent[];
  positions: number[][];
  notes: string[];
}

export function start(data: ReadingData): unknown {
  if (data.format !== "crosstrace-reading-page" || data.version !== 1) throw new Error("it is of another version of crosstrace");
  // What is pointed at shows for as long as it is; what was clicked stays.
  let keptToken = lastToken(data), keptLatent = data.positions[keptToken]?.[0] ?? -1;
  const words = data.tokens.length > 1 && !data.tokens.some((token) => /^\s|\s$/.test(token)); // a tokenizer of whole words
  const tokens = data.tokens.map((token, position) => {
    if (position < data.excluded) return h("button", { type: "button", class: "excluded", disabled: true }, visible(token));
    return on(h("button", { type: "button" }, visible(token)), {
      pointerenter: () => showToken(position),
      pointerleave: () => showToken(keptToken),
      click: () => keepToken(position),
      focus: () => keepToken(position),
    });
  });
  tokens.forEach((token, i) => byId("prompt").append(...(words && i ? [" ", token] : [token])));

  function showToken(position: number): void {
    const here = data.positions[position] ?? [];
    const value = new Map(here.map((i) => [i, activation(data.latents[i], position)]));
    const rows: HTMLElement[] = [];
    let group = "", most = 1;
    for (const i of here) {
      const latent = data.latents[i], dictionary = data.dictionaries[latent.dictionary];
      if (group !== `${latent.dictionary}/${latent.layer}`) {
        group = `${latent.dictionary}/${latent.layer}`;
        most = value.get(i)!;
        const layer = dictionary.layers.find(([number]) => number === latent.layer)!;
        const expected = layer[2] === null ? "" : `, ${plain(layer[2])} in the config`;
        rows.push(h("h2", { dir: "auto" }, `${dictionary.site} ${latent.layer}`,
          h("span", { class: "place" }, `${short(dictionary.name, 60)}  ·  ${plain(layer[1])} active at a token${expected}`)));
      }
      const bar = h("span", {});
      bar.style.width = `${(100 * value.get(i)!) / most}%`;
      rows.push(on(h("button", { type: "button", class: "latent", "data-latent": i },
        h("span", { class: "number" }, plain(value.get(i)!)), h("span", { class: "meter" }, bar),
        h("span", { class: "place" }, latent.name), h("span", { class: "name", dir: "auto" }, visible(latent.label))), {
        pointerenter: () => showLatent(i, position),
        pointerleave: () => showLatent(keptLatent, keptToken),
        click: () => keepLatent(i),
        focus: () => keepLatent(i),
      }));
    }
    const place = h("p", { class: "facts", dir: "auto" }, `“${visible(data.tokens[position])}”, position ${position}`);
    byId("latents").replaceChildren(place, ...(rows.length ? rows : [h("p", { class: "note" }, "No latent is active here.")]));
    tokens.forEach((token, i) => token.setAttribute("aria-pressed", String(i === position)));
    mark();
  }

  function keepToken(position: number): void {
    keptToken = position;
    if (!data.positions[position].includes(keptLatent)) keptLatent = data.positions[position][0] ?? -1;
    showToken(position);
    showLatent(keptLatent, position);
  }

  function keepLatent(latent: number): void {
    keptLatent = latent;
    showLatent(latent, keptToken);
    mark();
  }

  function mark(): void {
    byId("latents").querySelectorAll<HTMLElement>(".latent").forEach((row) =>
      row.setAttribute("aria-pressed", String(Number(row.dataset.latent) === keptLatent)));
  }

  function showLatent(i: number, position: number): void {
    const latent = i < 0 ? null : data.latents[i];
    const fires = new Map(latent?.fires ?? []), most = Math.max(...fires.values(), 0);
    tokens.forEach((token, at) => {
      const value = fires.get(at) ?? 0;
      token.classList.toggle("on", value > 0);
      token.title = value > 0 ? `activation ${plain(value)}` : "";
      token.style.setProperty("--strength", `${Math.round(12 + 68 * (value / (most || 1)))}%`);
    });
    if (!latent) {
      byId("card").replaceChildren(h("p", { class: "note" }, "Point at a latent to see its card."));
      return;
    }
    const value = fires.get(position);
    byId("card").replaceChildren(
      h("h2", { dir: "auto" }, visible(latent.label) || latent.name),
      h("p", { class: "where" }, `${latent.name}${value === undefined ? "" : `@${position}, activation ${plain(value)}`}; active at ${fires.size} of ${data.tokens.length - data.excluded} tokens`),
      ...(latent.card ? cardSections(latent.card) : [h("p", { class: "note" }, "There is no card of it: crosstrace features makes them from a corpus.")]),
    );
  }

  function step(by: number): void {
    const next = keptToken + by;
    if (next >= data.excluded && next < data.tokens.length) tokens[next].focus();
  }

  function stepLatent(by: number): void {
    const here = data.positions[keptToken], next = here[here.indexOf(keptLatent) + by];
    if (next !== undefined) byId("latents").querySelector<HTMLElement>(`[data-latent="${next}"]`)?.focus();
  }

  const help = byId<HTMLDialogElement>("help");
  byId("open-help").addEventListener("click", () => help.showModal());
  byId("close-help").addEventListener("click", () => help.close());
  byId("licences-text").textContent = byId("licences").textContent;
  document.addEventListener("keydown", (event) => {
    if (help.open || event.ctrlKey || event.metaKey || event.altKey) return;
    const act: Record<string, () => void> = {
      ArrowLeft: () => step(-1), ArrowRight: () => step(1), ArrowUp: () => stepLatent(-1), ArrowDown: () => stepLatent(1),
      Escape: () => keepLatent(-1), "?": () => help.showModal(),
    };
    if (!act[event.key]) return;
    event.preventDefault();
    act[event.key]();
  });
  byId("about").textContent = [data.model, ...data.dictionaries.map(({ name }) => name)].map(visible).join("  ·  ");
  if (data.notes.length) {
    byId("message").textContent = data.notes.map(visible).join("\n");
    byId("message").hidden = false;
  }
  showToken(keptToken);
  showLatent(keptLatent, keptToken);
  byId("app").removeAttribute("aria-busy");
  return { data, keepToken, keepLatent };
}

/** Where the page opens: at the last token with latents. */
function lastToken(data: ReadingData): number {
  for (let position = data.tokens.length - 1; position >= data.excluded; position -= 1) if (data.positions[position].length) return position;
  return data.tokens.length - 1;
}

function activation(latent: Latent, position: number): number {
  return latent.fires.find(([at]) => at === position)?.[1] ?? 0;
}

if (typeof document !== "undefined") {
  try {
    Object.assign(globalThis, { crosstrace: start(JSON.parse(byId("data").textContent!) as ReadingData) });
  } catch (problem) {
    fail(problem);
  }
}
