"""The console in a real browser: signing in, watching a campaign live, pausing it."""

from __future__ import annotations

import re
from typing import Any

import pytest
from playwright.async_api import async_playwright, expect

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
