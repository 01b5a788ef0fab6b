// The page of the server: a prompt and the history at the left, the graph's own page in a frame, changes below it.

import { byId, h } from "./dom";
import { fail } from "./page";
import { Api, type Entry, type Outcome } from "./serve_api";
import { AskForm, type ServedModel } from "./serve_ask";
import { History } from "./serve_history";
import { Steering, type GraphPage } from "./serve_steer";
import { visible } from "./text";

interface ServeData {
  format: "crosstrace-serve-page";
  version: number;
  signedIn: boolean;
  token: string;
  models: ServedModel[];
  suffixes: string[];
  limits: { prompt: number; features: number; newTokens: number };
}

const ABOUT: Record<string, string> = {
  ".html": "page", ".json": "Neuronpedia", ".safetensors": "whole graph", ".svg": "picture", ".png": "picture", ".pdf": "picture", ".dot": "Graphviz", ".graphml": "networks",
};
const SAVE_SOON = 400, NARROW = 1280;

function signIn(): void {
  const form = byId<HTMLFormElement>("sign-in");
  form.hidden = false;
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    try {
      await new Api("").change("POST", "/sign-in", { secret: byId<HTMLInputElement>("secret").value });
      location.reload();
    } catch (problem) {
      byId("sign-in-said").textContent = (problem as Error).message;
    }
  });
  byId("secret").focus();
}

class Desk {
  private api: Api;
  private frame = byId<HTMLIFrameElement>("frame");
  private current = "";
  private compared = "";
  private saving = 0;
  private unsaved: (() => void) | null = null;
  readonly history: History;
  readonly steering: Steering;
  readonly ask: AskForm;

  constructor(private data: ServeData) {
    this.api = new Api(data.token);
    this.steering = new Steering(this.api, data.limits.newTokens, (text) => {
      this.rail(true);
      this.ask.answer(text);
    });
    this.history = new History(this.api, () => this.current, (id) => void this.open(id), (id) => this.compare(this.current, id), (id) => {
      if (id === this.current || this.compared.includes(id)) this.close();
    });
    this.ask = new AskForm(this.api, data.models, (id) => {
      if (innerWidth < NARROW) this.rail(false);
      void this.open(id);
      void this.history.changed();
    });
    this.frame.addEventListener("load", () => void this.loaded());
    byId("hide-rail").addEventListener("click", () => this.rail(false));
    byId("show-rail").addEventListener("click", () => this.rail(true));
    this.menu();
    this.keys(document);
    const help = byId<HTMLDialogElement>("help");
    byId("open-help").addEventListener("click", () => help.showModal());
    byId("close-help").addEventListener("click", () => help.close());
    byId("licences-text").textContent = byId("licences").textContent;
    window.addEventListener("hashchange", () => void this.restore());
    window.addEventListener("pagehide", () => this.flush());
  }

  async start(): Promise<void> {
    byId("desk").hidden = false;
    await this.history.load();
    await this.restore();
  }

  /** What the address names. */
  private async restore(): Promise<void> {
    const parts = new URLSearchParams(location.hash.slice(1));
    const graph = parts.get("graph") ?? "", pair = (parts.get("compare") ?? "").split(",");
    if (pair.length === 2 && pair.every(isId)) this.compare(pair[0], pair[1]);
    else if (isId(graph)) await this.open(graph);
    else this.close();
  }

  private rail(open: boolean): void {
    byId("rail").hidden = !open;
    byId("show-rail").hidden = open;
    if (open) this.ask.focus();
  }

