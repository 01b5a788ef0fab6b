// Below the graph: what is selected in it, the changes to make, and what they did.

import { byId, button, h, on } from "./dom";
import type { Model } from "./model";
import type { Api, EditBody, Entry, Job, Outcome } from "./serve_api";
import type { Store } from "./state";
import type { StoryView } from "./story_view";
import { plain, probability, short, signed, visible } from "./text";

/** The graph's page inside its frame, as its own script offers it. */
export interface GraphPage {
  store: Store;
  model: Model;
  story: StoryView;
}

type Where = "here" | "on" | "everywhere";

interface Edit {
  name: string;
  /** Layer, feature, position. */
  members: [number, number, number][];
  verb: "ablate" | "scale" | "add" | "set" | "swap-in";
  value: number;
  prompt: string;
  where: Where;
}

const VERBS: [Edit["verb"], string][] = [["ablate", "remove"], ["scale", "multiply by"], ["add", "add"], ["set", "set to"], ["swap-in", "take from a prompt"]];
const WHERES: [Where, string][] = [["here", "where it is active"], ["on", "from there on, answer too"], ["everywhere", "everywhere"]];
const ROWS = 8;

export class Steering {
  private entry: Entry | null = null;
  private page: GraphPage | null = null;
  private edits: Edit[] = [];
  private outcomes: Outcome[] = [];
  private shown = "";
  private busy = false;

