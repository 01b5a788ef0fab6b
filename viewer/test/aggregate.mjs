// Drives the page of an aggregate in a real browser: node aggregate.mjs PAGE.html CHROMIUM. Prints one JSON object: what the page
// shows at several thresholds, what a box and a prompt say, and what is wrong by axe.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
import { chromium } from "playwright-core";

const [file, executablePath] = process.argv.slice(2);
const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-gpu"] });
const found = { complaints: [], counts: [], axe: [] };
for (const colorScheme of ["light", "dark"]) {
  const context = await browser.newContext({ viewport: { width: 1300, height: 760 }, colorScheme, bypassCSP: true });
  const page = await context.newPage();
  page.on("console", (message) => ["error", "warning"].includes(message.type()) && found.complaints.push(message.text()));
  page.on("pageerror", (error) => found.complaints.push(error.message));
  await page.goto(pathToFileURL(file).href);
  await page.waitForFunction(() => !document.getElementById("app").ariaBusy);
  const count = () => page.evaluate(() => document.getElementById("count").textContent);
  found.counts = [await count()];
  for (const share of [100, 5]) {
    await page.locator("#share").fill(String(share));
    found.counts.push(await count());
  }
  await page.keyboard.press("Tab"); // off the slider, which has arrow keys of its own
  await page.locator("#circuit .node").last().focus();
  await page.keyboard.press("Enter");
  found.box = await page.locator("#card").innerText();
  await page.locator('#card button[aria-expanded]').first().click();
  found.prompt = await page.locator("#card .prompt-text").first().innerText();
  await page.keyboard.press("ArrowDown");
  found.next = await page.evaluate(() => document.activeElement.getAttribute("aria-label"));
  await page.evaluate(axe);
  found.axe.push(...(await page.evaluate(async () => (await axe.run()).violations.map(({ id, nodes }) => `${id}: ${nodes[0].html}`))));
  await context.close();
}
await browser.close();
console.log(JSON.stringify(found));
