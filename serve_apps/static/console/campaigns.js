// The list of campaigns, each with its state and how far it is.

import * as api from "./api.js";
import { count, h, percent, time } from "./dom.js";
import { STATES, done } from "./states.js";

export function bar(accounting) {
  const total = accounting?.planned_total ?? 0;
  const label = total
    ? STATES.map((one) => `${one.label} ${percent(accounting[one.name], total)}`).join(", ")
    : "nothing planned yet";
  return h(
    "div.bar",
    { role: "img", "aria-label": label },
    total > 0 &&
      STATES.map((one) =>
        accounting[one.name]
          ? h(`span.${one.name}`, { style: { flexGrow: String(accounting[one.name]) }, title: `${one.label}: ${count(accounting[one.name])}` })
          : null,
      ),
  );
}

export const pill = (state) => h(`span.pill.${state}`, null, state);

function row(item) {
  const accounting = item.accounting;
  return h(
    "a.campaign-row",
    { href: `#/campaigns/${item.id}` },
    h("div.campaign-name", null, h("strong", null, item.name), h("span.mute", null, `#${item.id} · ${item.topic} · ${time(item.created_at)}`)),
    pill(item.state),
    h("div.campaign-progress", null, bar(accounting)),
    h(
      "div.figures",
      null,
      accounting
        ? [h("b", null, count(done(accounting))), ` of ${count(accounting.planned_total)}`]
        : h("span.mute", null, "not launched"),
    ),
  );
}

export function view() {
  const list = h("div.card.rows");
  const note = h("p.mute");
  const element = h("section", null, h("div.head", null, h("h1", null, "Campaigns"), note), list);
  return {
    element,
    title: "Campaigns",
    async refresh() {
      const { items, total } = await api.campaigns();
      const running = items.filter((item) => item.state === "running").length;
      note.textContent = running ? `${running} running` : "";
      if (!items.length) {
        list.replaceChildren(
          h("p.empty", null, "No campaign yet. Create one with ", h("code", null, "manta campaign create"), " or by the ", h("a", { href: "/v1/docs" }, "API"), "."),
        );
        return;
      }
      list.replaceChildren(
        ...items.map(row),
        ...(total > items.length ? [h("p.empty", null, `and ${total - items.length} older ones`)] : []),
      );
    },
  };
}