  constructor(private api: Api, private mostTokens: number, private traceAnswer: (text: string) => void) {
    byId("act-ablate").addEventListener("click", () => this.add("ablate", 0, true));
    byId("act-scale").addEventListener("click", () => this.add("scale", 2, true));
    byId("act-add").addEventListener("click", () => this.add("add", this.typical(), false));
    byId("act-swap").addEventListener("click", () => this.add("swap-in", 0, false));
    byId("run").addEventListener("click", () => void this.run());
    byId("fold").addEventListener("click", () => this.fold(byId("drawer").hidden));
    byId("edits-box").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey || (event.target as HTMLElement).tagName === "INPUT")) void this.run();
    });
    byId<HTMLInputElement>("new-tokens").max = String(mostTokens);
  }

  /** Another graph is open, or none. */
  open(entry: Entry | null, outcomes: Outcome[]): void {
    this.entry = entry;
    this.page = null;
    this.outcomes = outcomes;
    this.edits = [];
    byId("steer").hidden = entry === null;
    this.select();
    this.showEdits();
    this.showOutcome(outcomes[0]?.id ?? "");
    if (outcomes.length) this.restore(outcomes[0]);
    this.fold(outcomes.length > 0);
  }

  attach(page: GraphPage): void {
    this.page = page;
    this.select();
  }

  fold(open: boolean): void {
    byId("drawer").hidden = !open;
    byId("fold").setAttribute("aria-expanded", String(open));
  }

  toggle(): void {
    if (this.entry) this.fold(byId("drawer").hidden);
  }

  ablate(): void {
    if (this.chosen().members.length) this.add("ablate", 0, true);
  }

  /** The selection in the graph has changed. */
  select(): void {
    const { name, members, about } = this.chosen();
    const can = members.length > 0;
    byId("chosen").replaceChildren(...(can
      ? [h("b", { dir: "auto" }, name), h("span", { class: "place", dir: "auto" }, about)]
      : [h("span", { class: "place" }, about)]));
    byId("chosen-acts").querySelectorAll("button").forEach((act) => (act.disabled = !can || this.busy));
  }

  private chosen(): { name: string; members: [number, number, number][]; about: string } {
    const none = (about: string): { name: string; members: []; about: string } => ({ name: "", members: [], about });
    if (!this.page) return none("");
    const { store, model, story } = this.page;
    const { clicked, supernodes } = store.state;
    if (!clicked) return none("Select a feature or a group in the graph to change it.");
    const group = /^supernode-(\d+)$/.exec(clicked), told = /^story-(\d+)$/.exec(clicked);
    let nodes: number[], name: string;
    if (group) {
      const found = supernodes[Number(group[1])];
      nodes = (found?.ids ?? []).map((id) => model.node(id));
      name = found?.name ?? "group";
    } else if (told) {
      nodes = story.story ? story.members(Number(told[1])) : [];
      name = story.story?.nodes[Number(told[1])] ? story.name(Number(told[1])) : "group";
    } else {
      nodes = [model.node(clicked)];
      name = nodes[0] >= 0 ? model.name(nodes[0], 60) : "";
    }
    const here = nodes.filter((node) => node >= 0 && model.kind(node) === "feature");
    if (!here.length) return none("Only features can be changed, alone or in groups.");
    const members = here.map((node): [number, number, number] => [model.layer(node), model.data.nodes.feature[node], model.position(node)]);
    const about = here.length === 1 ? `${reference(members[0], "here")} · ${short(model.token(members[0][2]), 18)}` : `${here.length} features`;
    return { name: visible(name), members, about };
  }

  /** An amount to add that is not lost beside the feature's own activation. */
  private typical(): number {
    const { members } = this.chosen();
    if (!this.page) return 1;
    const { model } = this.page;
    const values = members.map(([layer, feature, position]) => model.activation(model.node(`${layer}_${feature}_${position}`)) ?? 0);
    return Number(Math.max(...values, 0.001).toPrecision(2));
  }

  private add(verb: Edit["verb"], value: number, runs: boolean): void {
    const { name, members } = this.chosen();
    if (!members.length || this.busy) return;
    const same = (edit: Edit): boolean => JSON.stringify(edit.members) === JSON.stringify(members);
    this.edits = [...this.edits.filter((edit) => !same(edit)), { name, members, verb, value, prompt: "", where: "here" }];
    this.showEdits();
    this.fold(true);
    if (runs) void this.run();
    else byId("edits").lastElementChild?.querySelector<HTMLInputElement>("input")?.focus();
  }

  private showEdits(): void {
    byId("no-edits").hidden = this.edits.length > 0;
    byId<HTMLButtonElement>("run").disabled = !this.edits.length || this.busy;
    byId("edits").replaceChildren(...this.edits.map((edit, i) => {
      const select = <T extends string>(label: string, options: [T, string][], value: T, changed: (value: T) => void): HTMLSelectElement => {
        const made = h("select", { "aria-label": `${label}, ${edit.name}` }, ...options.map(([key, text]) => h("option", { value: key }, text)));
        made.value = value;
        return on(made, { change: () => changed(made.value as T) });
      };
      const verb = select("What to do", VERBS, edit.verb, (now) => {
        edit.verb = now;
        this.showEdits();
      });
      const number = h("input", { type: "number", step: "any", value: edit.value, "aria-label": `Amount, ${edit.name}` });
      on(number, { input: () => (edit.value = Number(number.value)) });
      const prompt = h("input", { type: "text", dir: "auto", spellcheck: "false", placeholder: "a prompt with as many tokens", "aria-label": `Prompt to take from, ${edit.name}` });
      prompt.value = edit.prompt;
      on(prompt, { input: () => (edit.prompt = prompt.value) });
      const where = select("Where", WHERES, edit.where, (now) => (edit.where = now));
      const drop = button("×", "Leave this change out", () => {
        this.edits.splice(i, 1);
        this.showEdits();
      }, "quiet");
      drop.setAttribute("aria-label", `Leave out the change of ${edit.name}`);
      const name = edit.members.length > 1 ? `${edit.name} (${edit.members.length})` : edit.name;
      return h("li", { class: "edit" }, h("span", { class: "what", dir: "auto", title: edit.members.map((one) => reference(one, edit.where)).join(" ") }, name), drop,
        h("span", { class: "how" }, verb, ["scale", "add", "set"].includes(edit.verb) && number, where, edit.verb === "swap-in" && prompt));
    }));
  }

  private body(): EditBody[] {
    return this.edits.map(({ name, members, verb, value, prompt, where }) => ({
      verb, name: name.slice(0, 200), value, prompt, features: [...new Set(members.map((one) => reference(one, where)))],
    }));
  }

  private async run(): Promise<void> {
    if (!this.entry || !this.edits.length || this.busy) return;
    const { id } = this.entry;
    const hold = byId<HTMLSelectElement>("freeze").value;
    const tokens = Math.min(Math.max(Number(byId<HTMLInputElement>("new-tokens").value) || 0, 0), this.mostTokens);
    this.working(true);
    this.say("Running…");
    try {
      const body = { edits: this.body(), new_tokens: tokens, freeze: hold === "free" ? "iterative" : hold, free_attention: hold === "free" };
      const { id: job } = await this.api.change<Job>("POST", `/api/graphs/${id}/edits`, body);
      const done = await this.api.follow(job, (now) => now.state === "waiting" && now.before > 0 && this.say(`Waiting: ${now.before} before this one.`));
      if (done.state !== "done") throw new Error(done.state === "cancelled" ? "Cancelled." : done.error);
      this.say("");
      if (this.entry?.id !== id) return;
      const outcome = done.result as unknown as Outcome;
      this.outcomes.unshift(outcome);
      this.showOutcome(outcome.id);
    } catch (problem) {
      this.say((problem as Error).message, true);
    } finally {
      this.working(false);
    }
  }

  private working(busy: boolean): void {
    this.busy = busy;
    this.select();
    this.showEdits();
    byId("result").setAttribute("aria-busy", String(busy));
  }

  private say(text: string, wrong = false): void {
    byId("edit-said").textContent = text;
    byId("edit-said").classList.toggle("wrong", wrong);
  }

  /** Puts the changes of an earlier run back into the list. */
  private restore(outcome: Outcome): void {
    this.edits = outcome.edits.map((edit) => {
      const places = edit.features.map((text) => /^L(\d+)\/(\d+)(?:@(\d+)(:?))?$/.exec(text));
      const where: Where = places[0]?.[3] === undefined ? "everywhere" : places[0][4] ? "on" : "here";
      const members = places.filter((place) => place !== null).map((place): [number, number, number] => [Number(place[1]), Number(place[2]), Number(place[3] ?? 0)]);
      return { name: edit.name || edit.features[0], members, verb: edit.verb as Edit["verb"], value: edit.value, prompt: edit.prompt, where };
    });
    this.showEdits();
  }

  private showOutcome(id: string): void {
    this.shown = id;
    const outcome = this.outcomes.find((one) => one.id === id);
    byId("result").replaceChildren(...(outcome ? this.outcome(outcome) : []));
    byId("earlier-box").hidden = this.outcomes.length < 2;
    byId("earlier").replaceChildren(...this.outcomes.slice(0, 30).map((one) => {
      const chosen = button(summary(one), "Show what this did", () => {
        this.restore(one);
        this.showOutcome(one.id);
      });
      chosen.dir = "auto";
      chosen.setAttribute("aria-pressed", String(one.id === this.shown));
      return h("li", {}, chosen);
    }));
  }

  private outcome(outcome: Outcome): HTMLElement[] {
    const { before, after, generated_before: first, generated_after: second } = outcome;
    const made: HTMLElement[] = [];
    if (first !== null && second !== null) {
      const other = first.trim() !== second.trim();
      const side = (title: string, text: string, extra: string): HTMLElement => h("div", { class: `side ${extra}` }, h("h3", {}, title), text.trim() ? h("p", { dir: "auto" }, visible(text.trim())) : h("p", { class: "ended" }, "nothing: the text ends"));
      made.push(h("div", { class: "sides" }, side("answer before", first, "before"), side(other ? "answer after" : "answer after (the same)", second, other ? "after other" : "after")));
    }
    if (outcome.answer.length) {
      made.push(h("table", { class: "outcome" }, head("token of the answer", "before", "after", "change"), h("tbody", {}, ...outcome.answer.map((row) =>
        h("tr", {}, h("th", { dir: "auto", scope: "row" }, short(row.string)), h("td", {}, probability(Math.exp(row.before))), h("td", {}, probability(Math.exp(row.after))), change(row.after - row.before))))));
    }
    const predicted = new Map(outcome.predicted.map((row) => [row.token, row]));
    const rows = new Map([...before.slice(0, ROWS), ...after.slice(0, ROWS)].map((row) => [row.token, row]));
    const sorted = [...rows.values()].sort((a, b) => Math.max(b.before, b.after) - Math.max(a.before, a.after)).slice(0, ROWS);
    const most = Math.max(...sorted.map((row) => Math.max(row.before, row.after)), 1e-9);
    made.push(h("table", { class: "outcome" }, head("next token", "before", "after", "Δ logit", "predicted"), h("tbody", {}, ...sorted.map((row) => {
      const foreseen = predicted.get(row.token)?.predicted;
      return h("tr", {}, h("th", { dir: "auto", scope: "row" }, short(row.string)), share(row.before, most), share(row.after, most), change(row.logit_change),
        foreseen === undefined || foreseen === null ? h("td", {}, "") : change(foreseen));
    }))));
    const still = outcome.found.filter((text) => text.startsWith("not active") || text.endsWith("not active here"));
    const notes = [`${features(outcome.became_active)} began to fire, ${outcome.became_inactive} stopped.`, ...still.map((text) => `What was changed: ${text}.`)];
    made.push(h("p", { class: "hint", dir: "auto" }, visible(notes.join(" "))));
    if (second?.trim() && !outcome.answer.length) {
      made.push(button("Trace this answer", "Trace the prompt with the answer after the change, as one that is read", () => this.traceAnswer(second)));
    }
    return made;
  }
}

