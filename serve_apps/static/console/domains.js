// Sending domains: whether receivers can tell that our mail is theirs, and what to publish.

import * as api from "./api.js";
import { changing, h, table, time } from "./dom.js";

const ORDER = ["wrong", "unknown", "warning", "ok"];
const TONES = { ok: "finished", warning: "paused", unknown: "paused", wrong: "failed" };

function state(domain) {
  const check = domain.check;
  if (!check) return h("span.pill.paused", null, "never checked");
  return h(`span.pill.${check.passing ? "finished" : "failed"}`, null, check.passing ? "passing" : "failing");
}

function findings(domain) {
  const found = domain.check?.findings ?? [];
  const sorted = [...found].sort((a, b) => ORDER.indexOf(a.verdict) - ORDER.indexOf(b.verdict));
  return table(
    `What the DNS has for ${domain.id}`,
    ["Subject", "Verdict", "Found", "Would be right"],
    sorted.map((one) => [
      h("th", { scope: "row" }, one.subject),
      h("td", null, h(`span.pill.${TONES[one.verdict] ?? ""}`, null, one.verdict)),
      h("td.cause", null, one.says),
      h("td.reply", null, one.expected || "–"),
    ]),
    "Nobody has looked yet.",
  );
}

function records(domain, listed) {
  const own = domain.keys.map((key, n) => ({
    name: `${key.selector}._domainkey.${domain.id}`,
    type: "TXT",
    value: key.record,
    why: n ? "DKIM: the key that signs next" : "DKIM: the key that signs",
  }));
  const all = listed ?? own;
  return [
    h("h4", null, "Publish these records"),
    all.length
      ? h(
          "dl.records",
          null,
          all.map((one) => [h("dt", null, h("code", null, `${one.name}.  ${one.type}`), h("span.mute", null, ` ${one.why}`)), h("dd", null, h("pre", { tabindex: 0, "aria-label": `Value of ${one.name}` }, one.value))]),
        )
      : h("p.mute", null, "None: the relay signs."),
    !listed && h("p.mute", null, "A check lists SPF, DMARC and the return path as well."),
  ];
}

export function domains(shell) {
  const element = h("div.stack");
  const listed = new Map(); // domain: the records that its check here has told

  async function check(domain, button, details) {
    button.disabled = true;
    details.open = true;
    await shell.attempt(async () => {
      listed.set(domain.id, (await api.checkDomain(domain.id)).records);
      await shell.refresh();
    }, `${domain.id} has been checked.`);
    button.disabled = false;
  }

  function card(domain) {
    const button = shell.may("delivery:write") && h("button", { type: "button", "data-key": `check ${domain.id}`, "aria-label": `Check ${domain.id} now`, onclick: () => check(domain, button, details) }, "Check now");
    const details = h(
      "details",
      { "data-key": `details ${domain.id}` },
      h("summary", { "data-key": `summary ${domain.id}` }, "Findings and records"),
      findings(domain),
      records(domain, listed.get(domain.id)),
    );
    const wrong = domain.check?.findings.find((one) => one.verdict === "wrong");
    return h(
      "article.domain",
      null,
      h(
        "div.head",
        null,
        h("div", null, h("div.title", null, h("h3", null, domain.id), state(domain)), h("p.mute", null, [domain.signed_by_relay ? "signed by the relay" : `signs with ${domain.keys[0]?.selector ?? "no key"}${domain.keys[1] ? `, next ${domain.keys[1].selector}` : ""}`, domain.check && `checked ${time(domain.check.at)}`].filter(Boolean).join(" · "))),
        h("div.buttons", null, button),
      ),
      wrong && h("p.bad", null, `${wrong.subject}: ${wrong.says}. Campaigns from this domain are refused.`),
      details,
    );
  }

  const show = changing(element, ({ items, reason }) => {
    if (!items) return h("p.empty", null, `The Catalog does not answer${reason ? `: ${reason}` : " yet"}.`);
    if (!items.length) return h("p.empty", null, "None yet. ", h("code", null, "manta domain add shop.example"), " makes its keys and says what to publish.");
    return items.map(card);
  });
  return { element, update: (found) => show({ ...found, listed: [...listed.keys()] }) };
}
