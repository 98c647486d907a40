"""The pages of recipients in a real browser: light and dark, narrow, without scripts, in German."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.async_api import async_playwright, expect

from manta.content.tokens import TokenKind, keyring_of
from manta.ids import MessageRef
from manta.people.commands import SetConsent
from manta.people.double_opt_in import RequestConsent
from manta.people.identities import route
from manta.people.upsert import UpsertPeople
from serve_apps.links import LinkKeys
from serve_apps.preferences.app import Preferences
from tests.e2e.stage import serving
from tests.unit.serve_world import House, house

pytestmark = pytest.mark.browser

TOPICS = (
    {
        "name": "news",
        "titles": {"en": "Monthly news", "de": "Neues im Monat"},
        "descriptions": {"en": "Once a month.", "de": "Einmal im Monat."},
        "channels": ["email", "sms"],
        "from_email": "hello@shop.example",
    },
    {
        "name": "offers",
        "titles": {
            "en": "Offers",
            "de": "Angebote für Donaudampfschifffahrtsgesellschaftskapitäne",
        },
        "from_email": "hello@shop.example",
    },
)
# What a page owes to everybody, as far as a program can see: WCAG 2.2 1.4.3, 1.4.10, 1.3.1, 2.5.8,
# 3.1.1, 4.1.2. Answers what is wrong.
AUDIT = """
() => {
  const wrong = [], seen = new Set();
  const parse = c => (c.match(/[\\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => (v /= 255) <= 0.04045 ? v / 12.92
    : ((v + 0.055) / 1.055) ** 2.4).reduce((s, v, i) => s + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = e => { for (; e; e = e.parentElement) {
    const c = parse(getComputedStyle(e).backgroundColor); if (c.length < 4 || c[3] > 0) return c; }
    return [255, 255, 255]; };
  if (!document.documentElement.lang) wrong.push('no language');
  if (!document.title.trim()) wrong.push('no title');
  if (document.querySelectorAll('h1').length !== 1) wrong.push('not one heading');
  if (document.querySelectorAll('main').length !== 1) wrong.push('no main part');
  if (document.documentElement.scrollWidth > innerWidth) wrong.push('wider than the window');
  for (const e of document.querySelectorAll('main *')) {
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.getClientRects().length) continue;
    const [a, b] = [light(parse(getComputedStyle(e).color)), light(ground(e))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) wrong.push(`${e.tagName} ${e.textContent.slice(0, 20)}: ${ratio.toFixed(2)}`);
  }
  for (const e of document.querySelectorAll('input:not([type=hidden]), select, button')) {
    const name = e.tagName === 'BUTTON' ? e.textContent.trim() : e.labels[0]?.textContent.trim();
    if (!name) wrong.push(`${e.outerHTML.slice(0, 60)} has no name`);
    if (e.id && seen.has(e.id)) wrong.push(`two are ${e.id}`);
    seen.add(e.id);
    const about = e.getAttribute('aria-describedby');
    if (about && !document.getElementById(about)) wrong.push(`${about} is not there`);
    const box = e.getBoundingClientRect();
    if (Math.min(box.width, box.height) < 22) wrong.push(`${name} is too small to press`);
  }
  for (const e of document.querySelectorAll('fieldset'))
    if (e.firstElementChild?.tagName !== 'LEGEND') wrong.push('a group without a name');
  return wrong;
}
"""


@pytest.fixture
async def browser(chromium_path: str) -> Any:
    async with async_playwright() as playwright:
        opened = await playwright.chromium.launch(
            executable_path=chromium_path, args=["--no-sandbox"]
        )
        yield opened
        await opened.close()


@pytest.fixture
async def world() -> Any:
    async with house() as built:
        for topic in TOPICS:
            await built.handles.catalog.call("save", "topics", topic)
        app = Preferences(built.handles, LinkKeys(built.handles.catalog, "default", built.clock))
        async with serving(app, "") as address:
            yield built, address


async def person(built: House, locale: str | None) -> int:
    import pyarrow as pa

    shards = built.handles.shards
    rows = pa.table({"email": ["ann@x.example"], "locale": pa.array([locale], pa.string())})
    ((shard, part),) = route(rows, shards.first_buckets).items()
    answer = await shards.execute(shard, UpsertPeople(None, part, "test"))
    (id,) = answer.ids.to_pylist()
    await shards.execute(shard, SetConsent(None, id, "email", "offers", "subscribed", "form"))
    return int(id)


async def link(built: House, kind: TokenKind, id: int) -> str:
    ring = keyring_of(await built.handles.catalog.call("token_keys"), "default")
    letter = "p" if kind is TokenKind.PREFERENCES else "s"
    return f"/{letter}/{ring.sign(kind, MessageRef(id, 77), 5)}"


async def consents(built: House, id: int) -> dict[tuple[str, str], str]:
    shards = built.handles.shards
    shard = shards.of_subscriber(id)
    found = await shards.query(shard, "person", {"subscriber_id": id})
    return {(c["channel"], c["topic"]): c["status"] for c in found["consents"]}


async def test_a_person_chooses_without_scripts_in_german(browser, world):
    built, address = world
    id = await person(built, "de-AT")
    context = await browser.new_context(
        java_script_enabled=False,
        locale="fr-FR",
        color_scheme="dark",
        viewport={"width": 360, "height": 640},
    )
    page = await context.new_page()
    await page.goto(address + await link(built, TokenKind.PREFERENCES, id))
    await expect(page.get_by_role("heading", name="Ihre E-Mail-Einstellungen")).to_be_visible()
    mail = page.get_by_role("group", name="Per E-Mail")
    await expect(mail.get_by_label("Angebote")).to_be_checked()
    await expect(mail.get_by_label("Neues im Monat")).not_to_be_checked()
    # By the keyboard alone: to the first box, tick it, and the Enter key saves.
    await page.keyboard.press("Tab")
    await expect(mail.get_by_label("Neues im Monat")).to_be_focused()
    await page.keyboard.press("Space")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("status")).to_have_text("Gespeichert.")
    await expect(mail.get_by_label("Neues im Monat")).to_be_checked()
    assert await consents(built, id) == {
        ("email", "news"): "subscribed",
        ("email", "offers"): "subscribed",
    }
    await page.get_by_label("Sprache").select_option("ja")
    await page.get_by_role("button", name="Speichern").click()
    await expect(page.get_by_role("button", name="保存")).to_be_visible()
    await page.get_by_label("言語").select_option("de")
    await page.get_by_role("button", name="保存").click()
    await page.get_by_role("button", name="Von allem abmelden").click()
    await expect(page.get_by_role("status")).to_contain_text("von allem abgemeldet")
    assert set((await consents(built, id)).values()) == {"unsubscribed"}
    assert await context.cookies() == []
    await context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
async def test_the_pages_owe_nothing_to_anybody(browser, world, scheme, width):
    built, address = world
    id = await person(built, "de")
    shard = built.handles.shards.of_subscriber(id)
    await built.handles.shards.execute(shard, RequestConsent(None, id, (("news", True),), "form"))
    context = await browser.new_context(
        color_scheme=scheme, viewport={"width": width, "height": 800}
    )
    page = await context.new_page()
    refused: list[str] = []
    page.on("console", lambda said: refused.append(said.text))
    preferences = await link(built, TokenKind.PREFERENCES, id)
    confirmation = await link(built, TokenKind.CONFIRM, id)
    for path in (preferences, confirmation, "/p/nothing"):
        await page.goto(address + path)
        assert await page.evaluate(AUDIT) == [], path
    await page.goto(address + confirmation)
    await page.get_by_role("button").click()
    await expect(page.get_by_role("heading")).to_have_text("Vielen Dank")
    assert await page.evaluate(AUDIT) == []
    await page.goto(address + preferences)
    await page.get_by_role("button", name="Speichern").click()
    await expect(page.get_by_role("status")).to_be_visible()
    assert await page.evaluate(AUDIT) == []
    # What has the focus is marked, and the page's own policy has refused nothing of it.
    await page.keyboard.press("Tab")
    outline = "getComputedStyle(document.activeElement).outlineWidth"
    assert await page.evaluate(outline) == "3px"
    assert [text for text in refused if "404" not in text] == []
    await context.close()
