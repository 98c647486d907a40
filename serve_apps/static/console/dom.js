// Building blocks: elements without innerHTML, so that no text from outside is ever markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") Object.assign(element.style, value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat(3)) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : String(child));
  }
  return element;
}

export function h(tag, attributes, ...children) {
  const [name, ...classes] = tag.split(".");
  const element = document.createElement(name || "div");
  if (classes.length) element.className = classes.join(" ");
  return fill(element, attributes, children);
}

export function s(tag, attributes, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

const whole = new Intl.NumberFormat("en");
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const tenth = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });

export const count = (n) => whole.format(n ?? 0);
export const short = (n) => (n < 10_000 ? whole.format(n) : compact.format(n));
export const decimal = (n) => tenth.format(n);

export function percent(part, all) {
  if (!all) return "–";
  const value = (100 * part) / all;
  return `${value > 0 && value < 0.1 ? "<0.1" : tenth.format(value)} %`;
}

// The domain speaks UTC with microseconds; people read their own clock.
export const instant = (text) => new Date(text.replace(/(\.\d{3})\d+/, "$1"));
export function time(text) {
  if (!text) return "–";
  return instant(text).toLocaleString("en", { dateStyle: "medium", timeStyle: "short" });
}

export function duration(seconds) {
  if (!Number.isFinite(seconds)) return "–";
  if (seconds < 60) return `${Math.max(0, Math.round(seconds))} s`;
  if (seconds < 5_400) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172_800) return `${decimal(seconds / 3_600)} h`;
  return `${Math.round(seconds / 86_400)} days`;
}

export function bytes(n) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let at = 0;
  for (; n >= 1_000 && at < units.length - 1; at++) n /= 1_000;
  return `${decimal(n)} ${units[at]}`;
}

export const words = (text) => (text ?? "").replaceAll("_", " ");
