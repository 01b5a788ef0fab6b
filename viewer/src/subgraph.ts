// The pinned nodes and groups as a small graph of their own. A group stands for its members: edges are summed.

import { arranged, drawLines, type BoardEdge, type BoardItem } from "./board";
import { button, byId, h, on } from "./dom";
import type { Drawn } from "./export";
import type { GraphView } from "./graph_view";
import type { Model } from "./model";
import { icon } from "./shapes";
import type { Store } from "./state";
import { plain, short, visible } from "./text";

const LABELLED = 16;

interface Item extends BoardItem {
  /** The key of its place: its id, or that of a group's first member. */
  key: string;
  members: number[];
}

export class Subgraph {
  private pane = byId("subgraph");
  private board = byId("board");
  private lines = byId("lines") as unknown as SVGElement;
  private bar = byId("subgraph-bar");
  private suggested = byId("suggested");
  private open = false;
  /** Of the whole board, of which a part may be in view. */
  private size = { width: 1, height: 1 };
  private drawn: Item[] = [];
  private drawnEdges: BoardEdge[] = [];
  private places = new Map<BoardItem, DOMRect>();
  private dragging: { item: Item; dx: number; dy: number; startX: number; startY: number; moved: boolean } | null = null;

  constructor(private model: Model, private store: Store, private view: GraphView) {
    new ResizeObserver(() => this.draw()).observe(this.board);
    this.listenForDrags();
    byId("open-subgraph").addEventListener("click", () => this.toggle());
  }

  toggle(open = !this.open): void {
    this.open = open;
    this.update();
  }

  update(before?: { pinned: string[] }): void {
    const { pinned } = this.store.state;
    // The first pin opens the pane; once closed, it stays closed.
    if (before && pinned.length > before.pinned.length && !before.pinned.length) this.open = true;
    this.pane.hidden = !this.open;
    byId("subgraph-size").hidden = !this.open;
    const toggle = byId("open-subgraph");
    toggle.setAttribute("aria-expanded", String(this.open));
    toggle.textContent = pinned.length ? `Subgraph · ${pinned.length}` : "Subgraph";
    if (!this.open) return;
    this.tools();
    this.suggestions();
    this.draw();
  }

  private tools(): void {
    const { store } = this;
    const { marked } = store;
    byId("subgraph-title").textContent = marked.size ? `${marked.size} marked` : "Subgraph";
    const group = button(marked.size ? `Group ${marked.size}` : "Group", "Group the marked nodes (g); mark with Shift-click", () => this.group());
    group.id = "group";
    group.disabled = marked.size < 1;
    const tools = [group, button("Undo", "Undo the last change of pins and groups (u)", () => store.undo())];
    if (store.state.pinned.length) tools.push(button("Clear", "Unpin everything", () => store.set({ pinned: [], supernodes: [], clicked: "", positions: {} }, true)));
    if (Object.keys(store.state.positions).length) tools.push(button("Arrange", "Put moved nodes back in their rows", () => store.set({ positions: {} }, true)));
    tools.push(button("✕", "Close the subgraph", () => this.toggle(false), "quiet"));
    this.bar.replaceChildren(...tools);
  }

  /** Groups what is marked, under the name most members share, and opens its name for editing. */
  group(): void {
    const { model, store } = this;
    const ids = [...store.marked].filter((id) => model.has(id));
    if (!ids.length) return;
    const names = new Map<string, number>();
    for (const id of ids) names.set(model.name(model.node(id)), (names.get(model.name(model.node(id))) ?? 0) + 1);
    const [name] = [...names.entries()].sort((a, b) => b[1] - a[1])[0];
    const i = store.group(name, ids);
    store.set({ clicked: `supernode-${i}` });
    const input = document.getElementById("rename") as HTMLInputElement | null;
    input?.focus();
    input?.select();
  }

