// The panel of a comparison: while nothing is selected, what changed; otherwise one node with both graphs' numbers and edges.

import { featureCard } from "./card";
import { button, byId, h, on } from "./dom";
import { List } from "./list";
import type { Both, Pair, Place } from "./pair";
import { icon } from "./shapes";
import { percent, plain, points, probability, short, signed, whole } from "./text";

const ROW = 34;

export interface PanelActions {
  select(place: Place | null): void;
  hint(place: Place | null): void;
}

interface EdgePair {
  place: Place;
  weights: [number | null, number | null];
}

type Tab = "all" | "shared" | "untracedA" | "untracedB" | "a" | "b";

export class ComparePanel {
  private element = byId("panel");
  private tab: Tab = "all";

  constructor(private pair: Pair, private actions: PanelActions) {}

  update(selected: Place | null): void {
    if (selected) this.showNode(selected);
    else this.showOverview();
  }

  private replace(...parts: (HTMLElement | null)[]): void {
    this.element.replaceChildren(...parts.filter((part): part is HTMLElement => part !== null));
  }

  private showOverview(): void {
    const { pair } = this;
    const features = pair.shown("feature");
    const lists: Record<Tab, Both[]> = { all: features, shared: [], untracedA: [], untracedB: [], a: [], b: [] };
    for (const both of features) {
      const place = pair.placeOf(both), kind = pair.kindOf(place);
      lists[kind === "shared" ? "shared" : kind === "untraced" ? (place.side === 0 ? "untracedB" : "untracedA") : place.side === 0 ? "a" : "b"].push(both);
    }
    for (const list of Object.values(lists)) list.sort((x, y) => pair.size(y) - pair.size(x));
    const [a, b] = pair.sides.map((side) => short(side.name, 12));
    const untraced: [Tab, string][] = [["untracedA", `Not traced in ${a}`], ["untracedB", `Not traced in ${b}`]];
    const tabs: [Tab, string][] = [["all", "All"], ["shared", "Shared"], ...untraced.filter(([tab]) => lists[tab].length), ["a", `Only ${a}`], ["b", `Only ${b}`]];
    if (!tabs.some(([tab]) => tab === this.tab)) this.tab = "all";
    const list = new List<Both>("Features", ROW, (both) => this.featureRow(both));
    const notes = pair.sides.flatMap(({ name, model }) => {
      const { graph, data } = model;
      const own = data.whole.nodes > graph.n ? [`${name}: this page holds the ${whole(graph.n)} most influential of ${whole(data.whole.nodes)} nodes.`] : [];
      return [...own, ...data.notes.map((note) => `${name}: ${note}`)];
    });
    this.replace(
      h("div", { class: "scroll" }, h("section", {}, h("h2", {}, "Output"), this.columns("Δ pp"), ...this.outputs()), ...notes.map((note) => h("p", { class: "note" }, note))),
      h("div", { class: "tabs", role: "group", "aria-label": "Features" },
        ...tabs.map(([tab, name]) => {
          const tabButton = button(`${name} ${whole(lists[tab].length)}`, "Sorted by the change in influence", () => {
            this.tab = tab;
            this.showOverview();
            document.getElementById(`tab-${tab}`)?.focus();
          }, tab === this.tab ? "active" : "");
          tabButton.id = `tab-${tab}`;
          tabButton.setAttribute("aria-pressed", String(tab === this.tab));
          return tabButton;
        })),
      h("div", { class: "columns-head" }, h("span", { class: "hint" }, "influence"), this.columns("Δ pp")),
      list.element,
    );
    list.set(lists[this.tab]);
  }

  /** The headings of the two columns of numbers. */
  private columns(third = "change"): HTMLElement {
    const [a, b] = this.pair.sides;
    return h("div", { class: "pair-head" }, h("span", {}, short(a.name, 8)), h("span", {}, short(b.name, 8)), h("span", {}, third));
  }

  private outputs(): HTMLElement[] {
    const { pair } = this;
    const chance = (both: Both, side: number): number | null => (both[side] < 0 ? null : pair.sides[side].model.chance(both[side]));
    const most = (both: Both): number => Math.max(chance(both, 0) ?? 0, chance(both, 1) ?? 0);
    return pair.shown("logit").sort((x, y) => most(y) - most(x)).slice(0, 6).map((both) => {
      const [a, b] = [chance(both, 0), chance(both, 1)];
      return this.row(pair.placeOf(both), a === null ? "–" : probability(a), b === null ? "–" : probability(b), a === null || b === null ? "" : points(b - a, ""), (b ?? 0) - (a ?? 0));
    });
  }

  private featureRow(both: Both): HTMLElement {
    const { pair } = this;
    const place = pair.placeOf(both);
    const untraced = pair.isUntraced(both);
    const share = (side: number): string => (both[side] < 0 ? (untraced ? "untraced" : "–") : percent(pair.sides[side].influence(both[side])));
    return this.row(place, share(0), share(1), points(pair.change(both), ""), pair.change(both));
  }

