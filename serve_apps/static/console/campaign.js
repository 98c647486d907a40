// One campaign, live: the accounting as an equation, rates, results, failures, recipients.

import * as api from "./api.js";
import { bar, pill } from "./campaigns.js";
import { chart } from "./chart.js";
import { forecast } from "./forecast.js";
import { changing, count, decimal, duration, h, instant, percent, time, words } from "./dom.js";
import { STATES, done } from "./states.js";

const RATE_WINDOW_MS = 10_000;
const MOVES = { running: ["pause", "cancel"], paused: ["resume", "cancel"], scheduled: ["cancel"], draft: ["cancel"] };

function equation(accounting) {
  const sum = STATES.reduce((total, one) => total + accounting[one.name], 0);
  const holds = sum === accounting.planned_total && accounting.adds_up;
  const terms = STATES.flatMap((one, n) => [
    n > 0 && h("span.op", { "aria-hidden": "true" }, "+"),
    h(
      `div.term.${one.name}`,
      { title: one.hint, class: `term ${one.name}${accounting[one.name] ? "" : " zero"}` },
      h("b", null, count(accounting[one.name])),
      h("span", null, one.label),
    ),
  ]);
  return h(
    "div.equation",
    { role: "group", "aria-label": "Accounting" },
    h("div.term.total", null, h("b", null, count(accounting.planned_total)), h("span", null, "Planned")),
    h("span.op", null, "="),
    terms,
    h(`span.verdict.${holds ? "good" : "bad"}`, null, holds ? "✓ adds up" : "✗ does not add up"),
  );
}

// A campaign that nobody paused by hand says what did, and where that can be undone.
function held(campaign) {
  const last = campaign.history.at(-1);
  if (campaign.state !== "paused" || !last?.cause) return null;
  return h(
    "div.card.wide.held",
    { role: "note" },
    h("p", null, h("strong", null, "Not paused by a person: "), last.cause.replace(/^paused: /, "")),
    h("p.mute", null, `since ${time(last.at)}${campaign.paused_by ? `, action ${campaign.paused_by}` : ""}. To resume it overrules that action. `, h("a", { href: "#/delivery" }, "What is held")),
  );
}

function tile(label, value, note) {
  return h("div.card.tile", null, h("span.mute", null, label), h("b", null, value), h("span.mute", null, note ?? " "));
}

function results(events, accepted) {
  const of = (name) => events[name] ?? { unique: 0, unique_all: 0, total: 0, by_machine: 0 };
  // Both figures: by people, and with what machines did.
  const machine = (name) => (of(name).by_machine ? ` · ${count(of(name).unique_all)} with machines` : "");
  const one = (label, name) =>
    tile(label, count(of(name).unique), `${percent(of(name).unique, accepted)} of accepted${machine(name)}`);
  return [one("Opened", "opened"), one("Clicked", "clicked"), one("Unsubscribed", "unsubscribed"), one("Bounced later", "bounced")];
}

function failures(rows) {
  if (!rows.length) return h("p.empty", null, "Nothing has failed.");
  const most = rows[0].messages;
  return h(
    "table",
    null,
    h("thead", null, h("tr", null, ["Messages", "State", "Reason", "Reply"].map((t) => h("th", { scope: "col" }, t)))),
    h(
      "tbody",
      null,
      rows.slice(0, 20).map((row) =>
        h(
          "tr",
          null,
          h("td.number", null, count(row.messages), h("div.share", { style: { width: `${(100 * row.messages) / most}%` } })),
          h("td", null, pill(row.state === "planned" ? "deferred" : row.state)),
          h("td", null, words(row.reason) || "–"),
          h("td.reply", null, [row.reply_code, row.example].filter(Boolean).join(" ") || "–"),
        ),
      ),
    ),
  );
}

function rate(samples) {
  const last = samples.at(-1);
  const first = samples.find((one) => last.at - one.at <= RATE_WINDOW_MS);
  const seconds = (last.at - first.at) / 1_000;
  return seconds > 0.5 ? (last.done - first.done) / seconds : null;
}

// What people did, and how often machines came on top.
function both(people, all) {
  return [count(people), all > people ? h("div.mute", null, `${count(all)} with machines`) : null];
}

function recipients(id) {
  const body = h("tbody");
  const select = h(
    "select",
    { "aria-label": "State", onchange: () => load(null) },
    h("option", { value: "" }, "all states"),
    ["planned", "leased", "orphaned", ...STATES.map((one) => one.name).filter((n) => n !== "pending")].map((name) =>
      h("option", { value: name }, name),
    ),
  );
  const more = h("button", { type: "button", hidden: true }, "Next page");
  const first = h("button", { type: "button", onclick: () => load(null) }, "Refresh");
  async function load(cursor) {
    const page = await api.recipients(id, select.value, cursor);
    body.replaceChildren(
      ...page.items.map((row) =>
        h(
          "tr",
          null,
          h("td", null, row.email ?? h("span.mute", null, "no address"), h("div.mute", null, row.subscriber_id)),
          h("td", null, pill(row.state), row.reason ? h("div.mute", null, words(row.reason)) : null),
          h("td.number", null, count(row.attempts)),
          h("td.number", null, both(row.opens, row.opens_all)),
          h("td.number", null, both(row.clicks, row.clicks_all)),
          h("td.reply", null, [row.reply_code, row.reply].filter(Boolean).join(" ") || "–"),
          h("td", null, time(row.changed_at)),
        ),
      ),
    );
    if (!page.items.length) body.replaceChildren(h("tr", null, h("td.empty", { colspan: 7 }, "Nobody.")));
    more.hidden = !page.next;
    more.onclick = () => load(page.next);
  }
  const details = h(
    "details.card.wide",
    { ontoggle: () => details.open && load(null) },
    h("summary", null, h("h3", null, "Recipients")),
    h("div.tools", null, select, first, more),
    h(
      "div.scroll",
      null,
      h("table", null, h("thead", null, h("tr", null, ["Recipient", "State", "Attempts", "Opens", "Clicks", "Reply", "Changed"].map((t) => h("th", { scope: "col" }, t)))), body),
    ),
  );
  return details;
}

