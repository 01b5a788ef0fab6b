// The search: by token, label or id, among the nodes that are shown.

import { byId, h } from "./dom";
import type { GraphView } from "./graph_view";
import { List } from "./list";
import type { Model } from "./model";
import { icon } from "./shapes";
import type { Store } from "./state";
import { whole } from "./text";

/** What can be searched: a page's nodes, or those of two graphs. */
export interface Searchable<T> {
  search(query: string): T[];
  /** Marks in the graph what was found; [] ends that. */
  mark(found: T[]): void;
  /** Highlights one as if the pointer were on it; null ends that. */
  hint(item: T | null): void;
  row(item: T): HTMLElement;
  choose(item: T): void;
  /** Gives the focus back. */
  leave(): void;
}

export class Search<T> {
  readonly input = byId<HTMLInputElement>("search");
  private results = byId("results");
  private found: T[] = [];
  private list: List<T>;
  private count = h("p", { class: "hint", "aria-live": "polite" });

  constructor(private source: Searchable<T>) {
    this.list = new List<T>("Search results", 32, (item) => this.row(item));
    this.results.append(this.count, this.list.element);
    this.input.addEventListener("input", () => this.update());
    this.input.addEventListener("focus", () => this.update());
    this.input.addEventListener("keydown", (event) => this.key(event));
    document.addEventListener("pointerdown", (event) => {
      if (!byId("search-box").contains(event.target as Node)) this.close();
    });
    byId("search-box").addEventListener("focusout", (event) => {
      if (event.relatedTarget && !byId("search-box").contains(event.relatedTarget as Node)) this.close();
    });
  }

  update(): void {
    this.found = this.source.search(this.input.value);
    this.source.mark(this.found.slice(0, 400));
    this.results.hidden = !this.input.value.trim();
    this.input.setAttribute("aria-expanded", String(!this.results.hidden));
    this.count.textContent = this.found.length ? `${whole(this.found.length)} found` : "Nothing found at these thresholds";
    this.list.element.style.height = `${Math.min(this.found.length, 9) * 32}px`;
    this.list.set(this.found);
  }

  close(): void {
    this.results.hidden = true;
    this.input.setAttribute("aria-expanded", "false");
    this.source.mark([]);
  }

  private choose(item: T): void {
    this.source.choose(item);
    this.close();
    this.source.leave();
  }

  private row(item: T): HTMLElement {
    const row = this.source.row(item);
    row.addEventListener("click", () => this.choose(item));
    row.addEventListener("focus", () => this.source.hint(item));
    row.addEventListener("blur", () => this.source.hint(null));
    return row;
  }

  private key(event: KeyboardEvent): void {
    event.stopPropagation();
    if (event.key === "Enter" && this.found.length) this.choose(this.found[0]);
    else if (event.key === "Escape") {
      this.input.value = "";
      this.close();
      this.source.leave();
    } else if (event.key === "ArrowDown" && this.found.length) {
      event.preventDefault();
      this.list.element.querySelector<HTMLElement>(".row")?.focus();
    }
  }
}

/** The nodes of the page's one graph. */
export function nodesOf(model: Model, store: Store, view: GraphView): Searchable<number> {
  return {
    search: (query) => model.search(query),
    mark: (found) => view.showFound(found),
    hint: (node) => view.hint(node ?? -1),
    row: (node) => h("button", { type: "button", class: "neighbour", "data-id": model.id(node) }, icon(model.kind(node)) as unknown as HTMLElement,
      h("span", { class: "name", dir: "auto" }, model.name(node)), h("span", { class: "place", dir: "auto" }, model.foundIn(node, byId<HTMLInputElement>("search").value) || model.place(node))),
    choose: (node) => {
      store.set({ clicked: model.id(node) });
      view.reveal(node);
    },
    leave: () => view.element.focus(),
  };
}
