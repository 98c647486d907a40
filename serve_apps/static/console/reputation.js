// How the sender stands: of each sending domain, source and provider the rates with their bounds,
// against the limits that are acted upon.

import { SPANS, changing, count, h, percent, share, table, words } from "./dom.js";

const TONES = { warn: "paused", act: "failed", stop: "failed" };
// The rate on a scale up to the limit at which all is stopped: a bar, and a line for its bounds.
function scale(found, measure, isFew) {
  const at = (value) => `${Math.min(100, (100 * value) / measure.stop)}%`;
  return h(
    "div.scale",
    { class: `scale ${isFew ? "few" : found.level}`, "aria-hidden": "true" },
    h("span.value", { style: { width: at(found.rate) } }),
    h("span.bounds", { style: { left: at(found.lower_bound), right: `calc(100% - ${at(found.upper_bound)})` } }),
    h("span.mark", { style: { left: at(measure.warn) } }),
    h("span.mark", { style: { left: at(measure.act) } }),
  );
}

function cell(found, measure) {
  if (!found) return h("td.mute", { title: "judged of all mail of the source together" }, "–");
  if (!found.messages) return h("td.mute", null, "no mail");
  const isFew = found.bad < measure.events_min || found.messages < measure.messages_min;
  return h(
    "td.rate",
    null,
    h("div", null, h("b", null, percent(found.bad, found.messages)), TONES[found.level] && h(`span.pill.${TONES[found.level]}`, null, found.level)),
    found.bad > 0 && scale(found, measure, isFew),
    h("div.mute", null, `${count(found.bad)} of ${count(found.messages)}`),
    h("div.mute", null, isFew && found.bad > 0 ? "too few to judge" : found.bad ? `${share(found.lower_bound)} to ${share(found.upper_bound)}` : `at most ${share(found.upper_bound)}`),
  );
}

const heading = (name, measure) => [words(name), h("div.mute", null, `${SPANS[measure.window]}: warn ${share(measure.warn)}, act ${share(measure.act)}, stop ${share(measure.stop)}`)];

function windows({ windows: rows, windows_total: total, limits, ...part }) {
  if (!rows) return h("p.empty", null, `Reputation does not answer${part.reason ? `: ${part.reason}` : " yet"}.`);
  const measures = Object.entries(limits.measures);
  return [
    table(
      "Rates by sending domain, source and provider",
      ["Provider", "Last 24 h", ...measures.map(([name, measure]) => heading(name, measure))],
      rows.map((one) => {
        const day = one.counts.day;
        const failed = Object.entries(day).reduce((sum, [name, n]) => sum + (/^(failed|bounced)_/.test(name) ? n : 0), 0);
        return [
          h("th", { scope: "row" }, one.provider, h("div.mute", null, `from ${one.source}`), h("div.mute", null, one.sending_domain ? `of ${one.sending_domain}` : "all domains")),
          h(
            "td.day",
            null,
            h("div", null, `${count(day.accepted)} accepted`),
            h("div.mute", null, `${count((day.deferred ?? 0) + (day.greylisted ?? 0))} deferred · ${count(failed)} bounced`),
            h("div.mute", null, `${count(day.opened)} opened · ${count(day.complained)} complained`),
          ),
          ...measures.map(([name, measure]) => cell(one.rates[name], measure)),
        ];
      }),
      "No mail has gone out within a week.",
    ),
    total > rows.length && h("p.mute", null, `and ${count(total - rows.length)} with less mail`),
    h("p.mute", null, `A limit is reached when even the lower bound is beyond it (confidence ${limits.confidence * 100} %, limits of ${limits.dated}).`),
  ];
}

export function reputation() {
  const element = h("div");
  const show = changing(element, windows);
  return { element, update: show };
}
