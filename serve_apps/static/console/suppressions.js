// Suppressions: why nothing is sent to an address, and lifting that.

import * as api from "./api.js";
import { h, time, words } from "./dom.js";

const REASONS = {
  hard_bounce: "the mailbox does not exist (hard bounce)",
  soft_bounces: "several messages in a row failed softly",
  complaint: "its reader complained",
  manual: "somebody put it there",
  unsubscribed: "its reader unsubscribed; stops marketing only",
};

export function suppressions(shell) {
  const input = h("input", { id: "address", type: "search", inputmode: "email", autocomplete: "off", required: true, maxlength: 320, placeholder: "ann@shop.example" });
  const answer = h("div.answer", { role: "status", "aria-live": "polite", tabindex: -1 });

  async function search(address) {
    await shell.attempt(async () => show(await api.suppression(address)));
  }

  function show({ address, suppression }) {
    if (!suppression) {
      answer.replaceChildren(h("p", null, h("strong", null, address), " is not suppressed."));
      return;
    }
    const facts = {
      Reason: REASONS[suppression.reason] ?? words(suppression.reason),
      Source: suppression.source,
      Evidence: suppression.evidence,
      Since: time(suppression.created_at),
      Until: suppression.expires_at ? time(suppression.expires_at) : "for ever",
      "Whose it is": suppression.subscriber_id ?? "nobody's here",
    };
    answer.replaceChildren(
      h("p", null, "Nothing is sent to ", h("strong", null, suppression.address ?? address), "."),
      h("dl.facts.left", null, Object.entries(facts).filter(([, value]) => value).map(([name, value]) => [h("dt", null, name), h("dd", null, value)])),
      shell.may("subscribers:write") && h("div.tools", null, h("button.cancel", { type: "button", onclick: () => lift(address) }, "Lift")),
    );
  }

  async function lift(address) {
    const why = prompt(`Let mail to ${address} pass again? Consent is another matter and stays as it is.\n\nWhy (kept in the history):`);
    if (why === null) return;
    await shell.attempt(async () => {
      await api.lift(address, why.trim());
      show(await api.suppression(address));
      answer.focus();
    });
  }

  const form = h(
    "form.tools",
    {
      role: "search",
      onsubmit: (event) => {
        event.preventDefault();
        search(input.value.trim());
      },
    },
    h("label", { for: "address" }, "Address"),
    input,
    h("button", { type: "submit" }, "Search"),
  );
  return h("div", null, form, answer);
}