  private suggestions(): void {
    const { model, store } = this;
    const open = model.data.suggested
      .map(([name, ...ids]) => ({ name, ids: ids.filter((id) => model.has(id)) }))
      .filter(({ ids }) => ids.length > 1 && !ids.some((id) => store.groupOf(id) >= 0));
    this.suggested.hidden = !open.length;
    const add = ({ name, ids }: { name: string; ids: string[] }): void => void store.group(name, ids);
    const chips = open.slice(0, 40).map((group) => {
      const chip = button(`${short(group.name, 28)} · ${group.ids.length}`, "Add this group", () => add(group), "chip suggestion");
      return on(chip, { mouseenter: () => this.view.showFound(group.ids.map((id) => model.node(id))), mouseleave: () => this.view.showFound([]) });
    });
    const all = button("Add all", "Add all suggested groups", () => open.forEach(add), "quiet");
    this.suggested.replaceChildren(h("span", { class: "hint" }, "Suggested groups"), ...chips, open.length > 1 ? all : "");
  }

  private items(): Item[] {
    const { model, store } = this;
    const item = (id: string, name: string, ids: string[], group: number): Item => {
      const members = ids.map((member) => model.node(member)).filter((node) => node >= 0);
      const mean = (value: (node: number) => number): number => Math.round(members.reduce((sum, node) => sum + value(node), 0) / Math.max(members.length, 1));
      return { id, key: ids[0], name, members, row: mean((node) => model.layer(node)), column: mean((node) => model.position(node)), element: this.chip(id, name, members, group) };
    };
    const groups = store.state.supernodes.map((group, i) => item(`supernode-${i}`, group.name, group.ids, i));
    const single = store.state.pinned.filter((id) => store.groupOf(id) < 0 && model.has(id)).map((id) => item(id, model.name(model.node(id)), [id], -1));
    return [...groups, ...single].filter((entry) => entry.members.length);
  }

  private chip(id: string, name: string, members: number[], group: number): HTMLElement {
    const { model, store, view } = this;
    const hidden = members.every((node) => !model.isShown(node));
    const kind = model.kind(members[0] ?? 0);
    const classes = ["node", group >= 0 ? "group" : kind, hidden ? "hidden-node" : "", store.marked.has(id) ? "marked" : "", store.state.clicked === id ? "selected" : ""];
    const chip = h("button", { type: "button", class: classes.filter(Boolean).join(" "), "data-id": id, title: hidden ? "Below the thresholds" : null },
      group >= 0 ? null : icon(kind), h("span", { dir: "auto" }, short(visible(name), 28)), group >= 0 ? h("span", { class: "badge" }, String(members.length)) : null);
    return on(chip, {
      click: (event) => {
        if (group < 0 && (event.shiftKey || event.ctrlKey || event.metaKey)) store.mark(id);
        else store.set({ clicked: id });
      },
      dblclick: () => document.getElementById("rename")?.focus(),
      mouseenter: () => (group < 0 ? view.hint(members[0]) : view.showFound(members)),
      mouseleave: () => (group < 0 ? view.hint(-1) : view.showFound([])),
      focus: () => (group < 0 ? view.hint(members[0]) : view.showFound(members)),
      blur: () => (group < 0 ? view.hint(-1) : view.showFound([])),
    });
  }

  private draw(): void {
    if (!this.open || this.dragging?.moved) return;
    const { board, store } = this;
    const focused = (document.activeElement as HTMLElement | null)?.closest<HTMLElement>("#board .node")?.dataset.id;
    const items = this.items();
    this.board.replaceChildren(this.lines, ...items.map((item) => item.element));
    byId("subgraph-empty").hidden = items.length > 0;
    this.drawn = items;
    const layout = arranged(items, { width: board.clientWidth, height: board.clientHeight });
    // More than fits scrolls; what was moved keeps its share of the whole.
    this.lines.style.width = `${layout.width}px`;
    this.lines.style.height = `${layout.height}px`;
    this.size = layout;
    this.places = layout.places;
    for (const [item, place] of layout.places) {
      item.element.style.left = `${place.x}px`;
      item.element.style.top = `${place.y}px`;
    }
    for (const item of items) {
      const moved = store.state.positions[item.key];
      if (moved) this.put(item, (moved[0] / 1000) * layout.width, (moved[1] / 1000) * layout.height);
    }
    this.edges();
    if (focused) items.find((item) => item.id === focused)?.element.focus();
  }

