// A long list of which only the rows in view exist.

import { elementScroll, observeElementOffset, observeElementRect, Virtualizer } from "@tanstack/virtual-core";
import { h } from "./dom";

export class List<T> {
  readonly element: HTMLElement;
  private inner = h("div", { class: "list-inner", role: "list" });
  private items: T[] = [];
  private virtual: Virtualizer<HTMLElement, Element>;
  private rows = new Map<number, HTMLElement>();

  constructor(label: string, private rowHeight: number, private render: (item: T, index: number) => HTMLElement) {
    this.inner.setAttribute("aria-label", label);
    this.element = h("div", { class: "list", tabindex: -1 }, this.inner);
    this.virtual = new Virtualizer<HTMLElement, Element>(this.options());
    this.virtual._didMount();
    this.element.addEventListener("keydown", (event) => this.step(event));
  }

  private options() {
    return {
      count: this.items.length,
      getScrollElement: () => this.element,
      estimateSize: () => this.rowHeight,
      overscan: 6,
      scrollToFn: elementScroll,
      observeElementRect,
      observeElementOffset,
      onChange: () => this.draw(),
    };
  }

  set(items: T[]): void {
    this.items = items;
    this.element.hidden = !items.length;
    this.rows.clear();
    this.element.scrollTop = 0;
    this.virtual.setOptions(this.options());
    this.virtual._willUpdate();
    this.virtual.measure();
    const height = items.length * this.rowHeight;
    this.inner.style.height = `${height}px`;
    this.element.style.maxHeight = `${height + 2}px`;
    this.element.style.minHeight = `${Math.min(height, 3 * this.rowHeight)}px`;
    this.draw();
  }

  private draw(): void {
    const wanted = new Map<number, HTMLElement>();
    for (const { index, start } of this.virtual.getVirtualItems()) {
      let row = this.rows.get(index);
      if (!row) {
        const inside = this.render(this.items[index], index);
        inside.classList.add("row");
        row = h("div", { role: "listitem", class: "item" }, inside);
        row.dataset.index = String(index);
        row.setAttribute("aria-setsize", String(this.items.length));
        row.setAttribute("aria-posinset", String(index + 1));
        row.style.height = `${this.rowHeight}px`;
        row.style.transform = `translateY(${start}px)`;
      }
      wanted.set(index, row);
    }
    // Rows that stay are not touched: removing and inserting them again would lose the focus.
    for (const [index, row] of this.rows) if (wanted.get(index) !== row) row.remove();
    for (const child of [...this.inner.children]) if (wanted.get(Number((child as HTMLElement).dataset.index)) !== child) child.remove();
    for (const row of wanted.values()) if (!row.isConnected || row.parentNode !== this.inner) this.inner.append(row);
    this.rows = wanted;
  }

  private step(event: KeyboardEvent): void {
    const down = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const row = (event.target as HTMLElement).closest<HTMLElement>(".item");
    if (!down || !row) return;
    event.preventDefault();
    event.stopPropagation();
    const next = Number(row.dataset.index) + down;
    if (next < 0 || next >= this.items.length) return;
    this.virtual.scrollToIndex(next, { align: "auto" });
    this.draw();
    this.rows.get(next)?.querySelector("button")?.focus({ preventScroll: true });
  }
}
