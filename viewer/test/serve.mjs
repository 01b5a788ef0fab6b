// Drives the page of a server in a real browser: node serve.mjs COMMAND FOLDER CHROMIUM [CHECK], where COMMAND (JSON, a list)
// starts a server that prints its address. Prints one JSON line per check, as browser.mjs does.

import { spawn } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import assert from "node:assert/strict";
import { chromium } from "playwright-core";

const [command, folder, executablePath, only = ""] = process.argv.slice(2);
const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const LONG = 60_000;

/** Starts the server; resolves with its process and address once it listens. */
function serve(port = "0") {
  const [program, ...rest] = JSON.parse(command);
  const process_ = spawn(program, [...rest, "--port", port, "--folder", folder], { stdio: ["ignore", "pipe", "inherit"] });
  return new Promise((done, fail) => {
    let said = "";
    process_.stdout.on("data", (part) => {
      said += part;
      const found = /at (http:\S+)/.exec(said);
      if (found) done({ process: process_, url: found[1] });
    });
    process_.on("exit", (code) => fail(new Error(`the server ended with ${code}`)));
  });
}
const ended = (server) => new Promise((done) => server.process.once("exit", done));

let server = await serve();
const profile = mkdtempSync(join(tmpdir(), "crosstrace-browser-"));
const context = await chromium.launchPersistentContext(profile, {
  executablePath, headless: true, viewport: { width: 1400, height: 900 }, reducedMotion: "reduce", acceptDownloads: true,
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"],
});

async function open(fragment = "", { quiet = true } = {}) {
  const page = await context.newPage();
  page.setDefaultTimeout(LONG);
  page.complaints = [];
  if (quiet) page.on("console", (message) => ["error", "warning"].includes(message.type()) && page.complaints.push(message.text()));
  page.on("pageerror", (error) => page.complaints.push(`error: ${error.message}`));
  page.on("dialog", (dialog) => (page.complaints.push(`dialog: ${dialog.message()}`), dialog.dismiss()));
  page.on("request", (request) => request.url().startsWith(server.url) || /^(blob|data|about):/.test(request.url()) || page.complaints.push(`request: ${request.url()}`));
  await page.goto(server.url + fragment);
  await page.waitForFunction(() => document.getElementById("app") && !document.getElementById("app").ariaBusy);
  return page;
}
/** The graph's page, once its script has run. */
async function graph(page, marker = "/graphs/") {
  await page.waitForFunction((part) => {
    const inside = document.getElementById("frame").contentWindow;
    return inside?.location.pathname.startsWith(part) && inside.crosstrace && !inside.document.getElementById("app").ariaBusy;
  }, marker);
  return page.frames().find((frame) => frame.url().includes(marker));
}
async function trace(page, prompt) {
  const before = new URL(page.url()).hash;
  if (prompt !== undefined) await page.fill("#ask-text", prompt);
  await page.click("#trace");
  await page.waitForFunction((hash) => location.hash !== hash && location.hash.startsWith("#graph="), before);
  return graph(page);
}
const outcome = (page) => page.locator("#result .outcome tbody tr").first().waitFor();
const groups = (frame) => frame.locator("#story-board .box.group");
const PROMPT = "The capital of the state containing Dallas is";

