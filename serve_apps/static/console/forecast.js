// A rehearsal's forecast of a campaign, and beside it what has come of it so far, or in the end.

import { count, duration, h, percent, table, time } from "./dom.js";

const FIGURES = { accepted: "Accepted", failed: "Failed", expired: "Expired", deferred: "Deferred at least once", bounced: "Bounced later", complained: "Complaints", held: "Held", done_s: "Done after" };

const isTime = (name) => name.endsWith("_s");
const shown = (name, value) => (value === null || value === undefined ? (isTime(name) ? "never" : "–") : isTime(name) ? duration(value) : count(Math.round(value)));

function interval(name, [low, median, high]) {
  if (low === high) return shown(name, median);
  return [shown(name, median), h("div.mute", null, `${shown(name, low)} to ${shown(name, high)}`)];
}

// What came in the end, and whether it lay within; before the end what has come until now.
function came(name, compared, soFar) {
  const figure = compared?.figures[name];
  if (figure) return [h(`span${figure.is_met ? "" : ".missed"}`, null, shown(name, figure.came)), !figure.is_met && h("div.mute", null, "not as foreseen")];
  return soFar?.[name] === undefined ? h("span.mute", null, "–") : shown(name, soFar[name]);
}

export function forecast({ forecast: made, comparison, soFar }) {
  if (!made?.total) return null;
  const names = Object.keys(FIGURES).filter((name) => made.total[name]);
  const compared = new Map((comparison?.providers ?? []).map((row) => [row.provider, row]));
  const rows = made.providers.flatMap((one) => {
    const real = compared.get(one.provider);
    const foreseen = [h("th", { scope: "row" }, one.provider), "foreseen", count(one.messages), ...names.map((name) => h("td", null, one[name] ? interval(name, one[name]) : "–"))];
    return real ? [foreseen, ["", "came", shown("messages", real.figures.messages?.came), ...names.map((name) => h("td", null, came(name, real)))]] : [foreseen];
  });
  return h(
    "div.card.wide",
    null,
    h("h3", null, "Forecast and outcome"),
    h("p.mute", null, `rehearsed ${time(made.made_at)}, ${count(made.runs)} runs of ${count(made.messages)} messages; eight of ten runs lay between the two figures`, made.paused_share > 0 && `; paused in ${percent(made.paused_share, 1)} of them`, comparison && `; ${percent(comparison.met_share, 1)} of all figures came as foreseen`),
    table(
      "Forecast in all, and what came",
      ["", "Forecast", comparison ? "Came" : "Until now"],
      names.map((name) => [h("th", { scope: "row" }, FIGURES[name]), h("td", null, interval(name, made.total[name])), h("td", null, came(name, comparison?.total, soFar))]),
    ),
    rows.length > 0 &&
      h(
        "details",
        { "data-key": "forecast by provider" },
        h("summary", { "data-key": "summary of the forecast" }, "By provider"),
        table("Forecast by provider", ["Provider", "", "Messages", ...names.map((name) => FIGURES[name])], rows),
      ),
  );
}
