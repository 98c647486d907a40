// The console's own reads and changes. A refusal is a Problem that says what was wrong.

export class Problem extends Error {
  constructor(document) {
    super(document.detail || document.title || "Something went wrong");
    this.status = document.status;
    this.code = document.code;
  }
}

async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, { credentials: "same-origin", cache: "no-store", ...options });
  } catch {
    throw new Problem({ status: 0, code: "offline", detail: "The server cannot be reached." });
  }
  if (answer.status === 204) return null;
  const body = await answer.json().catch(() => ({ detail: `Status ${answer.status}` }));
  if (!answer.ok) throw new Problem({ status: answer.status, ...body });
  return body;
}

// A name for one change, so that whatever brings it twice changes nothing twice.
const newKey = () => Array.from(crypto.getRandomValues(new Uint32Array(4)), (n) => n.toString(36)).join("-");

const change = (method, path, body) =>
  ask(path, {
    method,
    headers: { "Content-Type": "application/json", "X-Manta-Console": "1", "Idempotency-Key": newKey() },
    body: body === undefined ? undefined : JSON.stringify(body),
  });

export const session = () => ask("api/session");
export const signIn = (key) => change("POST", "session", { key });
export const signOut = () => change("DELETE", "session");
export const campaigns = () => ask("api/campaigns");
export const campaign = (id) => ask(`api/campaigns/${id}`);
export const forecast = (id) => ask(`api/campaigns/${id}/forecast`);
export const move = (id, name) => change("POST", `api/campaigns/${id}/${name}`);
export const segments = () => ask("api/segments");
export const segmentCount = (id) => ask(`api/segments/${id}/count`);
export const status = () => ask("api/status");
export const delivery = () => ask("api/delivery");
export const act = (action) => change("POST", "api/delivery/actions", action);
export const undo = (id) => change("POST", `api/delivery/actions/${id}/undo`);
export const checkDomain = (domain) => change("POST", `api/delivery/domains/${encodeURIComponent(domain)}/check`);
export const suppression = (address) => ask(`api/suppression?${new URLSearchParams({ address })}`);
export const lift = (address, why) => change("POST", "api/suppression/lift", { address, why });
export function recipients(id, state, cursor) {
  const query = new URLSearchParams();
  if (state) query.set("state", state);
  if (cursor) query.set("cursor", cursor);
  return ask(`api/campaigns/${id}/recipients?${query}`);
}