const features = (n: number): string => (n === 1 ? "1 feature" : `${n} features`);

/** `L3/417@7`, `L3/417@7:` or `L3/417`. */
function reference([layer, feature, position]: [number, number, number], where: Where): string {
  return `L${layer}/${feature}${where === "everywhere" ? "" : `@${position}${where === "on" ? ":" : ""}`}`;
}

function summary(outcome: Outcome): string {
  const words = outcome.edits.map((edit) => {
    const what = short(edit.name || edit.features[0], 26);
    return { ablate: `${what} removed`, scale: `${what} × ${plain(edit.value)}`, add: `${what} ${signed(edit.value)}`, set: `${what} = ${plain(edit.value)}`, "swap-in": `${what} swapped in` }[edit.verb] ?? what;
  });
  return `${words.join(", ")} → ${short(outcome.after[0]?.string ?? "", 20)}`;
}

function head(...names: string[]): HTMLElement {
  const about: Record<string, string> = {
    "Δ logit": "Change of the token's logit against the mean of all tokens, measured", predicted: "The change that the graph predicts, for its targets",
  };
  return h("thead", {}, h("tr", {}, ...names.map((name) => h("th", { scope: "col", title: about[name] }, name))));
}

function share(value: number, most: number): HTMLElement {
  const bar = h("span", {});
  bar.style.width = `${Math.round((100 * value) / most)}%`;
  return h("td", {}, h("span", { class: "share", "aria-hidden": "true" }, bar), h("span", { class: "figure" }, probability(value)));
}

function change(value: number): HTMLElement {
  return h("td", { class: value > 0 ? "plus" : value < 0 ? "minus" : null }, signed(value));
}
