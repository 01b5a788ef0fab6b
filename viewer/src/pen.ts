// A pen that writes SVG where a canvas draws: it knows as much of CanvasRenderingContext2D as the pictures of this page use.

const escaped = (text: string): string =>
  text.replace(/[&<>"]/g, (sign) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[sign]!);
const short = (value: number): string => String(Math.round(value * 100) / 100);

interface Memory {
  fillStyle: string;
  strokeStyle: string;
  lineWidth: number;
  globalAlpha: number;
  font: string;
  textAlign: CanvasTextAlign;
  textBaseline: CanvasTextBaseline;
  /** Groups that `restore` closes. */
  open: number;
}

export class SvgPen {
  fillStyle = "#000000";
  strokeStyle = "#000000";
  lineWidth = 1;
  globalAlpha = 1;
  font = "12px sans-serif";
  textAlign: CanvasTextAlign = "left";
  textBaseline: CanvasTextBaseline = "alphabetic";
  lineJoin = "round";
  private dash: number[] = [];
  private path = "";
  private parts: string[] = [];
  private memories: Memory[] = [];
  private clips = 0;

  constructor(readonly width: number, readonly height: number, private measure: CanvasRenderingContext2D) {}

  toString(): string {
    const open = this.memories.reduce((sum, memory) => sum + memory.open, 0);
    return `<svg xmlns="http://www.w3.org/2000/svg" width="${short(this.width)}" height="${short(this.height)}" viewBox="0 0 ${short(this.width)} ${short(this.height)}">${this.parts.join("")}${"</g>".repeat(open)}</svg>`;
  }

  beginPath(): void {
    this.path = "";
  }

  moveTo(x: number, y: number): void {
    this.path += `M${short(x)},${short(y)}`;
  }

  lineTo(x: number, y: number): void {
    this.path += `L${short(x)},${short(y)}`;
  }

  bezierCurveTo(a: number, b: number, c: number, d: number, x: number, y: number): void {
    this.path += `C${[a, b, c, d, x, y].map(short).join(" ")}`;
  }

  closePath(): void {
    this.path += "Z";
  }

  rect(x: number, y: number, width: number, height: number): void {
    this.path += `M${short(x)},${short(y)}h${short(width)}v${short(height)}h${short(-width)}Z`;
  }

  roundRect(x: number, y: number, width: number, height: number, radius: number): void {
    const r = Math.min(radius, width / 2, height / 2), a = `a${short(r)},${short(r)} 0 0 1 `;
    this.path += `M${short(x + r)},${short(y)}h${short(width - 2 * r)}${a}${short(r)},${short(r)}v${short(height - 2 * r)}${a}${short(-r)},${short(r)}` +
      `h${short(2 * r - width)}${a}${short(-r)},${short(-r)}v${short(2 * r - height)}${a}${short(r)},${short(-r)}Z`;
  }

  fill(): void {
    this.parts.push(`<path d="${this.path}" fill="${escaped(this.fillStyle)}"${this.alpha("fill")}/>`);
  }

  stroke(): void {
    const dash = this.dash.length ? ` stroke-dasharray="${this.dash.map(short).join(" ")}"` : "";
    this.parts.push(`<path d="${this.path}" fill="none" stroke="${escaped(this.strokeStyle)}" stroke-width="${short(this.lineWidth)}"${dash}${this.alpha("stroke")}/>`);
  }

  fillRect(x: number, y: number, width: number, height: number): void {
    this.parts.push(`<rect x="${short(x)}" y="${short(y)}" width="${short(width)}" height="${short(height)}" fill="${escaped(this.fillStyle)}"${this.alpha("fill")}/>`);
  }

  clearRect(): void {
    // There is nothing before the first part.
  }

  fillText(text: string, x: number, y: number): void {
    this.text(text, x, y, `fill="${escaped(this.fillStyle)}"`);
  }

  strokeText(text: string, x: number, y: number): void {
    this.text(text, x, y, `fill="none" stroke="${escaped(this.strokeStyle)}" stroke-width="${short(this.lineWidth)}" stroke-linejoin="round"`);
  }

  private text(text: string, x: number, y: number, paint: string): void {
    const [, bold, size, family] = /^(\d{3} |bold )?([\d.]+)px (.*)$/.exec(this.font) ?? ["", "", "12", "sans-serif"];
    const anchor = { center: "middle", right: "end", end: "end", left: "start", start: "start" }[this.textAlign];
    // Not every reader of SVG knows dominant-baseline.
    const down = this.textBaseline === "middle" ? 0.35 * Number(size) : 0;
    this.parts.push(`<text x="${short(x)}" y="${short(y + down)}" font-size="${size}" font-family="${escaped(family)}"${bold ? ' font-weight="600"' : ""} text-anchor="${anchor}" ${paint}>${escaped(text)}</text>`);
  }

  measureText(text: string): TextMetrics {
    this.measure.font = this.font;
    return this.measure.measureText(text);
  }

  setLineDash(dash: number[]): void {
    this.dash = dash;
  }

  save(): void {
    const { fillStyle, strokeStyle, lineWidth, globalAlpha, font, textAlign, textBaseline } = this;
    this.memories.push({ fillStyle, strokeStyle, lineWidth, globalAlpha, font, textAlign, textBaseline, open: 0 });
  }

  restore(): void {
    const memory = this.memories.pop();
    if (!memory) return;
    const { open, ...rest } = memory;
    this.parts.push("</g>".repeat(open));
    Object.assign(this, rest);
  }

  private group(attributes: string): void {
    this.parts.push(`<g ${attributes}>`);
    const memory = this.memories[this.memories.length - 1];
    if (memory) memory.open++;
    else this.memories.push({ ...this, open: 1 } as unknown as Memory);
  }

  clip(): void {
    const id = `clip${++this.clips}`;
    this.parts.push(`<clipPath id="${id}"><path d="${this.path}"/></clipPath>`);
    this.group(`clip-path="url(#${id})"`);
  }

  translate(x: number, y: number): void {
    this.group(`transform="translate(${short(x)} ${short(y)})"`);
  }

  rotate(angle: number): void {
    this.group(`transform="rotate(${short((angle * 180) / Math.PI)})"`);
  }

  private alpha(kind: "fill" | "stroke"): string {
    return this.globalAlpha < 1 ? ` ${kind}-opacity="${short(this.globalAlpha)}"` : "";
  }
}

/** What pictures are drawn with. */
export type Pen = CanvasRenderingContext2D;

/** The SVG text of what `draw` draws. */
export function svgOf(width: number, height: number, draw: (pen: Pen) => void): string {
  const pen = new SvgPen(width, height, document.createElement("canvas").getContext("2d")!);
  draw(pen as unknown as Pen);
  return pen.toString();
}

/** The same as a PNG, with this many pixels for one. */
export function pngOf(width: number, height: number, draw: (pen: Pen) => void, scale = 2): Promise<Blob> {
  const canvas = document.createElement("canvas");
  // Browsers refuse canvases beyond some 16,000 pixels.
  const fit = Math.min(scale, 16_000 / Math.max(width, height));
  canvas.width = Math.round(width * fit);
  canvas.height = Math.round(height * fit);
  const pen = canvas.getContext("2d")!;
  pen.scale(fit, fit);
  draw(pen);
  return new Promise((done, fail) => canvas.toBlob((blob) => (blob ? done(blob) : fail(new Error("the browser cannot make a PNG of this size"))), "image/png"));
}
