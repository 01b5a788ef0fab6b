// Builds ../graphs/page/page.html, compare.html, reading.html and aggregate.html: markup, style, script and licences in one file, with marks where
// graphs/page/export.py puts the data and the content security policy. The output is committed, see docs/guides/page.md.

import { createHash } from "node:crypto";
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const read = (...path) => readFileSync(join(here, ...path), "utf8");

const bundle = (entry) => build({
  absWorkingDir: here,
  entryPoints: [entry],
  bundle: true,
  minify: true,
  format: "iife",
  target: "es2022",
  charset: "ascii",
  legalComments: "none",
  write: false,
  metafile: true,
});
const styles = async (entry) => {
  const { outputFiles } = await build({
    absWorkingDir: here, entryPoints: [entry], bundle: true, minify: true, charset: "ascii", target: "chrome120", write: false,
  });
  return outputFiles[0].text.trim();
};

/** The licence of every package of which something is in the bundle. */
function licences(metafile) {
  const packages = new Set();
  for (const input of Object.keys(metafile.inputs)) {
    const found = /node_modules\/((?:@[^/]+\/)?[^/]+)\//.exec(input);
    if (found) packages.add(found[1]);
  }
  return [...packages].sort().map((name) => {
    const { version, license } = JSON.parse(read("node_modules", name, "package.json"));
    const file = readdirSync(join(here, "node_modules", name)).find((entry) => /^licen[cs]e/i.test(entry));
    if (!file) throw new Error(`${name} has no licence file`);
    return `${name} ${version} (${license})\n\n${read("node_modules", name, file).trim()}`;
  }).join("\n\n----\n\n");
}

/** One hash over all sources: a test compares it, so that the committed page cannot lag behind them. */
function sources() {
  const hash = createHash("sha256");
  const files = ["build.mjs", "package-lock.json", ...readdirSync(join(here, "src")).sort().map((name) => `src/${name}`)];
  for (const file of files) hash.update(`${file}\n`).update(read(file).replaceAll("\r\n", "\n"));
  return hash.digest("hex");
}

mkdirSync(join(here, "../graphs/page"), { recursive: true });
for (const [name, entry, style] of [
  ["page.html", "src/main.ts", "src/style.css"],
  ["compare.html", "src/compare.ts", "src/style.css"],
  ["reading.html", "src/reading.ts", "src/reading.css"],
  ["aggregate.html", "src/aggregate.ts", "src/aggregate.css"],
]) {
  const { outputFiles, metafile } = await bundle(entry);
  const parts = {
    SOURCES: sources(),
    STYLE: await styles(style),
    SCRIPT: outputFiles[0].text.trim(),
    LICENCES: licences(metafile).replaceAll("<", "‹").replaceAll(">", "›"),
  };
  for (const [part, text] of Object.entries(parts))
    if (/<\/?(script|style|!--)/i.test(text)) throw new Error(`${part} holds markup that would end or nest its element`);
  const whole = read("src", name).replace("{{HEAD}}\n", read("src", "head.html")); // the pages begin alike
  const page = whole.replace(/\{\{(SOURCES|STYLE|SCRIPT|LICENCES)\}\}/g, (_, part) => parts[part]);
  writeFileSync(join(here, "../graphs/page", name), page);
  console.log(`graphs/page/${name}: ${(page.length / 1000).toFixed(0)} kB`);
}
