// Colours for the canvas, read from the style sheet, where light and dark are told apart.

import { TONES, type Tone } from "./shapes";

export interface Theme {
  background: string;
  text: string;
  faint: string;
  line: string;
  positive: string;
  negative: string;
  accent: string;
  fill: Record<Tone, string>;
  stroke: Record<Tone, string>;
  font: string;
}

export function readTheme(): Theme {
  const style = getComputedStyle(document.documentElement);
  const value = (name: string): string => style.getPropertyValue(`--${name}`).trim();
  const tones = (part: string): Record<Tone, string> =>
    Object.fromEntries(TONES.map((tone) => [tone, value(`${tone}-${part}`)])) as Record<Tone, string>;
  return {
    background: value("background"),
    text: value("text"),
    faint: value("faint"),
    line: value("line"),
    positive: value("positive"),
    negative: value("negative"),
    accent: value("accent"),
    fill: tones("fill"),
    stroke: tones("stroke"),
    font: getComputedStyle(document.body).fontFamily,
  };
}
