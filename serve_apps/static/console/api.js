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

const change = (method, path, body) =>
  ask(path, {
    method,
    headers: { "Content-Type": "application/json", "X-Manta-Console": "1" },
    body: body === undefined ? undefined : JSON.stringify(body),
  });

export const session = () => ask("api/session");
export const signIn = (key) => change("POST", "session", { key });
export const signOut = () => change("DELETE", "session");
export const campaigns = () => ask("api/campaigns");
export const campaign = (id) => ask(`api/campaigns/${id}`);
export const move = (id, name) => change("POST", `api/campaigns/${id}/${name}`);
export const segments = () => ask("api/segments");
export const segmentCount = (id) => ask(`api/segments/${id}/count`);
export const status = () => ask("api/status");
export function recipients(id, state, cursor) {
  const query = new URLSearchParams();
  if (state) query.set("state", state);
  if (cursor) query.set("cursor", cursor);
  return ask(`api/campaigns/${id}/recipients?${query}`);
}
