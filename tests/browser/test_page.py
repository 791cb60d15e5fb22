"""The page by itself: what no worker can be brought to show within a test."""

from __future__ import annotations

import random
import sys

import pytest
from playwright.async_api import expect

from tests.browser import fake as fakes
from tests.browser.conftest import stand_still, violations
from tests.integration.harness import until

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]

VIEWS = ("now", "alerts", "model", "drift", "letters", "explain")


async def shown(page, url, view="now"):
    """A view, once its data have come."""
    await page.goto(f"{url}/#/{view}")
    await expect(page.locator("#state")).to_have_attribute("data-state", "ok")
    await expect(page.locator("[aria-busy]")).to_have_count(0)


async def test_ten_thousand_alerts_are_a_screenful_of_rows(eyes, fake):
    """Whatever is held, only what is seen is drawn; both ends are a key away."""
    fake.alerts = [fakes.alert(i, random.Random(i)) for i in range(10_000)]
    page = await eyes.page()
    await shown(page, fake.url, "alerts")
    grid, rows = page.get_by_role("grid"), page.locator(".space .row")
    for there in range(501, 10_002, 500):
        await expect(grid).to_have_attribute("aria-rowcount", str(there))
        await grid.press("End")
    await expect(page.locator('[aria-rowindex="10001"]')).to_have_attribute("aria-selected", "true")
    assert await rows.count() < 60
    await grid.press("Home")
    await expect(page.locator('[aria-rowindex="2"]')).to_have_attribute("aria-selected", "true")
    longest_ms = await page.evaluate(
        """async () => {
          const list = document.querySelector(".list"); let longest = 0;
          for (let i = 0; i < 60; i += 1) {
            const at = performance.now(); list.scrollTop = (i * 7919 % 10000) * 46;
            list.dispatchEvent(new Event("scroll")); list.getBoundingClientRect();
            longest = Math.max(longest, performance.now() - at);
            await new Promise(requestAnimationFrame);
          }
          return longest;
        }"""
    )
    sys.stdout.write(f"longest of 60 jumps through 10,000 alerts: {longest_ms:.1f} ms\n")
    assert await rows.count() < 60


async def test_every_verdict_has_a_key_and_can_be_taken_back(eyes, fake):
    """j, then f: held back; z: nothing was sent; l, and waiting: one label of an analyst."""
    page = await eyes.page()
    await page.clock.install()
    await shown(page, fake.url, "alerts")
    await page.keyboard.press("j")
    await expect(page.locator(".detail .verdicts")).to_be_visible()
    await stand_still(page)
    await page.keyboard.press("f")
    fraud = page.get_by_role("button", name="Fraud", exact=False).first
    await expect(fraud).to_have_attribute("aria-pressed", "true")
    await page.keyboard.press("z")
    await expect(fraud).to_have_attribute("aria-pressed", "false")
    await page.keyboard.press("l")
    await page.clock.run_for(4_000)
    await expect(page.locator(".verdicts .note")).to_have_text("the model learns it as fraud")
    told = {"transaction_id": fake.alerts[0]["transaction_id"], "is_fraud": False}
    assert [("/v1/labels", {**told, "source": "analyst"})] == fake.posted
    await page.keyboard.press("j")
    await page.keyboard.press("u")
    await page.keyboard.press("k")
    # Who leaves has said what they said.
    await page.goto("about:blank")
    unsure = {"transaction_id": fake.alerts[1]["transaction_id"], "is_fraud": None}
    await until(lambda: len(fake.posted) == 2, "the label that was held back")
    assert ("/v1/labels", {**unsure, "source": "analyst"}) == fake.posted[1]


async def test_what_is_read_does_not_move_when_alerts_come(eyes, fake):
    """A row under the pointer stays there; a pill says how many came above it."""
    page = await eyes.page()
    await shown(page, fake.url, "alerts")
    await page.locator(".list").evaluate("list => { list.scrollTop = 460; }")
    row = page.locator(".space .row", has_text=fake.alerts[15]["entities"]["card_id"]).first
    before = await row.bounding_box()
    for i in range(5):
        fake.events.append(("alert", fakes.alert(20_000 + i, random.Random(i))))
    await expect(page.get_by_role("button", name="5 new alerts above")).to_be_visible()
    assert before == await row.bounding_box()
    await page.get_by_role("button", name="5 new alerts above").click()
    await expect(page.locator(".list")).to_have_js_property("scrollTop", 0)


