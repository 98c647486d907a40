// The parts of the system: who answers, how fast they commit, and what they hold.

import * as api from "./api.js";
import { bytes, count, decimal, h, words } from "./dom.js";

const ms = (seconds) => (seconds === undefined ? "–" : `${decimal(seconds * 1_000)} ms`);
const light = (ready) => h(`span.light.${ready ? "good" : "bad"}`, { title: ready ? "answers" : "does not answer" });

function fact(label, value) {
  return [h("dt", null, label), h("dd", null, value)];
}

function shard(one) {
  const rows = one.rows ?? {};
  return h(
    "article.card",
    null,
    h("h3", null, light(one.ready), one.name),
    one.ready
      ? h(
          "dl.facts",
          null,
          fact("Epoch", count(one.epoch)),
          fact("Entry", count(one.sequence)),
          fact("Commit", `${ms(one.commit_p50_s)} · p99 ${ms(one.commit_p99_s)}`),
          fact("Waiting", count(one.mailbox_commands)),
          fact("People", count(rows.profiles)),
          fact("Events", count(rows.events)),
          fact("Messages", count(rows.ledger)),
          fact("Memory", one.memory_bytes ? bytes(one.memory_bytes) : "–"),
        )
      : h("p.mute", null, one.reason ?? "no answer"),
  );
}

const HIDDEN = new Set(["name", "ready", "reason"]);
function shown(value) {
  if (typeof value === "number") return Number.isInteger(value) ? count(value) : decimal(value);
  if (value !== null && typeof value === "object") {
    const text = JSON.stringify(value);
    return h("code", null, text.length > 160 ? `${text.slice(0, 160)}…` : text);
  }
  return String(value ?? "–");
}

function other(one) {
  const facts = Object.entries(one).filter(([name]) => !HIDDEN.has(name)).slice(0, 12);
  return h(
    "article.card",
    null,
    h("h3", null, light(one.ready), one.name),
    one.ready ? h("dl.facts", null, facts.map(([name, value]) => fact(words(name), shown(value)))) : h("p.mute", null, one.reason),
  );
}

export function view() {
  const shards = h("div.grid");
  const others = h("div.grid");
  const note = h("p.mute");
  return {
    element: h("section", null, h("div.head", null, h("h1", null, "System"), note), h("h2", null, "Shards"), shards, h("h2", null, "Roles"), others),
    title: "System",
    everyMs: 2_000,
    async refresh() {
      const status = await api.status();
      const all = [...status.shards, ...status.others];
      const well = all.filter((one) => one.ready).length;
      note.textContent = `workspace ${status.workspace} · ${well} of ${all.length} parts answer`;
      shards.replaceChildren(...status.shards.map(shard));
      others.replaceChildren(...status.others.map(other));
    },
  };
}
