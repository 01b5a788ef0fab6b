// What was traced, newest first: opened, compared with the open graph, or dropped.

import { byId, button, h } from "./dom";
import type { Api, Entry } from "./serve_api";
import { probability, short, visible } from "./text";

export class History {
  entries: Entry[] = [];
  private channel = typeof BroadcastChannel === "undefined" ? null : new BroadcastChannel("crosstrace");

  constructor(private api: Api, private current: () => string, private open: (id: string) => void, private compare: (id: string) => void, private dropped: (id: string) => void) {
    this.channel?.addEventListener("message", () => void this.load());
    document.addEventListener("visibilitychange", () => document.hidden || void this.load().catch(() => {}));
  }

  /** Other tabs are told too. */
  async changed(): Promise<void> {
    this.channel?.postMessage("changed");
    await this.load();
  }

  async load(): Promise<void> {
    const { graphs } = await this.api.get<{ graphs: Entry[] }>("/api/graphs");
    this.entries = graphs;
    this.show();
  }

  show(): void {
    const current = this.current();
    byId("no-entries").hidden = this.entries.length > 0;
    byId("entries").replaceChildren(...this.entries.map((entry) => {
      const { prompt, answer, probability: chance, model, tokens } = entry.about;
      const open = button("", "Open this graph", () => this.open(entry.id));
      open.append(
        h("span", { class: "said" }, h("span", { dir: "auto" }, visible(prompt)), " → ", h("span", { class: "gives", dir: "auto" }, short(answer, 24))),
        h("span", { class: "when" }, [chance === null ? "" : probability(chance), model.split("/").at(-1)!, `${tokens} tokens`, time(entry.made)].filter(Boolean).join(" · ")),
      );
      const isOpen = entry.id === current;
      if (isOpen) open.setAttribute("aria-current", "true");
      const versus = button("⇄", "Compare with the open graph", () => this.compare(entry.id), "quiet");
      versus.setAttribute("aria-label", `Compare with ${short(prompt, 40)}`);
      versus.hidden = isOpen || !current || !this.entries.some(({ id, scan }) => id === current && scan === entry.scan);
      const drop = button("×", "Drop this graph", () => void this.drop(entry.id), "quiet");
      drop.setAttribute("aria-label", `Drop ${short(prompt, 40)}`);
      return h("li", { class: `entry${isOpen ? " open" : ""}`, "data-id": entry.id }, open, h("span", { class: "tools" }, versus, drop));
    }));
  }

  private async drop(id: string): Promise<void> {
    await this.api.change("DELETE", `/api/graphs/${id}`).catch(() => {});
    this.dropped(id);
    await this.changed();
  }
}

function time(made: number): string {
  const then = new Date(made * 1000), today = new Date().toDateString() === then.toDateString();
  return today ? then.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" }) : then.toLocaleDateString();
}
