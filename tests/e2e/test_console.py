"""The console in a real browser: a campaign live, pausing it; what holds mail, and its undo."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

import pytest
from playwright.async_api import async_playwright, expect

from manta.delivery.rehearsal.forecast import Counted, Forecast, expected_of
from tests.e2e.protection import HOSTILE, protected
from tests.e2e.stage import stage

pytestmark = pytest.mark.browser


@pytest.fixture
async def browser(chromium_path: str) -> Any:
    async with async_playwright() as playwright:
        opened = await playwright.chromium.launch(
            executable_path=chromium_path, args=["--no-sandbox"]
        )
        yield opened
        await opened.close()


async def test_a_person_watches_a_campaign(browser):
    async with stage() as (scene, url, key):
        for _ in range(10):
            await scene.advance(6)
        page = await browser.new_page()
        wrong: list[str] = []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on(
            "console",
            lambda said: wrong.append(said.text) if "Content Security" in said.text else None,
        )

        await page.goto(url)
        await page.get_by_label("API key").fill("manta_default_00_11")
        await page.get_by_role("button", name="Sign in").click()
        await expect(page.get_by_role("alert")).to_contain_text("unknown, revoked or expired")
        await page.get_by_label("API key").fill(key)
        await page.get_by_role("button", name="Sign in").click()

        await expect(page.locator(".campaign-row")).to_have_count(3)
        await page.get_by_text("Spring collection").click()
        equation = page.get_by_role("group", name="Accounting")
        await expect(equation).to_contain_text("adds up")
        await expect(equation.locator(".term.total b")).to_have_text("400")
        numbers = await equation.locator(".term b").all_text_contents()
        assert sum(map(int, numbers[1:])) == int(numbers[0]) == 400

        before = int(await equation.locator(".term.accepted b").text_content())
        await scene.advance(40)
        await expect(equation.locator(".term.accepted b")).not_to_have_text(str(before))
        await expect(page.locator("svg.chart polyline").first).to_be_visible()
        await expect(page.locator("table").first).to_contain_text("mailbox")

        await page.get_by_role("button", name="Pause").click()
        await expect(page.locator(".head .pill")).to_have_text("paused")
        assert scene.director.held[3]["state"] == "paused"
        await expect(page.get_by_role("button", name="Resume")).to_be_visible()

        await page.locator("summary", has_text="Recipients").click()
        await page.get_by_label("State").select_option("suppressed")
        await expect(page.locator("details tbody tr")).to_have_count(12)

        await page.get_by_role("link", name="System").click()
        await expect(page.locator("article", has_text="shard-001")).to_contain_text("Epoch")
        await page.get_by_role("link", name="Segments").click()
        await page.get_by_role("button", name="Count").click()
        await expect(page.locator(".figure")).to_have_text(re.compile(r"\d+"))

        cookies = await page.context.cookies()
        assert [(c["httpOnly"], c["sameSite"]) for c in cookies] == [(True, "Strict")]
        await page.get_by_role("button", name="Sign out").click()
        await expect(page.get_by_label("API key")).to_be_visible()
        assert await page.context.cookies() == []
        assert wrong == []


async def test_a_link_with_a_key_signs_in_and_hides_it(browser):
    async with stage() as (_, url, key):
        page = await browser.new_page()
        await page.goto(f"{url}#key={key}")
        await expect(page.locator(".campaign-row").first).to_be_visible()
        assert key not in page.url


async def test_what_holds_mail_is_shown_and_undone(browser):
    async with stage() as (scene, url, key), protected(scene) as delivery:
        await scene.house.handles.catalog.call("add_domain", "shop.example")
        await delivery.happen()
        page, wrong = await _watching(browser, f"{url}#key={key}")
        await page.get_by_role("link", name="Delivery").click()

        held = page.get_by_role("region", name="Actions that hold")
        await expect(held.locator("tbody tr")).to_have_count(2)
        await expect(held).to_contain_text("0.4 % complaints (24 of 6,000) at google, from mx-a")
        await expect(held).to_contain_text(f"550 please stop {HOSTILE}")
        lanes = page.get_by_role("region", name="Lanes")
        await expect(lanes.locator("tr", has_text="outlook")).to_contain_text("held")
        await expect(lanes.locator("tr", has_text="outlook")).to_contain_text("until")
        await expect(lanes.locator("tr", has_text="onerror")).to_contain_text(HOSTILE)
        mx_b = lanes.locator("tr", has_text="mx-b").filter(has_text="google")
        await expect(mx_b).to_contain_text("warm-up, day 1 of 35")
        warm = page.get_by_role("region", name="Warm-up")
        await expect(warm.locator("tr", has_text="google")).to_contain_text("day 1 of 35")
        await expect(warm.locator("tr", has_text="google")).to_contain_text("of 50")
        rates = page.get_by_role("region", name="Rates by sending domain")
        row = rates.locator("tr", has_text="of shop.example").filter(has_text="google")
        await expect(row).to_contain_text("0.25 % to 0.64 %")
        await expect(row).to_contain_text("warn")

        asked: list[str] = []
        answers = iter([False, True])

        async def answer(dialog: Any) -> None:
            asked.append(dialog.message)
            await (dialog.accept() if next(answers) else dialog.dismiss())

        page.on("dialog", answer)
        first = (await delivery.reputation.actions())[-1]["id"]
        await held.get_by_role("button", name=f"Undo action {first}").click()
        await expect(held.locator("tbody tr")).to_have_count(2)
        await held.get_by_role("button", name=f"Undo action {first}").click()
        await expect(held.locator("tbody tr")).to_have_count(1)
        assert len(asked) == 2 and "at outlook" in asked[0] and "new evidence is" in asked[0]
        (over,) = [one for one in await delivery.reputation.actions(False) if not one["is_active"]]
        assert (over["id"], over["undone_by"].split(" ")[0]) == (first, "test")
        await expect(page.locator("#held")).to_be_focused()
        await expect(page.locator("#notice")).to_have_text(f"Action {first} is undone.")
        await delivery.grant()
        await expect(lanes.locator("tr", has_text="outlook")).not_to_contain_text("held")
        await page.locator("summary", has_text="Those that are over").click()
        ended = page.get_by_role("region", name="Actions that are over")
        await expect(ended).to_contain_text("undone by test")

        assert wrong == []
        assert await page.evaluate("window.hacked") is None
        assert await page.locator("img[src=x]").count() == 0


async def test_delivery_by_keys_alone(browser):
    async with stage() as (scene, url, key), protected(scene) as delivery:
        await scene.house.handles.catalog.call("add_domain", "shop.example")
        await delivery.happen()
        await delivery.suppress("reader7@shop.example")
        page, wrong = await _watching(browser, f"{url}#key={key}")
        await page.get_by_role("link", name="Delivery").focus()
        await page.keyboard.press("Enter")
        held = page.get_by_role("region", name="Actions that hold")
        await expect(held.locator("tbody tr")).to_have_count(2)

        asked: list[str] = []

        async def answer(dialog: Any) -> None:
            asked.append(dialog.message)
            await dialog.accept("it was a mistake" if dialog.type == "prompt" else "")

        page.on("dialog", answer)
        newest = (await delivery.reputation.actions())[0]["id"]
        await _tab_to(page, f"Undo action {newest}")
        await page.keyboard.press("Enter")
        await expect(held.locator("tbody tr")).to_have_count(1)

        await _tab_to(page, "Hold something by hand")
        await page.keyboard.press("Enter")
        await _tab_to(page, "Provider")
        await page.keyboard.type("yahoo")
        await _tab_to(page, "Why, for who reads it later")
        await page.keyboard.type("asked <b>by phone</b>")
        await page.keyboard.press("Enter")
        await expect(held).to_contain_text("asked <b>by phone</b>")
        assert "Suspend: at yahoo, for 1 h?" in asked
        (made, _) = await delivery.reputation.actions()
        assert (made["kind"], made["scope"]["provider"], made["scope"]["source"]) == (
            "suspend",
            "yahoo",
            "",
        )

        await _tab_to(page, "Check shop.example now")
        await page.keyboard.press("Enter")
        domain = page.locator(".domain", has_text="shop.example")
        await expect(domain).to_contain_text("failing")
        await expect(domain).to_contain_text("_dmarc.shop.example.  TXT")

        await _tab_to(page, "Address")
        await page.keyboard.type("Reader7@shop.example")
        await page.keyboard.press("Enter")
        shown = page.locator(".answer")
        await expect(shown).to_contain_text(f"550 5.1.1 {HOSTILE}")
        await _tab_to(page, "Lift")
        await page.keyboard.press("Enter")
        await expect(shown).to_contain_text("is not suppressed")
        assert wrong == []


async def test_a_narrow_screen_scrolls_tables_only(browser):
    async with stage() as (scene, url, key), protected(scene) as delivery:
        await delivery.happen()
        page, _ = await _watching(
            browser, f"{url}#key={key}", viewport={"width": 380, "height": 800}
        )
        await page.get_by_role("link", name="Delivery").click()
        await expect(page.get_by_role("region", name="Lanes").locator("tbody tr")).to_have_count(7)
        assert await page.evaluate("document.documentElement.scrollWidth") == 380


async def test_a_campaign_says_what_paused_it_and_what_was_foreseen(browser):
    async with stage() as (scene, url, key):
        campaign = scene.director.held[3]
        cause = f"paused: 1.2 % complaints at {HOSTILE}, of campaign 3"
        campaign["state"], campaign["paused_by"] = "paused", 7
        campaign["history"].append({**campaign["history"][-1], "state": "paused", "cause": cause})
        scene.director.forecasts[3] = _forecast()
        page, wrong = await _watching(browser, f"{url}#key={key}")
        await page.get_by_text("Spring collection").click()
        note = page.get_by_role("note")
        await expect(note).to_contain_text(cause.removeprefix("paused: "))
        await expect(note).to_contain_text("action 7")
        foreseen = page.get_by_role("region", name="Forecast in all")
        await expect(foreseen.locator("tr", has_text="Accepted")).to_contain_text("370 to 390")
        await expect(foreseen.locator("tr", has_text="Done after")).to_contain_text("10 min")
        await page.locator("summary", has_text="By provider").click()
        await expect(page.get_by_role("region", name="Forecast by provider")).to_contain_text(
            "google"
        )

        scene.director.held[3]["state"] = "cancelled"
        scene.house.clock.advance(1)
        await expect(foreseen.locator("th", has_text="Came")).to_be_visible()
        await expect(foreseen.locator("tr", has_text="Accepted")).to_contain_text("not as foreseen")
        assert wrong == []


def _forecast() -> dict[str, Any]:
    """Three runs that foresee 20 failures of about 400 messages."""
    runs = [Counted(n, n - 20, 9, 20, 0, 1, 0, 0, 400.0, 600.0) for n in (388, 400, 412)]
    total, google = expected_of("", 400, runs), expected_of("google", 400, runs)
    at = datetime(2026, 3, 1, 11)
    made = Forecast(at, at, at, "main", 3, 1, 400, 0, total, (google,), (), (), 0.0)
    return made.to_document()


async def _watching(browser: Any, address: str, **options: Any) -> tuple[Any, list[str]]:
    """A page that is signed in, and what goes wrong on it."""
    page = await browser.new_page(**options)
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    await page.goto(address)
    await expect(page.locator("nav#sections")).to_be_visible()
    return page, wrong


NAME = """() => {
  const one = document.activeElement;
  const label = one.labels?.[0]?.firstChild.textContent;
  return one.getAttribute("aria-label") || label || one.textContent;
}"""


async def _tab_to(page: Any, name: str) -> None:
    """Go there as somebody without a mouse does."""
    for _ in range(60):
        await page.keyboard.press("Tab")
        if (await page.evaluate(NAME)).strip() == name:
            return
    raise AssertionError(f"{name} cannot be reached by keys")
