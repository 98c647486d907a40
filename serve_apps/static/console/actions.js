// Actions: what is done to protect the sender, each with its figures and its undo, and a form to
// hold something by hand.

import * as api from "./api.js";
import { SPANS, changing, count, decimal, h, percent, share, table, time, words } from "./dom.js";

const KINDS = { suspend: "Suspended", limit: "Slowed", bounce: "Failed", pause: "Paused" };
const SCOPES = { source: "from", provider: "at", site: "at the site", sending_domain: "of", campaign_id: "of campaign" };
const FIGURES = ["of", "reply", "steps", "measure", "bad", "messages", "rate", "lower_bound", "upper_bound", "limit", "window"];

// Whether an action is about the lane; what it says of campaigns narrows no lane.
export const covers = (scope, lane) =>
  ["source", "provider", "site"].every((name) => !scope[name] || scope[name] === lane[name]);

export function where(scope) {
  const named = Object.keys(SCOPES).filter((name) => scope[name]);
  return named.length ? named.map((name) => `${SCOPES[name]} ${scope[name]}`).join(", ") : "everything";
}

function what(action) {
  const { rate_per_s, connections_max, messages_per_connection } = action.limits;
  const limits = [
    rate_per_s !== null && `${decimal(rate_per_s)} messages/s`,
    connections_max !== null && `${count(connections_max)} connections`,
    messages_per_connection !== null && `${count(messages_per_connection)} messages per connection`,
  ].filter(Boolean);
  return [
    h("strong", null, KINDS[action.kind] ?? action.kind, " ", where(action.scope)),
    limits.length ? h("div", null, `at most ${limits.join(", ")}`) : null,
    action.campaigns.length && !action.scope.campaign_id
      ? h("div.mute", null, `campaigns ${action.campaigns.map((id) => `#${id}`).join(", ")}`)
      : null,
  ];
}

const cause = (action) => [
  action.cause,
  action.figures.reply ? h("div.said", null, h("span.unseen", null, "Reply: "), action.figures.reply) : null,
  figures(action),
];

function figures(action) {
  const of = action.figures;
  const said = [];
  if (of.measure) {
    said.push(`${count(of.bad)} ${of.measure} of ${count(of.messages)} messages (${percent(of.bad, of.messages)}, at least ${share(of.lower_bound)}) in the last ${SPANS[of.window] ?? of.window}; the limit is ${share(of.limit)}`);
  }
  for (const [name, value] of Object.entries(of)) {
    if (FIGURES.includes(name) || value === null || value === "") continue;
    said.push(`${words(name)}: ${typeof value === "object" ? JSON.stringify(value) : value}`);
  }
  const steps = of.steps ?? [];
  if (!said.length && !steps.length) return null;
  return h(
    "details",
    { "data-key": `figures ${action.id}` },
    h("summary", { "data-key": `summary ${action.id}` }, "Figures"),
    h("ul.plain", null, said.map((text) => h("li", null, text))),
    steps.length > 0 && h("ol.plain", null, steps.map((step) => h("li", null, `${time(step.at)}: ${decimal(step.rate_per_s)}/s, ${step.why}`))),
  );
}

export function actions(shell) {
  const mayChange = shell.may("delivery:write");
  const held = h("div");
  const past = h("div");
  const form = mayChange ? byHand(shell) : null;

  async function undo(action) {
    const asked = `Undo action ${action.id}: ${(KINDS[action.kind] ?? action.kind).toLowerCase()} ${where(action.scope)}?\n\nWhat led to it is not held against the sender again; new evidence is.`;
    if (!confirm(asked)) return;
    await shell.attempt(async () => {
      await api.undo(action.id);
      await shell.refresh();
      document.getElementById("held")?.focus(); // the button is gone
    }, `Action ${action.id} is undone.`);
  }

  const row = (action) => [
    h("td.number", null, `#${action.id}`),
    h("td", null, what(action)),
    h("td.cause", null, cause(action)),
    h("td.when", null, time(action.began_at)),
    h("td.when", null, time(action.until)),
    h(
      "td",
      null,
      mayChange && h("button", { type: "button", "aria-label": `Undo action ${action.id}`, "data-key": `undo ${action.id}`, onclick: () => undo(action) }, "Undo"),
    ),
  ];
  const ended = (action) => [
    h("td.number", null, `#${action.id}`),
    h("td", null, what(action)),
    h("td.cause", null, cause(action)),
    h("td.when", null, time(action.began_at)),
    h("td.when", null, time(action.undone_at ?? action.until)),
    action.undone_at ? `undone by ${action.undone_by}` : "its time was over",
  ];
  const showHeld = changing(held, (found) =>
    found.active
      ? [
          table("Actions that hold", ["No.", "What", "Cause", "Began", "Until", h("span.unseen", null, "Undo")], found.active.map(row), "Nothing is held: all lanes have their usual limits."),
          found.active_total > found.active.length && h("p.mute", null, `and ${count(found.active_total - found.active.length)} more`),
        ]
      : h("p.empty", null, `Reputation does not answer${found.reason ? `: ${found.reason}` : " yet"}.`),
  );
  const showPast = changing(past, (over) => table("Actions that are over", ["No.", "What", "Cause", "Began", "Ended", "How"], over.map(ended), "None."));
  const summary = h("summary", null, "Those that are over");
  const details = h("details", null, summary, past);
  return {
    element: h("div", null, held, details, form?.element),
    update(found) {
      showHeld(found.actions);
      details.hidden = !found.actions.over?.length;
      summary.textContent = `Those that are over (${count(found.actions.over_total)})`;
      showPast(found.actions.over ?? []);
      form?.update(found);
    },
  };
}

function byHand(shell) {
  const field = (label, input, hint) => h("label.field", null, h("span", null, label), input, hint && h("span.mute", null, hint));
  const source = h("select", { name: "source" });
  const provider = h("input", { name: "provider", list: "known-providers", autocomplete: "off", maxlength: 255, placeholder: "all" });
  const domain = h("input", { name: "domain", list: "known-domains", autocomplete: "off", maxlength: 255, placeholder: "all" });
  const rate = h("input", { name: "rate", type: "number", min: 0, step: "any", placeholder: "nothing goes" });
  const hours = h("input", { name: "hours", type: "number", min: 0.1, max: 720, step: "any", value: 1, required: true });
  const why = h("input", { name: "cause", required: true, maxlength: 500, autocomplete: "off" });
  const providers = h("datalist", { id: "known-providers" });
  const domainList = h("datalist", { id: "known-domains" });
  const showSources = changing(source, (names) => [h("option", { value: "" }, "all sources"), ...names.map((name) => h("option", { value: name }, name))]);
  const showProviders = changing(providers, (names) => names.map((name) => h("option", { value: name })));
  const showDomains = changing(domainList, (names) => names.map((name) => h("option", { value: name })));

  async function submit(event) {
    event.preventDefault();
    const scope = { source: source.value, provider: provider.value.trim(), sending_domain: domain.value.trim() };
    const isAll = Object.values(scope).every((value) => !value);
    const slowed = rate.value !== "";
    const asked = `${slowed ? `Slow to ${rate.value} messages/s` : "Suspend"}: ${isAll ? "ALL mail, from every source" : where(scope)}, for ${hours.value} h?`;
    if (!confirm(asked)) return;
    await shell.attempt(async () => {
      await api.act({
        kind: slowed ? "limit" : "suspend",
        scope,
        cause: why.value.trim(),
        duration_s: Number(hours.value) * 3_600,
        limits: slowed ? { rate_per_s: Number(rate.value) } : {},
      });
      form.reset();
      details.open = false;
      await shell.refresh();
      document.getElementById("held")?.focus();
    }, "It holds now.");
  }

  const form = h(
    "form.by-hand",
    { onsubmit: submit },
    field("Source", source),
    field("Provider", provider),
    field("Sending domain", domain),
    field("Messages per second", rate, "empty: nothing goes"),
    field("Hours", hours),
    field("Why, for who reads it later", why),
    providers,
    domainList,
    h("button.primary", { type: "submit" }, "Hold"),
  );
  const details = h("details.hold", null, h("summary", null, "Hold something by hand"), form);
  return {
    element: details,
    update({ throttle, reputation, domains }) {
      const lanes = throttle.lanes ?? [];
      const windows = reputation.windows ?? [];
      const unique = (names) => [...new Set(names)].filter(Boolean).sort();
      showSources(unique([...Object.keys(throttle.sources ?? {}), ...lanes.map((one) => one.source), ...windows.map((one) => one.source)]));
      showProviders(unique([...lanes, ...windows].map((one) => one.provider)));
      showDomains(unique([...windows.map((one) => one.sending_domain), ...(domains.items ?? []).map((one) => one.id)]));
    },
  };
}
