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

const twoDigits = new Intl.NumberFormat("en", { maximumSignificantDigits: 2 });
export const share = (part) => `${twoDigits.format(100 * part)} %`;

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

// A table that can be scrolled by keys. ``rows``: each a list of cells, elements or text.
export function table(caption, columns, rows, nothing = "Nothing.") {
  const cell = (value) => (value instanceof HTMLTableCellElement ? value : h("td", null, value));
  return h(
    "div.scroll",
    { role: "region", "aria-label": caption, tabindex: 0, "data-key": `table ${caption}` },
    h(
      "table",
      null,
      h("caption.unseen", null, caption),
      h("thead", null, h("tr", null, columns.map((name) => h("th", { scope: "col" }, name)))),
      h(
        "tbody",
        null,
        rows.length
          ? rows.map((cells) => h("tr", null, cells.map(cell)))
          : h("tr", null, h("td.empty", { colspan: columns.length }, nothing)),
      ),
    ),
  );
}

// Shows ``draw(value)`` in the element anew only when the value is another one. What has the focus,
// is opened or scrolled in it stays so; elements are known again by their ``data-key``.
export function changing(element, draw) {
  const keyed = (selector) => [...element.querySelectorAll(`${selector}[data-key]`)];
  let known;
  return (value) => {
    const now = JSON.stringify(value);
    if (now === known) return;
    known = now;
    const focused = element.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
    const opened = new Set(keyed("details").filter((one) => one.open).map((one) => one.dataset.key));
    const scrolled = [...element.querySelectorAll(".scroll")].map((one) => one.scrollLeft);
    element.replaceChildren(...[draw(value)].flat(3).filter(Boolean));
    keyed("details").forEach((one) => (one.open = opened.has(one.dataset.key)));
    element.querySelectorAll(".scroll").forEach((one, n) => (one.scrollLeft = scrolled[n] ?? 0));
    if (focused !== undefined) keyed("").find((one) => one.dataset.key === focused)?.focus();
  };
}

export const SPANS = { minutes: "5 min", hour: "1 h", day: "24 h", week: "7 days" };
