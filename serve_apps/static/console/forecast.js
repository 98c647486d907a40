// A rehearsal's forecast of a campaign, and beside it what has come of it.

import { count, duration, h, percent, table, time } from "./dom.js";

const FIGURES = { accepted: "Accepted", failed: "Failed", expired: "Expired", deferred: "Deferred at least once", bounced: "Bounced later", complained: "Complaints", held: "Held", done_s: "Done after" };

const shown = (name, value) => (value === null || value === undefined ? (name.endsWith("_s") ? "never" : "–") : name.endsWith("_s") ? duration(value) : count(Math.round(value)));

function interval(name, [low, median, high]) {
  if (low === high) return shown(name, median);
  return [shown(name, median), h("div.mute", null, `${shown(name, low)} to ${shown(name, high)}`)];
}

const isBeyond = ([low, , high], value) => value < (low ?? 0) * 0.95 - 2 || (high !== null && value > high * 1.05 + 5);

function came(name, expected, { accounting, events, took }) {
  const value = name === "done_s" ? took : (accounting[name] ?? events[name]?.unique);
  if (value === null || value === undefined) return h("span.mute", null, "–");
  const missed = took !== null && isBeyond(expected, value);
  return [h(`span${missed ? ".missed" : ""}`, null, shown(name, value)), missed && h("div.mute", null, "beyond the forecast")];
}

export function forecast({ forecast: made, ...real }) {
  if (!made?.total) return null;
  const names = Object.keys(FIGURES).filter((name) => made.total[name]);
  return h(
    "div.card.wide",
    null,
    h("h3", null, "Forecast and outcome"),
    h("p.mute", null, `rehearsed ${time(made.made_at)}, ${count(made.runs)} runs of ${count(made.messages)} messages; eight of ten runs lay between the two figures`, made.paused_share > 0 && `; paused in ${percent(made.paused_share, 1)} of them`),
    table(
      "Forecast in all, and what came",
      ["", "Forecast", "Came"],
      names.map((name) => [h("th", { scope: "row" }, FIGURES[name]), h("td", null, interval(name, made.total[name])), h("td", null, came(name, made.total[name], real))]),
    ),
    made.providers?.length > 0 &&
      h(
        "details",
        { "data-key": "forecast by provider" },
        h("summary", { "data-key": "summary of the forecast" }, "Forecast by provider"),
        table(
          "Forecast by provider",
          ["Provider", "Messages", ...names.map((name) => FIGURES[name])],
          made.providers.map((one) => [h("th", { scope: "row" }, one.provider), count(one.messages), ...names.map((name) => h("td", null, one[name] ? interval(name, one[name]) : "–"))]),
        ),
      ),
  );
}
