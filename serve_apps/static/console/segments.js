// Segments: their rules, and how many people are in them when somebody asks.

import * as api from "./api.js";
import { count, h, time } from "./dom.js";

function card(segment) {
  const figure = h("b.figure", null, "–");
  const meaning = h("p.meaning");
  const button = h(
    "button",
    {
      type: "button",
      onclick: async () => {
        button.disabled = true;
        try {
          const found = await api.segmentCount(segment.id);
          figure.textContent = count(found.count);
          meaning.textContent = found.explain;
        } finally {
          button.disabled = false;
        }
      },
    },
    "Count",
  );
  return h(
    "article.card",
    null,
    h("div.head", null, h("div", null, h("h3", null, segment.name), h("p.mute", null, `#${segment.id} · version ${segment.version} · ${time(segment.updated_at)}`)), h("div.buttons", null, figure, button)),
    meaning,
    h("details", null, h("summary", null, "Rule"), h("pre", null, JSON.stringify(segment.rule, null, 2))),
  );
}

export function view() {
  const list = h("div.stack");
  let known = "";
  return {
    element: h("section", null, h("div.head", null, h("h1", null, "Segments")), list),
    title: "Segments",
    everyMs: 5_000,
    async refresh() {
      const { items } = await api.segments();
      const now = JSON.stringify(items.map((item) => [item.id, item.version]));
      if (now === known) return; // counts that somebody asked for stay
      known = now;
      list.replaceChildren(...(items.length ? items.map(card) : [h("p.card.empty", null, "No segment yet.")]));
    },
  };
}
