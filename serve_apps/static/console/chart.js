// A line chart in SVG: series over time, a grid with few labels, and a reading under the pointer.
// It is drawn once and then updated in place, so that a pointer resting on it is not disturbed.

import { count, h, instant, s, short } from "./dom.js";

const HEIGHT = 240;
const PAD = { left: 46, right: 12, top: 12, bottom: 26 };

function ticks(max) {
  const rough = Math.max(1, max) / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = Math.max(1, [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough));
  const found = [];
  for (let value = 0; value < max + step; value += step) found.push(value);
  return found;
}

const clock = (at, stepS) =>
  at.toLocaleTimeString("en-GB", stepS < 60 ? {} : { hour: "2-digit", minute: "2-digit" });

const per = (stepS) =>
  stepS === 1 ? "second" : stepS < 60 ? `${stepS} seconds` : stepS === 60 ? "minute" : stepS < 3_600 ? `${stepS / 60} minutes` : stepS === 3_600 ? "hour" : `${stepS / 3_600} hours`;

export function chart(series, what) {
  const svg = s("svg", { role: "img", "aria-label": what, class: "chart" });
  const title = h("h3", null, what);
  const reading = h("div.reading", { hidden: true });
  const legend = h(
    "ul.legend",
    null,
    series.map((one) => h("li", null, h(`span.swatch.${one.name}`), one.label)),
  );
  const frame = h("div.chart-frame", null, svg, reading);
  let rows = [];
  let stepS = 1;
  let width = 600;
  let pointer = null;

  const x = (n) => PAD.left + ((width - PAD.left - PAD.right) * n) / Math.max(1, rows.length - 1);

  function draw() {
    width = Math.max(280, frame.clientWidth || 600);
    svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    svg.setAttribute("height", HEIGHT);
    const max = Math.max(1, ...rows.flatMap((row) => series.map((one) => row[one.name] ?? 0)));
    const levels = ticks(max);
    const top = levels.at(-1);
    const y = (v) => HEIGHT - PAD.bottom - ((HEIGHT - PAD.top - PAD.bottom) * v) / top;
    const parts = levels.map((value) => [
      s("line", { class: "grid", x1: PAD.left, x2: width - PAD.right, y1: y(value), y2: y(value) }),
      s("text", { class: "tick", x: PAD.left - 8, y: y(value) + 4, "text-anchor": "end" }, short(value)),
    ]);
    const every = Math.max(1, Math.ceil(rows.length / Math.max(2, Math.floor(width / 130))));
    rows.forEach((row, n) => {
      if (n % every) return;
      const anchor = n === 0 ? "start" : x(n) > width - 60 ? "end" : "middle";
      parts.push(
        s("text", { class: "tick", x: x(n), y: HEIGHT - 7, "text-anchor": anchor }, clock(row.date, stepS)),
      );
    });
    for (const one of series) {
      if (!rows.length) continue;
      const points = rows.map((row, n) => `${x(n).toFixed(1)},${y(row[one.name] ?? 0).toFixed(1)}`);
      if (one.area) {
        const floor = y(0);
        parts.push(
          s("polygon", {
            class: `area ${one.name}`,
            points: `${x(0)},${floor} ${points.join(" ")} ${x(rows.length - 1)},${floor}`,
          }),
        );
      }
      parts.push(s("polyline", { class: `line ${one.name}`, points: points.join(" ") }));
    }
    if (pointer !== null && rows[pointer]) {
      parts.push(
        s("line", { class: "cursor", x1: x(pointer), x2: x(pointer), y1: PAD.top, y2: HEIGHT - PAD.bottom }),
      );
    }
    svg.replaceChildren(...parts.flat());
    read();
  }

  function read() {
    const row = pointer === null ? null : rows[pointer];
    reading.hidden = !row;
    if (!row) return;
    reading.replaceChildren(
      h("strong", null, clock(row.date, stepS)),
      ...series.map((one) =>
        h("div", null, h(`span.swatch.${one.name}`), one.label, h("b", null, count(row[one.name] ?? 0))),
      ),
    );
    const left = x(pointer) > width / 2;
    reading.style.left = left ? "" : `${x(pointer) + 12}px`;
    reading.style.right = left ? `${width - x(pointer) + 12}px` : "";
  }

  function point(event) {
    const box = svg.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * width;
    const share = (at - PAD.left) / (width - PAD.left - PAD.right);
    pointer = Math.round(Math.min(1, Math.max(0, share)) * Math.max(0, rows.length - 1));
    draw();
  }

  svg.addEventListener("pointermove", point);
  svg.addEventListener("pointerleave", () => {
    pointer = null;
    draw();
  });
  new ResizeObserver(draw).observe(frame);

  return {
    element: h("figure.card.wide", null, h("figcaption", null, title, legend), frame),
    // While it runs, the last step is not over: it would look like a fall.
    update(timeline, step, running) {
      stepS = step;
      title.textContent = `${what} per ${per(step)}`;
      rows = filled(timeline, step);
      if (running && rows.length > 2) rows.pop();
      draw();
    },
  };
}

// Steps in which nothing happened are not in the timeline; in the chart they are zeros.
const ROWS_MAX = 400;
function filled(timeline, stepS) {
  const known = new Map(timeline.map((row) => [instant(row.at).getTime(), row]));
  if (!known.size) return [];
  const times = [...known.keys()];
  const first = Math.min(...times);
  const last = Math.max(...times);
  const rows = [];
  for (let at = first; at <= last && rows.length < ROWS_MAX; at += stepS * 1_000) {
    rows.push({ ...(known.get(at) ?? {}), date: new Date(at) });
  }
  return rows;
}
