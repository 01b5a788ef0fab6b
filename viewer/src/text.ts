// Strings from the graph as text that can be shown anywhere (graphs/text.py does the same), and numbers.

const NAMED: Record<string, string> = { "\n": "↵", "\r": "␍", "\t": "⇥", "\u2028": "↵", "\u2029": "↵", "\x7f": "␡" };
// Right-to-left text itself is fine; the invisible marks that reverse the text after them are not.
const DIRECTION = /[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/;

/** Line breaks, control characters, direction marks and lone surrogates as visible signs. */
export function visible(text: string): string {
  let shown = "";
  for (const sign of text) {
    const code = sign.codePointAt(0)!;
    if (NAMED[sign]) shown += NAMED[sign];
    else if (code < 0x20) shown += String.fromCharCode(0x2400 + code);
    else if ((code >= 0x80 && code < 0xa0) || (code >= 0xd800 && code < 0xe000) || DIRECTION.test(sign) || noCharacter(code))
      shown += `⟨${code.toString(16).toUpperCase().padStart(4, "0")}⟩`;
    else shown += sign;
  }
  return shown;
}

function noCharacter(code: number): boolean {
  return (code & 0xfffe) === 0xfffe || (code >= 0xfdd0 && code <= 0xfdef);
}

/** Visible text without surrounding blanks (unless there is nothing else), cut to `limit` characters. */
export function short(text: string, limit = 24): string {
  const trimmed = text.replace(/^ +| +$/g, "");
  const shown = visible(trimmed) || (text ? "␣".repeat(Math.min(text.length, limit)) : "∅");
  const signs = Array.from(shown);
  return signs.length <= limit ? shown : signs.slice(0, limit - 1).join("").trimEnd() + "…";
}

// The same rules as graphs/numbers.py: no number is rounded into another statement.

export function signed(value: number): string {
  if (value === 0) return "0";
  return (value < 0 ? "−" : "+") + plain(Math.abs(value));
}

/** An activation, a weight or another size with about three digits. */
export function plain(value: number): string {
  if (Number.isNaN(value)) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  const sign = value < 0 ? "−" : "";
  if (size >= 99999.5 || size < 0.00095) return sign + exponential(size);
  if (size >= 99.95) return sign + size.toLocaleString("en-US", { maximumFractionDigits: 0 });
  return sign + size.toFixed(size >= 9.995 ? 1 : size >= 0.9995 ? 2 : size >= 0.0995 ? 3 : size >= 0.00995 ? 4 : 5);
}

/** A part of a whole. */
export function percent(share: number): string {
  const value = 100 * share;
  if (Number.isNaN(value)) return "–";
  if (value >= 99.95 && value < 100) return ">99.9%";
  if (value > 0 && value < 0.001) return "<0.001%";
  return `${fixed(value)}%`;
}

/** A probability, with three decimals; small ones as a power of ten. */
export function probability(value: number): string {
  if (Number.isNaN(value)) return "–";
  if (value >= 0.9995 && value < 1) return ">0.999";
  if (value > 0 && value < 0.0095) return value >= 0.00095 ? value.toFixed(4) : exponential(value);
  return value ? value.toFixed(3) : "0";
}

/** The difference of two shares or probabilities, in percentage points. */
export function points(difference: number, unit = " pp"): string {
  const value = 100 * difference, size = Math.abs(value);
  if (Number.isNaN(value)) return "–";
  if (value === 0) return `0${unit}`;
  return `${value < 0 ? "−" : "+"}${size < 0.001 ? size.toExponential(0).replace("-", "−") : fixed(size)}${unit}`;
}

function fixed(percent: number): string {
  const size = Math.abs(percent);
  if (size === 0) return "0";
  if (size >= 99.95 && Number.isInteger(percent)) return percent.toFixed(0);
  if (size >= 0.995) return percent.toFixed(size >= 9.995 ? 1 : 2);
  return percent.toFixed(1 - Math.floor(Math.log10(size)));
}

function exponential(size: number): string {
  return size.toExponential(1).replace("-", "−").replace("e+", "e");
}

export function whole(value: number): string {
  return value.toLocaleString("en-US");
}