const checks = {
  async "prompt, graph, ablation, changed answer, saved file, in under ten clicks"() {
    const page = await open();
    let clicks = 0;
    const click = async (locator) => {
      clicks++;
      await locator.click();
    };
    assert.equal(await page.inputValue("#ask-text"), PROMPT);
    await click(page.locator("#trace"));
    const frame = await graph(page);
    await click(groups(frame).filter({ hasText: "Texas" }).first());
    await click(page.locator("#act-ablate"));
    await outcome(page);
    const sides = await page.locator("#result .side p").allTextContents();
    assert.equal(sides[0], "Austin");
    assert.notEqual(sides[1], "Austin");
    const row = await page.locator("#result .outcome tbody tr").filter({ hasText: "Austin" }).locator("td").allTextContents();
    assert.match(row[2], /^−/, "the logit falls");
    assert.match(row[3], /^−/, "as the graph predicts");
    await click(page.locator("#open-save"));
    const saving = page.waitForEvent("download");
    await click(page.locator("#save-menu a").filter({ hasText: ".json" }));
    const content = JSON.parse(readFileSync(await (await saving).path(), "utf8"));
    assert.match(content.metadata.prompt, /Dallas/);
    assert(content.nodes.length > 5 && clicks < 10, `${clicks} clicks`);
    return page;
  },
  async "every verb and place changes something, and earlier changes come back"() {
    const page = await open();
    const frame = await trace(page);
    await frame.locator("#view-graph").click();
    await frame.evaluate(() => {
      const { model, store } = globalThis.crosstrace;
      const node = model.shown.filter((i) => model.kind(i) === "feature").sort((a, b) => model.influence.values[b] - model.influence.values[a])[0];
      store.set({ clicked: model.id(node) });
    });
    await page.click("#act-scale");
    await outcome(page);
    for (const verb of ["add", "set", "ablate", "swap-in"]) {
      await page.locator(".edit select").first().selectOption(verb);
      if (verb === "swap-in") await page.locator(".edit input[type=text]").fill(PROMPT.replace("Dallas", "Oakland"));
      await page.locator(".edit select").nth(1).selectOption(verb === "ablate" ? "everywhere" : verb === "set" ? "on" : "here");
      const done = await page.locator("#earlier li").count();
      await page.click("#run");
      await page.waitForFunction((n) => document.querySelectorAll("#earlier li").length > Math.max(n, 1) || document.querySelector("#edit-said.wrong"), done);
      assert.equal(await page.locator("#edit-said.wrong").count(), 0, await page.locator("#edit-said").textContent());
    }
    await page.waitForFunction(() => document.querySelectorAll("#earlier li").length === 5);
    await page.locator("#earlier button").last().click();
    assert.equal(await page.locator(".edit select").first().inputValue(), "scale");
    return page;
  },
  async "a wrong request is one line where it was made"() {
    const page = await open("", { quiet: false });
    await page.fill("#ask-text", "Dallas ".repeat(600));
    await page.click("#trace");
    await page.locator("#ask-said.wrong").filter({ hasText: "takes at most" }).waitFor();
    await page.fill("#ask-text", PROMPT);
    await page.locator("#ask-more summary").click();
    await page.fill("#ask-targets", '" nowhere, at all"');
    await page.keyboard.press("Control+Enter");
    await page.locator("#ask-said.wrong").filter({ hasText: "nowhere, at all" }).waitFor();
    await page.fill("#ask-targets", "");
    return page;
  },
  async "a conversation is traced, its answer taken over"() {
    const page = await open();
    await page.selectOption("#model", "demo-chat");
    const frame = await trace(page);
    assert.match(await frame.locator("h1").textContent(), /vault code/);
    await frame.evaluate(() => globalThis.crosstrace.store.set({ clicked: globalThis.crosstrace.model.id(globalThis.crosstrace.model.shown.find((i) => globalThis.crosstrace.model.kind(i) === "feature")) }));
    await page.click("#act-ablate");
    await outcome(page);
    await page.getByRole("button", { name: "Trace this answer" }).click();
    assert((await page.inputValue("#ask-answer")).length > 0);
    const answered = await trace(page);
    assert(await answered.locator("#targets button").count() > 2, "every token of the answer is a target");
    await page.selectOption("#model", "demo");
    return page;
  },
  async "a reload and a kill lose nothing"() {
    const page = await open("", { quiet: false });
    const frame = await trace(page, PROMPT.replace("Dallas", "Oakland"));
    const [id] = await frame.evaluate(() => {
      const { model, store } = globalThis.crosstrace;
      const ids = model.shown.filter((i) => model.kind(i) === "feature").slice(0, 2).map((i) => model.id(i));
      store.group("two of them", ids);
      store.set({ clicked: ids[0] });
      return ids;
    });
    await page.click("#act-ablate");
    await outcome(page);
    await page.waitForTimeout(700);
    const before = { url: page.url(), entries: await page.locator(".entry").count(), said: await page.locator("#result").textContent() };
    const other = await open("", { quiet: false });
    server.process.kill("SIGKILL");
    await ended(server);
    server = await serve(new URL(server.url).port);
    await page.reload();
    const again = await graph(page);
    assert.equal(page.url(), before.url);
    await page.waitForFunction((n) => document.querySelectorAll(".entry").length === n, before.entries);
    assert.equal(await page.locator("#result").textContent(), before.said);
    const state = await again.evaluate(() => globalThis.crosstrace.store.state);
    assert.equal(state.clicked, id);
    assert.equal(state.supernodes[0].name, "two of them");
    assert.match(await page.inputValue("#ask-text"), /Oakland/);
    await trace(other, PROMPT); // a page that was open all along goes on working, without being loaded again
    return page;
  },
  async "a trace goes on where the page is loaded again in the middle of it"() {
    const page = await open();
    await page.fill("#ask-text", PROMPT.replace("Dallas", "Chicago"));
    await page.evaluate(() => document.getElementById("trace").click());
    await page.waitForFunction(() => sessionStorage.getItem("crosstrace.job"));
    await page.reload();
    await page.waitForFunction(() => location.hash.startsWith("#graph="));
    assert.match(await (await graph(page)).locator("h1").textContent(), /Chicago/);
    return page;
  },
  async "two tabs work side by side and know each other's graphs"() {
    const [one, two] = [await open(), await open()];
    const count = await two.locator(".entry").count();
    await Promise.all([trace(one, PROMPT.replace("Dallas", "Seattle")), trace(two, PROMPT.replace("Dallas", "Miami"))]);
    for (const page of [one, two]) await page.waitForFunction((n) => document.querySelectorAll(".entry").length === n, count + 2);
    assert.match(await (await graph(one)).locator("h1").textContent(), /Seattle/);
    assert.match(await (await graph(two)).locator("h1").textContent(), /Miami/);
    one.complaints.push(...two.complaints);
    await two.close();
    return one;
  },
  async "two graphs are compared, and one is dropped"() {
    const page = await open();
    await trace(page, PROMPT);
    await trace(page, PROMPT.replace("Dallas", "Oakland"));
    await page.locator(".entry").nth(1).hover();
    await page.locator(".entry").nth(1).getByRole("button", { name: /^Compare/ }).click();
    const both = await graph(page, "/compare/");
    assert.match(await both.locator("body").textContent(), /Oakland/);
    await page.reload();
    await graph(page, "/compare/");
    const entries = await page.locator(".entry").count();
    await page.locator(".entry").first().hover();
    await page.locator(".entry").first().getByRole("button", { name: /^Drop/ }).click();
    await page.waitForFunction((n) => document.querySelectorAll(".entry").length === n - 1, entries);
    await page.locator("#welcome").waitFor();
    return page;
  },
  async "hostile prompts and labels show as text"() {
    const page = await open();
    const attack = `<img src=x onerror="window.pwned=1"> </script><script>window.pwned=1</script> "><svg onload=window.pwned=1> is`;
    const frame = await trace(page, attack);
    await frame.evaluate(() => {
      const { model, store } = globalThis.crosstrace;
      store.group("<img src=x onerror='parent.pwned=1'>", model.shown.filter((i) => model.kind(i) === "feature").slice(0, 2).map((i) => model.id(i)));
      store.set({ clicked: "supernode-0" });
    });
    assert.match(await page.locator("#chosen").textContent(), /<img src=x/);
    await page.click("#act-ablate");
    await outcome(page);
    assert.match(await page.locator(".edit .what").textContent(), /<img src=x/);
    assert.match(await page.locator(".entry").first().textContent(), /<img|unk/);
    await page.reload();
    await graph(page);
    const marks = await Promise.all([page, ...page.frames()].map((where) => where.evaluate(() => [window.pwned, document.querySelectorAll("img").length])));
    assert(marks.every(([pwned, images]) => !pwned && images === 0), JSON.stringify(marks));
    return page;
  },
  async "everything is reached and done with the keyboard"() {
    const page = await open();
    await page.focus("#ask-text");
    await page.keyboard.press("Control+Enter");
    await page.waitForFunction(() => location.hash.startsWith("#graph="));
    const frame = await graph(page);
    await groups(frame).first().focus();
    await page.keyboard.press("Enter");
    await page.waitForFunction(() => !document.getElementById("act-ablate").disabled);
    await page.keyboard.press("Shift+X");
    await outcome(page);
    await page.keyboard.press("e");
    await page.locator("#drawer").waitFor({ state: "hidden" });
    await page.keyboard.press("b");
    await page.locator("#rail").waitFor({ state: "hidden" });
    await page.keyboard.press("b");
    await page.focus("#open-save");
    await page.keyboard.press("Enter");
    await page.keyboard.press("ArrowDown");
    assert.match(await page.evaluate(() => document.activeElement.textContent), /\.json/);
    await page.keyboard.press("Escape");
    assert.equal(await page.evaluate(() => document.activeElement.id), "open-save");
    return page;
  },
  async "nothing serious stands in the way of assistive technology, in light and dark"() {
    const page = await open();
    const frame = await trace(page, PROMPT);
    await groups(frame).first().click();
    await page.click("#act-ablate");
    await outcome(page);
    await page.locator("#ask-more summary").click();
    for (const colorScheme of ["light", "dark"]) {
      await page.emulateMedia({ colorScheme });
      await page.evaluate(axe);
      const { violations } = await page.evaluate(() => globalThis.axe.run(document, { resultTypes: ["violations"], iframes: false }));
      const serious = violations.filter(({ impact }) => ["serious", "critical"].includes(impact)).map(({ id, nodes }) => `${id}: ${nodes.slice(0, 3).map((node) => `${node.html.slice(0, 160)} ${node.failureSummary}`).join(" ;; ")}`);
      assert.deepEqual(serious, []);
    }
    return page;
  },
  async "no script but the page's own can run, and no request can leave"() {
    const page = await open("", { quiet: false });
    const ran = await page.evaluate(() => {
      const script = document.createElement("script");
      script.textContent = "window.foreign = true";
      document.body.append(script);
      const made = document.createElement("div");
      made.innerHTML = "<img src=x onerror='window.foreign = true'>";
      document.body.append(made);
      return fetch("https://example.org/").then(() => "fetched", () => window.foreign ?? "blocked");
    });
    assert.equal(ran, "blocked");
    return page;
  },
};

for (const [check, run] of Object.entries(checks)) {
  if (only && !new RegExp(only).test(check)) continue;
  const began = Date.now();
  let problem = "";
  try {
    const page = await run();
    if (page.complaints.length) problem = page.complaints.join("\n");
  } catch (error) {
    problem = error.stack;
  }
  for (const page of context.pages()) if (page !== context.pages()[0]) await page.close();
  console.log(JSON.stringify({ check, problem, measured: "", seconds: (Date.now() - began) / 1000 }));
}
await context.close();
server.process.kill("SIGTERM");
rmSync(profile, { recursive: true, force: true });