  private async open(id: string): Promise<void> {
    if (id === this.current) return;
    this.flush();
    let entry: Entry, edits: Outcome[];
    try {
      [entry, { edits }] = await Promise.all([this.api.get<Entry>(`/api/graphs/${id}`), this.api.get<{ edits: Outcome[] }>(`/api/graphs/${id}/edits`)]);
    } catch (problem) {
      this.close();
      say((problem as Error).message);
      return;
    }
    this.current = id;
    this.compared = "";
    address(`graph=${id}`);
    this.show(`/graphs/${id}/page${entry.state.fragment ? `#${entry.state.fragment}` : ""}`, `Attribution graph of ${entry.about.prompt}`);
    byId("save-menu").replaceChildren(...this.data.suffixes.map((suffix) => h("a", { href: `/graphs/${id}/file${suffix}`, download: "" }, suffix, h("span", { class: "hint" }, ABOUT[suffix] ?? ""))));
    this.ask.fill(entry.about.asked, entry.about.model);
    this.steering.open(entry, edits);
    this.history.show();
    if (entry.about.notes.length) say(entry.about.notes.join("\n"));
  }

  private compare(first: string, second: string): void {
    if (!first || !second) return;
    this.flush();
    this.current = "";
    this.compared = `${first},${second}`;
    address(`compare=${this.compared}`);
    this.show(`/compare/${first}/${second}`, "Two attribution graphs");
    this.steering.open(null, []);
    this.history.show();
  }

  private close(): void {
    this.current = this.compared = "";
    address("");
    this.frame.hidden = true;
    this.frame.removeAttribute("src");
    byId("welcome").hidden = false;
    this.steering.open(null, []);
    this.history.show();
  }

  private show(path: string, title: string): void {
    byId("welcome").hidden = true;
    this.frame.hidden = false;
    this.frame.title = visible(title);
    // A frame's own history would fill the tab's.
    this.frame.contentWindow!.location.replace(path);
  }

  /** The page in the frame is there: from now on what is selected in it can be changed, and what is pinned is kept. */
  private async loaded(): Promise<void> {
    const id = this.current, inside = this.frame.contentWindow as (Window & { crosstrace?: Partial<GraphPage> }) | null;
    if (!id || !inside?.location.pathname.startsWith(`/graphs/${id}/`)) return;
    for (let tries = 0; tries < 200 && !inside.crosstrace?.store; tries++) await new Promise((later) => setTimeout(later, 50));
    const page = inside.crosstrace as GraphPage | undefined;
    if (!page?.store || id !== this.current) return;
    this.steering.attach(page);
    this.keys(inside.document);
    page.store.listen((before) => {
      if (id !== this.current) return;
      this.steering.select();
      if (before !== page.store.state) this.saveSoon(id, page);
    });
  }

  private saveSoon(id: string, page: GraphPage): void {
    window.clearTimeout(this.saving);
    const body = { qParams: page.store.qParams(), fragment: page.store.fragment() };
    this.unsaved = () => void this.api.change("PUT", `/api/graphs/${id}/state`, body).catch((problem: Error) => say(problem.message));
    this.saving = window.setTimeout(() => this.flush(), SAVE_SOON);
  }

  private flush(): void {
    window.clearTimeout(this.saving);
    this.unsaved?.();
    this.unsaved = null;
  }

  private menu(): void {
    const menu = byId("save-menu"), opener = byId("open-save");
    const set = (open: boolean): void => {
      menu.hidden = !open;
      opener.setAttribute("aria-expanded", String(open));
      if (open) menu.querySelector("a")?.focus();
    };
    opener.addEventListener("click", () => {
      this.flush();
      set(menu.hidden);
    });
    menu.addEventListener("click", () => set(false));
    document.addEventListener("pointerdown", (event) => (event.target as HTMLElement).closest(".menu-box") || set(false));
    menu.addEventListener("keydown", (event) => {
      if (event.key === "Escape") {
        set(false);
        opener.focus();
      }
      const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      const links = [...menu.querySelectorAll("a")];
      links[(links.indexOf(document.activeElement as HTMLAnchorElement) + step + links.length) % links.length].focus();
    });
  }

  private keys(where: Document): void {
    where.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if ((event.target as HTMLElement).matches("input, select, textarea")) return;
      const act: Record<string, () => void> = {
        b: () => this.rail(byId("rail").hidden), e: () => this.steering.toggle(), X: () => this.steering.ablate(),
      };
      if (where === document) act["?"] = () => byId<HTMLDialogElement>("help").showModal();
      if (!act[event.key]) return;
      event.preventDefault();
      act[event.key]();
    });
  }
}

const isId = (text: string): boolean => /^[A-Za-z0-9_-]{1,40}$/.test(text);

function address(fragment: string): void {
  if (location.hash.slice(1) === fragment) return;
  history.pushState(null, "", fragment ? `#${fragment}` : location.pathname);
}

let saying = 0;

function say(text: string): void {
  const element = byId("message");
  element.textContent = visible(text);
  element.hidden = false;
  window.clearTimeout(saying);
  saying = window.setTimeout(() => (element.hidden = true), 8000);
}

try {
  const data = JSON.parse(byId("data").textContent!) as ServeData;
  if (data.format !== "crosstrace-serve-page" || data.version !== 1) throw new Error("it is of another version of crosstrace");
  const ready = data.signedIn ? new Desk(data).start() : Promise.resolve(signIn());
  ready.catch((problem: Error) => say(problem.message)).finally(() => byId("app").removeAttribute("aria-busy"));
} catch (problem) {
  fail(problem);
}
