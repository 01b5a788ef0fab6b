// What the page asks its server for. Only `change` calls send the token: nothing else needs it.

export interface Entry {
  id: string;
  slug: string;
  scan: string;
  made: number;
  size: number;
  about: { prompt: string; model: string; answer: string; probability: number | null; notes: string[]; tokens: number; asked: Asked };
  state: { qParams?: Record<string, unknown>; fragment?: string };
}

export interface Message {
  role: string;
  content: string;
}

export interface Asked {
  prompt: string;
  messages: Message[];
  answer: string;
  targets: string[];
  max_logits: number;
  max_feature_nodes: number | null;
  node_threshold: number;
  edge_threshold: number;
}

export interface Job {
  id: string;
  what: string;
  state: "waiting" | "running" | "done" | "failed" | "cancelled";
  doing: string;
  done: number;
  total: number;
  before: number;
  error: string;
  result: Record<string, unknown> | null;
}

export interface EditBody {
  verb: string;
  features: string[];
  name: string;
  value: number;
  prompt: string;
}

export interface TokenChange {
  token: number;
  string: string;
  before: number;
  after: number;
  logit_change: number;
}

export interface Outcome {
  id: string;
  made?: number;
  interventions: string[];
  found: string[];
  freeze: string;
  became_active: number;
  became_inactive: number;
  before: TokenChange[];
  after: TokenChange[];
  generated_before: string | null;
  generated_after: string | null;
  answer: { string: string; position: number; before: number; after: number }[];
  predicted: { token: number; string: string; predicted: number | null; measured: number }[];
  edits: EditBody[];
}

export class Api {
  constructor(private token: string) {}

  get<T>(path: string): Promise<T> {
    return answered<T>(fetch(path));
  }

  change<T>(method: string, path: string, body?: unknown): Promise<T> {
    const headers: Record<string, string> = { "x-page-token": this.token };
    if (body !== undefined) headers["content-type"] = "application/json";
    return answered<T>(fetch(path, { method, headers, body: body === undefined ? null : JSON.stringify(body), keepalive: method === "PUT" }));
  }

  /** Follows a job to its end; `told` hears how far it is. A server that was started anew does not know it any more. */
  async follow(id: string, told: (job: Job) => void): Promise<Job> {
    for (let tries = 0; ; tries++) {
      const last = await new Promise<Job | null>((done) => {
        const events = new EventSource(`/api/jobs/${id}/events`);
        let seen: Job | null = null;
        events.onmessage = (event) => {
          seen = JSON.parse(event.data as string) as Job;
          told(seen);
          if (["done", "failed", "cancelled"].includes(seen.state)) {
            events.close();
            done(seen);
          }
        };
        events.onerror = () => {
          events.close();
          done(null);
        };
      });
      if (last) return last;
      await new Promise((later) => setTimeout(later, 1000));
      try {
        told(await this.get<Job>(`/api/jobs/${id}`));
      } catch (problem) {
        if (problem instanceof Failed && problem.status === 404) throw new Error("The server was started anew; trace again.");
        if (tries > 30) throw problem;
      }
    }
  }
}

export class Failed extends Error {
  constructor(readonly status: number, message: string) {
    super(message);
  }
}

async function answered<T>(asking: Promise<Response>): Promise<T> {
  let answer: Response;
  try {
    answer = await asking;
  } catch {
    throw new Error("The server does not answer.");
  }
  const content = (await answer.json().catch(() => ({}))) as { error?: string; detail?: { msg: string; loc: unknown[] }[] };
  if (answer.ok) return content as T;
  const [first] = Array.isArray(content.detail) ? content.detail : [];
  throw new Failed(answer.status, content.error ?? (first ? `${first.loc.slice(1).join(".")}: ${first.msg}` : `The server answered ${answer.status}.`));
}