export function view(id, shell) {
  const title = h("h1", null, `Campaign ${id}`);
  const subtitle = h("p.mute");
  const state = h("span");
  const buttons = h("div.buttons");
  const progress = h("div");
  const sums = h("div");
  const figures = h("div.tiles");
  const outcome = h("div.tiles");
  const sent = chart(
    [
      { name: "accepted", label: "Accepted", area: true },
      { name: "failed", label: "Failed" },
    ],
    "Messages",
  );
  const reactions = chart(
    [
      { name: "opened", label: "Opened", area: true },
      { name: "clicked", label: "Clicked" },
      { name: "unsubscribed", label: "Unsubscribed" },
    ],
    "Reactions",
  );
  const failed = h("div");
  const cause = h("div");
  const foreseen = h("div");
  const showCause = changing(cause, held);
  const showForecast = changing(foreseen, forecast);
  const element = h(
    "section",
    null,
    h("a.back", { href: "#/campaigns" }, "← Campaigns"),
    h("div.head", null, h("div", null, h("div.title", null, title, state), subtitle), buttons),
    cause,
    h("div.card.wide.accounting", null, progress, sums),
    figures,
    h("div.charts", null, sent.element, reactions.element),
    outcome,
    foreseen,
    h("div.card.wide", null, h("h3", null, "Failures by reason"), h("div.scroll", null, failed)),
    recipients(id),
  );
  const samples = [];
  let shown = "";
  let asked = "";
  let foretold = {};

  async function act(name) {
    if (name === "cancel" && !confirm("Cancel this campaign? What was not sent yet will never be.")) return;
    await shell.attempt(() => api.move(id, name));
    await shell.refresh();
  }

  function showButtons(now) {
    if (now === shown) return; // a button that has the focus keeps it
    shown = now;
    buttons.replaceChildren(
      ...(shell.may("campaigns:write") ? (MOVES[now] ?? []) : []).map((name) =>
        h(`button.${name}`, { type: "button", onclick: () => act(name) }, name[0].toUpperCase() + name.slice(1)),
      ),
    );
  }

  return {
    element,
    title: `Campaign ${id}`,
    async refresh() {
      const campaign = await api.campaign(id);
      const report = campaign.report;
      const accounting = report.accounting;
      title.textContent = campaign.name;
      document.title = `${campaign.name} · Manta`;
      state.replaceChildren(pill(campaign.state));
      showCause({ state: campaign.state, paused_by: campaign.paused_by, history: campaign.history.slice(-1) });
      showButtons(campaign.state);
      const started = campaign.history.find((one) => one.state === "running");
      const ended = ["finished", "cancelled"].includes(campaign.state);
      subtitle.textContent = [
        `#${campaign.id}`,
        campaign.topic,
        started ? `launched ${time(started.at)}` : campaign.launch_at ? `due ${time(campaign.launch_at)}` : "not launched",
        ended && `${campaign.state} ${time(campaign.changed_at)}`,
      ].filter(Boolean).join(" · ");

      samples.push({ at: performance.now(), done: done(accounting) });
      if (samples.length > 60) samples.shift();
      const perSecond = campaign.state === "running" ? rate(samples) : null;
      const took = started ? ((ended ? instant(campaign.changed_at) : new Date()) - instant(started.at)) / 1_000 : null;
      const planning = report.progress;
      const settled = percent(done(accounting), accounting.planned_total);
      progress.replaceChildren(bar(accounting));
      sums.replaceChildren(equation(accounting));
      figures.replaceChildren(
        tile("Settled", settled, `${count(done(accounting))} of ${count(accounting.planned_total)}`),
        tile("Rate now", perSecond === null ? "–" : `${decimal(perSecond)}/s`, campaign.state === "running" ? "over the last 10 s" : campaign.state),
        ended
          ? tile("Took", took === null ? "–" : duration(took), took ? `${decimal(accounting.accepted / Math.max(took, 1))} accepted/s` : "")
          : tile("Left", perSecond ? duration(accounting.pending / perSecond) : "–", `${count(accounting.pending)} pending`),
        planning
          ? tile("Planning", `${planning.shards_planned} of ${planning.shards}`, planning.shards_planned === planning.shards ? "all shards planned" : "shards planned so far")
          : null,
      );
      sent.update(report.timeline, campaign.step_s, !ended);
      reactions.update(report.timeline, campaign.step_s, !ended);
      outcome.replaceChildren(...results(report.events, accounting.accepted));
      const late = (name) => report.events[name]?.unique ?? 0;
      const soFar = ended ? null : { ...accounting, bounced: late("bounced"), complained: late("complained") };
      if (asked !== campaign.state) {
        asked = campaign.state; // it is made before the start, and compared after the end
        api.forecast(id).then((found) => (foretold = found)).catch(() => (asked = ""));
      }
      showForecast({ ...foretold, soFar });
      failed.replaceChildren(failures(report.failures));
    },
  };
}
