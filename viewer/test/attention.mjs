// Attention on the page in a real browser: node attention.mjs PAGE.html CHROMIUM [PICTURE.png]; prints what it finds as JSON.

import { resolve } from "node:path";
import { pathToFileURL } from "node:url";
import { chromium } from "playwright-core";

const [file, executablePath, picture] = process.argv.slice(2);
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-gpu"] });
const page = await browser.newPage({ viewport: { width: 1400, height: 860 }, reducedMotion: "reduce" });
const problems = [];
page.on("pageerror", (error) => problems.push(String(error.stack)));
page.setDefaultTimeout(180_000);
await page.goto(pathToFileURL(resolve(file)).href);
await page.waitForFunction(() => document.getElementById("app") && !document.getElementById("app").ariaBusy);
const frame = () => page.evaluate(() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done))));
await frame();
const panel = page.locator("#panel");
await page.locator("#view-graph").click();
await frame();

await page.getByRole("button", { name: "Heads" }).click();
const heads = await panel.locator(".neighbour").count();
const before = await page.evaluate(() => document.getElementById("edges").toDataURL());
await page.getByLabel("colour by head").check();
await frame();
const recoloured = (await page.evaluate(() => document.getElementById("edges").toDataURL())) !== before;
await panel.locator(".neighbour").first().click();
const cells = await panel.locator(".pattern tbody td").count();
const head = await panel.innerText();
if (picture) await page.screenshot({ path: picture });

// The middle of an edge that lies away from every node.
const at = await page.evaluate(() => {
  const { model, view } = globalThis.crosstrace;
  for (const edge of model.pruned.edges) {
    const points = view.painter.curve(edge);
    const x = [0, 1].map((axis) => (points[0][axis] + 3 * points[1][axis] + 3 * points[2][axis] + points[3][axis]) / 8);
    if (view.painter.hit(...x) < 0) {
      const { left, top } = view.element.getBoundingClientRect();
      return [left + x[0], top + x[1]];
    }
  }
  return null;
});
if (at) await page.mouse.click(...at);
await frame();
const edge = await panel.innerText();
if (picture) await page.screenshot({ path: picture.replace(/\.png$/, "-edge.png") });
console.log(JSON.stringify({ problems, heads, recoloured, cells, head, edge, clicked: at !== null }));
await browser.close();
