// A picture of a page: node screenshot.mjs PAGE.html[#STATE] OUT.png [light|dark] [1400x860] [CHROMIUM]; prints what it
// complains of.

import { resolve } from "node:path";
import { pathToFileURL } from "node:url";
import { chromium } from "playwright-core";

const [given, out, colorScheme = "light", size = "1400x860", executablePath = "/usr/bin/chromium"] = process.argv.slice(2);
const [file, ...state] = given.split("#");
const [width, height] = size.split("x").map(Number);
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-gpu"] });
const page = await browser.newPage({ viewport: { width, height }, colorScheme, reducedMotion: "reduce" });
page.on("console", (message) => console.log(message.type(), message.text()));
page.on("pageerror", (error) => console.log(error.stack));
page.setDefaultTimeout(180_000);
await page.goto(pathToFileURL(resolve(file)).href + (state.length ? `#${state.join("#")}` : ""));
await page.waitForFunction(() => document.getElementById("app") && !document.getElementById("app").ariaBusy);
// The strongest paths come last, where the page has them.
await page.locator(".path, .pair-row, .card, .neighbour").first().waitFor({ timeout: 5000 }).catch(() => {});
await page.evaluate(() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done))));
await page.screenshot({ path: out });
await browser.close();
