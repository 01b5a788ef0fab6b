// Pictures of the server's page: node serve_screenshot.mjs URL OUT.png light|dark 1500x950 GROUP [CHROMIUM]: traces the example,
// selects the group of that name in the story, removes it, and waits for what that does. Prints what the page complains of.

import { chromium } from "playwright-core";

const [url, out, colorScheme, size, group, executablePath = "/usr/bin/chromium"] = process.argv.slice(2);
const [width, height] = size.split("x").map(Number);
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-gpu"] });
const page = await browser.newPage({ viewport: { width, height }, colorScheme, reducedMotion: "reduce" });
page.setDefaultTimeout(300_000);
page.on("console", (message) => ["error", "warning"].includes(message.type()) && console.log(message.type(), message.text()));
page.on("pageerror", (error) => console.log(error.stack));
await page.goto(url);
await page.click("#trace");
await page.waitForFunction(() => {
  const inside = document.getElementById("frame").contentWindow;
  return inside?.crosstrace?.store && !inside.document.getElementById("app").ariaBusy;
});
const graph = page.frames().find((frame) => frame.url().includes("/graphs/"));
await graph.locator("#story-board .box.group").filter({ hasText: group }).first().click();
await page.click("#act-ablate");
await page.locator("#result .outcome tbody tr").first().waitFor();
await page.evaluate(() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done))));
await page.mouse.move(width - 5, height - 5);
await page.screenshot({ path: out });
await browser.close();