async def test_a_view_without_data_says_what_will_be_there(eyes):
    """Empty is not broken."""
    with fakes.served(fakes.full(0)) as server:
        server.answers["/v1/drift"] = {"items": [], "next": None}
        server.answers["/v1/dead-letters"] = {"items": [], "next": None, "by_reason": []}
        server.answers["/v1/models"] = {"champion": fakes.MODEL, "versions": [], "days": []}
        server.answers["/v1/metrics/summary"] = fakes.summary(quality={}, series=[])
        page = await eyes.page()
        for view, words in {
            "now": "No label yet", "alerts": "No alert is chosen", "model": "No snapshot yet",
            "drift": "Nothing has drifted", "letters": "None is open", "explain": "No alert yet",
        }.items():  # fmt: skip
            await shown(page, server.url, view)
            await expect(page.get_by_text(words).first).to_be_visible()
            assert [] == await violations(page)


async def test_a_view_that_fails_says_why_and_tries_again(eyes, fake):
    """A problem document is shown in its own words."""
    right = fake.answers["/v1/models"]
    fake.answers["/v1/models"] = (503, {"title": "Not ready", "detail": "state is being restored"})
    page = await eyes.page()
    await shown(page, fake.url)  # a view that is there before all the rest is looks by itself again
    await page.goto(f"{fake.url}/#/model")
    await expect(page.get_by_text("state is being restored")).to_be_visible()
    fake.answers["/v1/models"] = right
    await page.get_by_role("button", name="Try again").click()
    await expect(page.get_by_text("Are its scores honest?")).to_be_visible()


async def test_a_label_that_was_refused_is_not_shown_as_given(eyes, fake):
    """The button comes up again, and the reason is there."""
    fake.answers["/v1/labels"] = (403, {"title": "Forbidden", "detail": "needs the role feedback"})
    page = await eyes.page()
    await shown(page, fake.url, "alerts")
    await page.keyboard.press("j")
    await page.keyboard.press("f")
    await expect(page.locator(".toast.failed")).to_contain_text("needs the role feedback")
    await expect(page.locator('[data-verdict="fraud"]')).to_have_attribute("aria-pressed", "false")


async def test_who_needs_a_token_is_asked_for_it(eyes, fake):
    """Once, and then every request carries it."""
    right = fake.answers["/v1/me"]
    fake.answers["/v1/me"] = (401, {"title": "Unauthorized", "detail": "no token"})
    page = await eyes.page()
    await page.goto(fake.url)
    field = page.get_by_label("Token")
    await expect(field).to_be_visible()
    assert [] == await violations(page)
    fake.answers["/v1/me"] = right
    await field.fill("weir.anna.secret")
    async with page.expect_request("**/v1/me") as asked:
        await page.get_by_role("button", name="Go on").click()
    assert "Bearer weir.anna.secret" == (await (await asked.value).all_headers())["authorization"]
    await expect(page.get_by_text("Scoring 612 transactions a second")).to_be_visible()


async def test_colours_follow_the_system_until_somebody_chooses(eyes, fake):
    """Dark in a dark system; light when that is chosen, and after a reload."""
    page = await eyes.page(scheme="dark")
    paper = "getComputedStyle(document.body).backgroundColor"
    await shown(page, fake.url)
    dark = await page.evaluate(paper)
    await page.get_by_role("button", name="Colours").click()
    assert dark != await page.evaluate(paper)
    await page.reload()
    assert dark != await page.evaluate(paper)


async def test_help_lists_the_keys(eyes, fake):
    """? opens it, Esc closes it, digits change the view."""
    page = await eyes.page()
    await shown(page, fake.url)
    await page.keyboard.press("?")
    await expect(page.get_by_role("dialog", name="Keys")).to_be_visible()
    assert [] == await violations(page)
    await page.keyboard.press("Escape")
    await page.keyboard.press("4")
    await expect(page).to_have_url(f"{fake.url}/#/drift")


@pytest.mark.parametrize(("size", "scheme"), [("wide", "dark"), ("narrow", "light")])
async def test_no_view_has_a_grave_fault_of_access(eyes, fake, size, scheme):
    """Axe finds nothing serious, and nothing is wider than the window."""
    page = await eyes.page(size, scheme)
    chosen = fake.alerts[3]["transaction_id"]
    for view in (*VIEWS, f"alerts/{chosen}", "letters/1", f"explain/{chosen}"):
        await shown(page, fake.url, view)
        assert [] == await violations(page), view
        wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert 0 == await page.evaluate(wide), view
