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

export function signed(value: number): string {
  if (value === 0) return "0";
  return (value < 0 ? "−" : "+") + plain(Math.abs(value));
}

export function plain(value: number): string {
  if (Number.isNaN(value)) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e5 || size < 1e-3) return value.toExponential(1).replace("-", "−").replace("e+", "e");
  return value.toFixed(size >= 100 ? 0 : size >= 10 ? 1 : size >= 1 ? 2 : 3).replace("-", "−");
}

export function percent(share: number): string {
  const value = 100 * share;
  return `${value >= 10 ? value.toFixed(0) : value >= 1 ? value.toFixed(1) : value.toFixed(2)}%`;
}

export function whole(value: number): string {
  return value.toLocaleString("en-US");
}
