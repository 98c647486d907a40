// Delivery, live: what narrows which lane and until when, warm-ups, and how the sender stands.

import * as api from "./api.js";
import { actions, covers } from "./actions.js";
import { changing, count, decimal, duration, h, table, time } from "./dom.js";
import { domains } from "./domains.js";
import { reputation } from "./reputation.js";
import { suppressions } from "./suppressions.js";

const BOUNDLESS = 1_000_000; // connections that nothing limits

const rate = (perSecond) =>
  perSecond === 0 ? "none" : perSecond >= 1 ? `${decimal(perSecond)}/s` : perSecond * 60 >= 1 ? `${decimal(perSecond * 60)}/min` : `${decimal(perSecond * 3_600)}/h`;

// A part of the system that does not answer says so in the place of what it would show.
export const away = (name, part) =>
  h("p.card.empty", null, `${name} does not answer${part?.reason ? `: ${part.reason}` : " yet"}.`);

// The quota of a lane: its provider's own, or the one that all others share.
function quota(lane, quotas) {
  const mine = quotas.filter((one) => one.source === lane.source);
  const found = mine.find((one) => one.group === lane.provider) ?? mine.find((one) => one.group === "others");
  return found && !found.is_warm ? found : null;
}

function why(lane, active, quotas) {
  const cold = quota(lane, quotas);
  if (!lane.causes.length && !lane.without.length && !cold) return h("span.mute", null, "–");
  const until = (cause) => active.filter((one) => one.cause === cause && covers(one.scope, lane)).map((one) => one.until).sort().at(-1);
  return [
    lane.causes.map((cause) => h("div", null, cause, until(cause) && h("span.mute", null, ` until ${time(until(cause))}`))),
    cold && h("div", null, `warm-up, day ${cold.day} of ${cold.days}`, cold.wait_s > 0 && h("span.mute", null, ` quota used up, more in ${duration(cold.wait_s)}`)),
    lane.without.length ? h("div.mute", null, `without campaigns ${lane.without.map((id) => `#${id}`).join(", ")}`) : null,
  ];
}

function lanes({ throttle, active }) {
  if (!throttle.lanes) return away("The Throttle", throttle);
  const rows = throttle.lanes.map((lane) => [
    h("th", { scope: "row" }, lane.provider, lane.site !== lane.provider ? h("div.mute", null, lane.site) : null),
    h("td", null, lane.source, lane.pool !== lane.source ? h("div.mute", null, `pool ${lane.pool}`) : null),
    h("td.number", null, lane.rate_per_s === 0 ? h("span.pill.failed", null, "held") : rate(lane.rate_per_s)),
    h("td.number", null, count(Math.floor(lane.available))),
    h("td.number", null, `${count(lane.connections)}${lane.connections_max < BOUNDLESS ? ` of ${count(lane.connections_max)}` : ""}`),
    h("td.cause", null, why(lane, active, throttle.warmup ?? [])),
  ]);
  const more = throttle.lanes_total - throttle.lanes.length;
  return [
    throttle.law?.trouble && h("p.bad", { role: "alert" }, throttle.law.trouble),
    table("Lanes", ["Provider", "Source", "Rate", "Permits now", "Connections", "Narrowed by"], rows, "No lane has been used since the Throttle began."),
    more > 0 && h("p.mute", null, `and ${count(more)} more lanes that nothing narrows`),
  ];
}

function used(part, whole) {
  const share = Math.min(100, whole ? (100 * part) / whole : 100);
  return h("td", null, h("div.gauge", { "aria-hidden": "true" }, h("span", { style: { width: `${share}%` } })), `${count(part)} of ${count(whole)}`);
}

function warmup(quotas) {
  const rows = quotas.map((one) =>
    one.is_warm
      ? [h("th", { scope: "row" }, one.source), one.group, h("td", { colspan: 4 }, h("span.pill.finished", null, "warm"))]
      : [
          h("th", { scope: "row" }, one.source),
          one.group,
          h(
            "td",
            null,
            `day ${one.day} of ${one.days}`,
            one.is_held && h("div.mute", null, "today does not count: an action slows it"),
            one.wait_s > 0 && h("div.mute", null, `quota used up; more in ${duration(one.wait_s)}`),
          ),
          used(one.used_day, one.quota_day),
          used(one.used_hour, one.quota_hour),
          time(`${one.finished_about}T12:00:00Z`).replace(/,[^,]*$/, ""),
        ],
  );
  return table("Warm-up", ["Source", "Provider", "Progress", "Today", "This hour", "Done about"], rows);
}

function summary({ throttle, actions: found, reputation: standing }) {
  const parts = [];
  if (found.ready) parts.push(found.active_total ? `${count(found.active_total)} ${found.active_total === 1 ? "action holds" : "actions hold"}` : "no action holds");
  if (throttle.sources) parts.push(`sources: ${Object.entries(throttle.sources).map(([name, one]) => `${name} (${rate(one.rate_per_s)})`).join(", ") || "not used yet"}`);
  if (standing.ready && !standing.rebuilt) parts.push("windows are being rebuilt from the shards");
  return parts.join(" · ");
}

function part(title, id, ...inner) {
  return h("section.card.wide", null, h("h2", { id, tabindex: -1 }, title), inner);
}

export function view(shell) {
  const note = h("p.mute");
  const held = actions(shell);
  const laneBox = h("div");
  const warmBox = h("div");
  const warm = part("Warm-up", "warm-up", h("p.mute", null, "What a new address may send, by days of sending. What goes beyond it goes by the pool's warm sources."), warmBox);
  const standing = reputation();
  const named = domains(shell);
  const showLanes = changing(laneBox, lanes);
  const showWarmup = changing(warmBox, warmup);
  return {
    element: h(
      "section",
      null,
      h("div.head", null, h("h1", null, "Delivery"), note),
      part("What is held", "held", held.element),
      part("Lanes", "lanes", laneBox),
      warm,
      part("Reputation", "reputation", standing.element),
      part("Sending domains", "domains", named.element),
      shell.may("subscribers:read") && part("Suppressions", "suppressions", suppressions(shell)),
    ),
    title: "Delivery",
    everyMs: 3_000,
    async refresh() {
      const found = await api.delivery();
      const active = found.actions.active ?? [];
      note.textContent = summary(found);
      held.update(found);
      showLanes({ throttle: found.throttle, active });
      warm.hidden = !found.throttle.warmup?.length;
      showWarmup(found.throttle.warmup ?? []);
      standing.update(found.reputation);
      named.update(found.domains);
    },
  };
}
