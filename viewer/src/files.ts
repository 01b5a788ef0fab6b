// Saves the state to a file and loads it again; nothing leaves the computer.

import { byId, h } from "./dom";
import type { Model } from "./model";
import { fromQParams, type State, type Store } from "./state";
import { whole } from "./text";

const LARGEST = 100_000_000;

export function save(model: Model, store: Store): void {
  const { nodeThreshold, edgeThreshold } = store.state;
  const { slug, prompt, transcoders, fingerprints } = model.data;
  const content = {
    metadata: {
      slug,
      prompt,
      model: model.data.model,
      transcoders,
      fingerprints,
      node_threshold: nodeThreshold,
      edge_threshold: edgeThreshold,
    },
    qParams: store.qParams(),
  };
  offer(new Blob([JSON.stringify(content, null, 1)], { type: "application/json" }), `${slug}.state.json`);
}

/** Lets the reader save a file. */
export function offer(content: Blob, name: string): void {
  const url = URL.createObjectURL(content);
  h("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

export function listenForFiles(model: Model, store: Store, say: (message: string) => void): void {
  const input = byId<HTMLInputElement>("load-file");
  input.addEventListener("change", async () => {
    const file = input.files?.[0];
    input.value = "";
    if (file) say(await load(file, model, store));
  });
}

/** Takes over a saved state, or the qParams of any graph's JSON; returns what to tell the reader. */
async function load(file: File, model: Model, store: Store): Promise<string> {
  if (file.size > LARGEST) return `${file.name} is too large for a saved state.`;
  let content: unknown;
  try {
    content = JSON.parse(await file.text());
  } catch {
    return `${file.name} is not a JSON file.`;
  }
  const { qParams, metadata } = (content ?? {}) as { qParams?: unknown; metadata?: Record<string, unknown> };
  if (typeof qParams !== "object" || qParams === null) return `${file.name} is not a saved state: it has no qParams.`;
  const change: Partial<State> = fromQParams(qParams, (id) => model.has(id));
  const share = (value: unknown): value is number => typeof value === "number" && value >= 0 && value <= 1;
  if (share(metadata?.node_threshold)) change.nodeThreshold = metadata.node_threshold;
  if (share(metadata?.edge_threshold)) change.edgeThreshold = metadata.edge_threshold;
  store.set({ pinned: [], supernodes: [], clicked: "", positions: {}, ...change }, true);
  const { pinnedIds } = qParams as { pinnedIds?: unknown };
  const given = typeof pinnedIds === "string" ? pinnedIds.split(",") : pinnedIds;
  const missing = Array.isArray(given) ? given.filter((id) => !model.has(String(id))).length : 0;
  return missing ? `Loaded; ${whole(missing)} pinned nodes are not in this graph.` : "Loaded.";
}