  /** Moves a node so that its middle is at a point of the board, as closely as its room allows. */
  private put(item: Item, x: number, y: number): void {
    const { offsetWidth: width, offsetHeight: height } = item.element;
    const within = (value: number, size: number, room: number): number => Math.max(Math.min(value - size / 2, room - size - 2), 2);
    const left = within(x, width, this.size.width), top = within(y, height, this.size.height);
    item.element.style.left = `${left}px`;
    item.element.style.top = `${top}px`;
    this.places.set(item, new DOMRect(left, top, width, height));
  }

  /** Remembers where a node was put. */
  private keep(item: Item): void {
    const { x, y, width, height } = this.places.get(item)!;
    const share = (value: number, room: number): number => Math.round((1000 * value) / Math.max(room, 1));
    const place: [number, number] = [share(x + width / 2, this.size.width), share(y + height / 2, this.size.height)];
    this.store.set({ positions: { ...this.store.state.positions, [item.key]: place } }, true);
  }

  private itemOf(target: EventTarget | null): Item | undefined {
    const element = (target as HTMLElement).closest<HTMLElement>(".node");
    return this.drawn.find((item) => item.element === element);
  }

  private listenForDrags(): void {
    const { board } = this;
    board.addEventListener("pointerdown", (event) => {
      const item = this.itemOf(event.target);
      if (!item || event.button) return;
      const place = this.places.get(item)!;
      this.dragging = { item, dx: place.x + place.width / 2 - event.clientX, dy: place.y + place.height / 2 - event.clientY, startX: event.clientX, startY: event.clientY, moved: false };
    });
    board.addEventListener("pointermove", (event) => {
      const drag = this.dragging;
      if (!drag) return;
      if (!drag.moved) {
        if (Math.hypot(event.clientX - drag.startX, event.clientY - drag.startY) < 4) return;
        drag.moved = true;
        drag.item.element.setPointerCapture(event.pointerId);
        drag.item.element.classList.add("dragged");
      }
      this.put(drag.item, event.clientX + drag.dx, event.clientY + drag.dy);
      this.edges();
    });
    const end = (): void => {
      const drag = this.dragging;
      this.dragging = null;
      if (!drag?.moved) return;
      // The end of a drag is not a click.
      const swallow = (event: Event): void => event.stopPropagation();
      window.addEventListener("click", swallow, { capture: true });
      setTimeout(() => {
        window.removeEventListener("click", swallow, { capture: true });
        this.keep(drag.item);
      });
    };
    board.addEventListener("pointerup", end);
    board.addEventListener("pointercancel", end);
    board.addEventListener("keydown", (event) => {
      const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      const item = this.itemOf(event.target);
      if (!way || !item || !event.altKey) return;
      event.preventDefault();
      const { x, y, width, height } = this.places.get(item)!;
      this.put(item, x + width / 2 + 16 * way[0], y + height / 2 + 16 * way[1]);
      this.keep(item);
    });
  }

  private edges(): void {
    const { drawn: items, places } = this;
    const owner = new Map<number, Item>();
    for (const item of items) for (const node of item.members) owner.set(node, item);
    const sums = new Map<string, { from: Item; to: Item; weight: number }>();
    for (const to of items)
      for (const member of to.members)
        for (const { node, weight } of this.model.feeders(member)) {
          const from = owner.get(node);
          if (!from || from === to) continue;
          const key = `${from.id}\n${to.id}`;
          const sum = sums.get(key) ?? { from, to, weight: 0 };
          sum.weight += weight;
          sums.set(key, sum);
        }
    const heaviest = Math.max(...[...sums.values()].map((sum) => Math.abs(sum.weight)), 1e-30);
    const least = [...sums.values()].map((sum) => Math.abs(sum.weight)).sort((a, b) => b - a)[LABELLED - 1] ?? 0;
    this.drawnEdges = [...sums.values()].map(({ from, to, weight }) => ({
      from, to, weight, strength: Math.abs(weight) / heaviest, label: Math.abs(weight) >= least ? `${weight < 0 ? "−" : ""}${plain(Math.abs(weight))}` : "",
    }));
    drawLines(this.lines, this.drawnEdges, places);
  }

  /** Boxes and lines where they stand, for an export; null without any. */
  get drawnBoard(): Drawn | null {
    if (!this.open || !this.drawn.length) return null;
    return { items: this.drawn, edges: this.drawnEdges, layout: { places: this.places, rows: [], ...this.size } };
  }
}
