// The shell: sign in, one view at a time, refreshed while somebody looks.

import * as api from "./api.js";
import * as campaign from "./campaign.js";
import * as campaigns from "./campaigns.js";
import * as delivery from "./delivery.js";
import { h } from "./dom.js";
import * as segments from "./segments.js";
import * as system from "./system.js";

const EVERY_MS = 1_000;
const AGAIN_MS = 3_000;
const SAID_MS = 8_000;
const main = document.getElementById("main");
const notice = document.getElementById("notice");
const sections = document.getElementById("sections");
const sessionBox = document.getElementById("session");

let who = null;
let current = null;
let timer = 0;
let saidUntil = 0; // until then a refresh leaves the notice to who did something

const shell = {
  may: (scope) => who?.scopes.includes(scope) ?? false,
  refresh: () => refresh(current),
  async attempt(work, done = "") {
    try {
      await work();
      say(done);
    } catch (error) {
      fail(error);
    }
    saidUntil = performance.now() + SAID_MS;
  },
};

function say(text) {
  if (notice.textContent !== text) notice.textContent = text;
}

function fail(error) {
  if (error.status === 401) return showSignIn();
  say(error.message);
  if (!(error instanceof api.Problem)) console.error(error);
}

function route() {
  const [, section, id] = location.hash.split("/");
  if (section === "campaigns" && /^\d+$/.test(id ?? "")) return campaign.view(Number(id), shell);
  if (section === "segments") return segments.view();
  if (section === "delivery") return delivery.view(shell);
  if (section === "system") return system.view();
  return campaigns.view();
}

function show() {
  clearTimeout(timer);
  current = route();
  const section = location.hash.split("/")[1] || "campaigns";
  for (const link of sections.querySelectorAll("a")) {
    const here = link.hash === `#/${section}`;
    if (here) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${current.title} · Manta`;
  main.replaceChildren(current.element);
  refresh(current);
}

async function refresh(view) {
  clearTimeout(timer);
  let waitMs = view.everyMs ?? EVERY_MS;
  try {
    if (!document.hidden) {
      await view.refresh();
      if (performance.now() > saidUntil) say("");
    }
  } catch (error) {
    fail(error);
    waitMs = AGAIN_MS;
  }
  if (view === current && who) timer = setTimeout(() => refresh(view), waitMs);
}

function showSignIn(message = "") {
  clearTimeout(timer);
  who = current = null;
  sections.hidden = true;
  sessionBox.replaceChildren();
  say("");
  const input = h("input", { type: "password", name: "key", autocomplete: "current-password", required: true, placeholder: "manta_…", id: "key" });
  const problem = h("p.bad", { role: "alert" }, message);
  const form = h(
    "form.card.sign-in",
    {
      onsubmit: async (event) => {
        event.preventDefault();
        await signIn(input.value.trim(), problem);
      },
    },
    h("h1", null, "Sign in"),
    h("label", { for: "key" }, "API key"),
    input,
    problem,
    h("button.primary", { type: "submit" }, "Sign in"),
    h("p.mute", null, "A key with the scope campaigns:read. ", h("code", null, "manta key create"), " makes one."),
  );
  main.replaceChildren(form);
  input.focus();
}

async function signIn(key, problem) {
  try {
    enter(await api.signIn(key));
  } catch (error) {
    problem.textContent = error.message;
  }
}

function enter(caller) {
  who = caller;
  sections.hidden = false;
  sections.querySelector("[href='#/delivery']").hidden = !shell.may("delivery:read");
  sessionBox.replaceChildren(
    h("span.mute", null, who.name),
    h("button", { type: "button", onclick: () => shell.attempt(async () => { await api.signOut(); showSignIn(); }) }, "Sign out"),
  );
  show();
}

async function start() {
  // A link from the command line carries the key behind the #, which browsers never send anywhere.
  const given = /^#key=([\w-]+)/.exec(location.hash);
  if (given) history.replaceState(null, "", "#/campaigns");
  try {
    enter(given ? await api.signIn(given[1]) : await api.session());
  } catch (error) {
    showSignIn(error.status === 401 && !given ? "" : error.message);
  }
}

addEventListener("hashchange", () => who && show());
document.addEventListener("visibilitychange", () => !document.hidden && current && refresh(current));
start();