  private row(place: Place, a: string, b: string, change: string, sign: number): HTMLElement {
    const { model } = this.pair.sides[place.side];
    const { shape, tone } = this.pair.look(place);
    const row = h("button", { type: "button", class: "pair-row", "data-id": model.id(place.node), "data-side": place.side },
      icon(shape, tone) as unknown as HTMLElement,
      h("span", { class: "pair-name" }, h("span", { class: "name", dir: "auto" }, model.name(place.node)), h("span", { class: "place", dir: "auto" }, model.place(place.node))),
      h("span", { class: "number" }, a), h("span", { class: "number" }, b), h("span", { class: `number ${sign > 0 ? "plus" : sign < 0 ? "minus" : ""}` }, change));
    return on(row, {
      click: () => this.actions.select(place),
      mouseenter: () => this.actions.hint(place),
      mouseleave: () => this.actions.hint(null),
      focus: () => this.actions.hint(place),
      blur: () => this.actions.hint(null),
    });
  }

  private showNode(place: Place): void {
    const { pair } = this;
    const { model } = pair.sides[place.side], both = pair.both(place);
    const kind = model.kind(place.node);
    const { shape, tone } = pair.look(place);
    const fact = (name: string, value: (side: number) => string): HTMLElement =>
      h("tr", {}, h("th", { scope: "row" }, name), ...both.map((node, side) => h("td", {}, node < 0 ? "–" : value(side))));
    const activation = (side: number): string => {
      const value = pair.sides[side].model.activation(both[side]);
      return value === null ? "–" : plain(value);
    };
    const where = kind === "feature" ? `feature L${model.featureKey(place.node)}` : kind === "error" ? `error L${model.layer(place.node)}` : kind === "token" ? "token" : "output";
    const positions = both.map((node, side) => (node < 0 ? "–" : `${short(pair.sides[side].model.token(pair.sides[side].model.position(node)), 14)} (${pair.sides[side].model.position(node)})`));
    const card = featureCard(model, place.node);
    this.replace(
      h("div", { class: "head" },
        h("div", { class: "title" }, icon(shape, tone) as unknown as HTMLElement, h("h2", { dir: "auto" }, model.name(place.node, 120))),
        h("div", { class: "actions" }, button("✕", "Close (Esc)", () => this.actions.select(null), "quiet"))),
      h("p", { class: "where", dir: "auto" }, where),
      h("table", { class: "facts" },
        h("thead", {}, h("tr", {}, h("td", {}), ...pair.sides.map((side) => h("th", { scope: "col" }, short(side.name, 12))))),
        h("tbody", {},
          h("tr", {}, h("th", { scope: "row" }, "at"), ...positions.map((text) => h("td", { dir: "auto" }, text))),
          kind === "feature" ? fact("activation", activation) : null,
          kind === "logit" ? fact("probability", (side) => probability(pair.sides[side].model.chance(both[side]) ?? NaN)) : fact("influence", (side) => percent(pair.sides[side].influence(both[side]))))),
      pair.elsewhere(place) ? h("p", { class: "note", id: "elsewhere" }, pair.elsewhere(place)) : null,
      card.length ? h("div", { class: "card scroll" }, ...card) : null,
      ...this.edges("Fed by", "fed-by", both, true),
      ...this.edges("Feeds", "feeds", both, false),
    );
  }

  /** A node's edges that either graph shows, in one list, the largest weight first. */
  private edges(title: string, id: string, both: Both, incoming: boolean): HTMLElement[] {
    const { pair } = this;
    // An edge that one graph prunes still has a weight there.
    const weight = (side: number, neighbour: number): number | null => {
      if (both[side] < 0 || neighbour < 0) return null;
      const { model } = pair.sides[side];
      return incoming ? model.weight(neighbour, both[side]) : model.weight(both[side], neighbour);
    };
    const pairs: EdgePair[] = [];
    const seen = new Set<number>();
    for (const { number: side, model } of pair.sides) {
      const neighbours = both[side] < 0 ? [] : incoming ? model.feeders(both[side]) : model.fed(both[side]);
      for (const { node } of neighbours) {
        const ends = pair.both({ side, node });
        if (side === 1 && seen.has(node)) continue;
        seen.add(side === 0 ? ends[1] : node);
        pairs.push({ place: { side, node }, weights: [weight(0, ends[0]), weight(1, ends[1])] });
      }
    }
    if (!pairs.length) return [];
    const size = ({ weights: [a, b] }: EdgePair): number => Math.max(Math.abs(a ?? 0), Math.abs(b ?? 0));
    pairs.sort((x, y) => size(y) - size(x));
    const list = new List<EdgePair>(title, ROW, ({ place, weights: [a, b] }) => {
      const change = (b ?? 0) - (a ?? 0);
      return this.row(place, a === null ? "–" : signed(a), b === null ? "–" : signed(b), signed(change), change);
    });
    list.element.id = id;
    queueMicrotask(() => list.set(pairs));
    return [h("div", { class: "columns-head" }, h("h3", {}, `${title} (${whole(pairs.length)})`), this.columns()), list.element];
  }
}
