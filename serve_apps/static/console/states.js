// The states of the accounting, in the order of its equation; colours are the style sheet's.

export const STATES = [
  { name: "accepted", label: "Accepted", hint: "taken by the receiving server" },
  { name: "failed", label: "Failed", hint: "refused for good" },
  { name: "suppressed", label: "Suppressed", hint: "must not be mailed" },
  { name: "cancelled", label: "Cancelled", hint: "by a person" },
  { name: "expired", label: "Expired", hint: "not sent in time" },
  { name: "uncertain", label: "Uncertain", hint: "sent, but nobody knows if it arrived; not sent again" },
  { name: "pending", label: "Pending", hint: "planned or on its way" },
];

export const done = (a) => (a ? a.planned_total - a.pending : 0);
