// The form: a prompt or a conversation, what to explain, and how far the trace is.

import { byId, button, h, on } from "./dom";
import type { Api, Asked, Job, Message } from "./serve_api";

export interface ServedModel {
  name: string;
  transcoders: string;
  chat: boolean;
  scan: string;
  example: { prompt: string; messages: Message[] };
}

const DRAFT = "crosstrace.draft", RUNNING = "crosstrace.job";

export class AskForm {
  private model = byId<HTMLSelectElement>("model");
  private text = byId<HTMLTextAreaElement>("ask-text");
  private turns = byId("ask-turns");
  private messages: Message[] = [];
  private isChat = false;
  private job = "";

  constructor(private api: Api, private models: ServedModel[], private traced: (graph: string) => void) {
    this.model.append(...models.map(({ name }) => h("option", { value: name }, name)));
    byId("model-field").hidden = models.length < 2;
    this.model.addEventListener("change", () => this.modelChanged());
    byId("kind-text").addEventListener("click", () => this.kind(false));
    byId("kind-chat").addEventListener("click", () => this.kind(true));
    const form = byId<HTMLFormElement>("ask");
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      void this.trace();
    });
    form.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
      event.preventDefault();
      void this.trace();
    });
    form.addEventListener("input", () => this.keep());
    byId("cancel").addEventListener("click", () => {
      if (this.job) void this.api.change("DELETE", `/api/jobs/${this.job}`).catch(() => {});
    });
    this.example();
    const draft = read<Asked & { model: string }>(DRAFT);
    if (draft) this.fill(draft, draft.model);
    const running = sessionStorage.getItem(RUNNING);
    if (running) void this.follow(running); // the page was loaded again in the middle of a trace
  }

  focus(): void {
    (this.isChat ? this.turns.querySelector("textarea") : this.text)?.focus();
  }

  /** Shows what a graph was asked for with. */
  fill(asked: Asked, model: string): void {
    if (this.models.some(({ name }) => name === model)) this.model.value = model;
    this.text.value = asked.prompt;
    this.messages = asked.messages.map((message) => ({ ...message }));
    field("ask-targets").value = asked.targets.join(", ");
    field("ask-answer").value = asked.answer;
    field("ask-logits").value = String(asked.max_logits);
    field("ask-features").value = asked.max_feature_nodes === null ? "" : String(asked.max_feature_nodes);
    field("ask-node").value = String(asked.node_threshold);
    field("ask-edge").value = String(asked.edge_threshold);
    this.kind(asked.messages.length > 0);
    this.keep();
  }

  /** Takes over an answer that was generated, to be traced as one that is read. */
  answer(text: string): void {
    field("ask-answer").value = text;
    byId<HTMLDetailsElement>("ask-more").open = true;
    this.keep();
  }

  private get chosen(): ServedModel {
    return this.models.find(({ name }) => name === this.model.value) ?? this.models[0];
  }

  private example(): void {
    const { prompt, messages } = this.chosen.example;
    this.text.value = prompt;
    this.messages = messages.map((message) => ({ ...message }));
    this.kind(messages.length > 0);
  }

  private modelChanged(): void {
    const examples = this.models.map(({ example }) => example);
    const isExample = examples.some(({ prompt, messages }) => (this.isChat ? JSON.stringify(messages) === JSON.stringify(this.messages) : prompt === this.text.value));
    if (isExample || (!this.text.value.trim() && !this.isChat)) this.example();
    else this.kind(this.isChat);
    this.keep();
  }

  private kind(chat: boolean): void {
    this.isChat = chat && this.chosen.chat;
    byId("kinds").hidden = !this.chosen.chat;
    byId("kind-text").setAttribute("aria-pressed", String(!this.isChat));
    byId("kind-chat").setAttribute("aria-pressed", String(this.isChat));
    this.text.hidden = this.isChat;
    this.turns.hidden = !this.isChat;
    if (this.isChat) this.showTurns();
  }

  private showTurns(): void {
    if (!this.messages.length) this.messages = [{ role: "user", content: this.text.value }];
    this.turns.replaceChildren(
      ...this.messages.map((message, i) => {
        const who = h("select", { class: "who", "aria-label": `Who speaks in turn ${i + 1}` }, ...["user", "assistant", "system"].map((role) => h("option", { value: role }, role)));
        who.value = message.role;
        const said = h("textarea", { rows: 2, dir: "auto", spellcheck: "false", "aria-label": `Turn ${i + 1}` });
        said.value = message.content;
        on(who, { change: () => (message.role = who.value) });
        on(said, { input: () => (message.content = said.value) });
        const drop = button("×", "Leave this turn out", () => {
          this.messages.splice(i, 1);
          this.showTurns();
          this.keep();
        }, "quiet");
        drop.setAttribute("aria-label", `Leave turn ${i + 1} out`);
        return h("div", { class: "turn" }, who, said, this.messages.length > 1 && drop);
      }),
      button("Add a turn", "One more message", () => {
        const last = this.messages.at(-1)?.role;
        this.messages.push({ role: last === "user" ? "assistant" : "user", content: "" });
        this.showTurns();
        this.turns.querySelectorAll("textarea")[this.messages.length - 1].focus();
      }),
    );
  }

  private asked(): Asked {
    const number = (id: string, otherwise: number): number => (field(id).value.trim() === "" ? otherwise : Number(field(id).value));
    const features = field("ask-features").value.trim();
    return {
      prompt: this.isChat ? "" : this.text.value,
      messages: this.isChat ? this.messages : [],
      answer: field("ask-answer").value,
      targets: parts(field("ask-targets").value),
      max_logits: number("ask-logits", 10),
      max_feature_nodes: features === "" ? null : Number(features),
      node_threshold: number("ask-node", 0.8),
      edge_threshold: number("ask-edge", 0.98),
    };
  }

  private keep(): void {
    sessionStorage.setItem(DRAFT, JSON.stringify({ ...this.asked(), model: this.model.value }));
  }

  private async trace(): Promise<void> {
    if (this.job) return;
    this.say("");
    try {
      const job = await this.api.change<Job>("POST", "/api/traces", { ...this.asked(), model: this.model.value });
      await this.follow(job.id);
    } catch (problem) {
      this.say(String((problem as Error).message), true);
    }
  }

  private async follow(id: string): Promise<void> {
    this.running(id);
    try {
      const job = await this.api.follow(id, (now) => this.tell(now));
      if (job.state === "done") {
        this.say("");
        this.traced(String(job.result!.graph));
      } else this.say(job.state === "cancelled" ? "Cancelled." : job.error, job.state === "failed");
    } catch (problem) {
      this.say(String((problem as Error).message), true);
    } finally {
      this.running("");
    }
  }

  private running(id: string): void {
    this.job = id;
    if (id) sessionStorage.setItem(RUNNING, id);
    else sessionStorage.removeItem(RUNNING);
    byId<HTMLButtonElement>("trace").disabled = id !== "";
    byId("cancel").hidden = byId("progress").hidden = id === "";
  }

  private tell(job: Job): void {
    const bar = byId<HTMLProgressElement>("progress");
    if (job.total > 0) bar.value = job.done / job.total;
    else bar.removeAttribute("value");
    if (job.state === "waiting") this.say(job.before ? `Waiting: ${job.before} before this one.` : "Waiting.");
    else if (job.state === "running") this.say(job.total > 0 ? `${job.doing}: ${job.done.toLocaleString("en-US")} of ${job.total.toLocaleString("en-US")}` : job.doing === "starting" ? "Reading the prompt." : `${job.doing}…`);
  }

  private say(text: string, wrong = false): void {
    byId("ask-said").textContent = text;
    byId("ask-said").classList.toggle("wrong", wrong);
  }
}

const field = (id: string): HTMLInputElement => byId<HTMLInputElement>(id);

/** Targets, separated by commas; a comma inside double quotes belongs to its token. */
export function parts(text: string): string[] {
  return [...text.matchAll(/(?:"(?:\\.|[^"\\])*"|[^,"])+/g)].map(([part]) => part.trim()).filter(Boolean);
}

function read<T>(name: string): T | null {
  try {
    return JSON.parse(sessionStorage.getItem(name) ?? "null") as T | null;
  } catch {
    return null;
  }
}
