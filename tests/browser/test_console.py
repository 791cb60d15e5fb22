"""The console before a worker on Apache Kafka: see it, question it, teach it."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

import pytest
from playwright.async_api import expect

from app.publish import AtRate, publish, simulated
from app.synth import CARD_FIELDS, DAY_MS, START_MS, Shares
from app.synth import World as Payments
from tests.browser.cluster import Cluster, cluster
from tests.browser.conftest import stand_still, violations
from tests.integration.harness import Process, World

pytestmark = [pytest.mark.browser, pytest.mark.timeout(420)]

STOLEN = "card-stolen"
#: What a page that takes text for markup, or a name for a property, would trip over.
HOSTILE = {
    "transaction_id": '"><img src=x onerror=window.hacked=1>',
    "card_id": "<script>window.hacked=1</script>",
    "terminal_id": "__proto__'\"`${window.hacked=1}\u202egnp.\u0007\u2028</b>&lt;",
}
SOURCE = "<svg/onload=window.hacked=1>"


class Stage(NamedTuple):
    """What the tests of this module share."""

    kafka: Cluster
    world: World
    worker: Process

    @property
    def url(self) -> str:
        """Where the console is."""
        return f"http://127.0.0.1:{self.worker.port}"


async def _begin(world: World) -> Process:
    await world.create_topics()
    worker = await world.start().ready()
    await world.transact([paid(0, "card-first")])
    await world.scored(["paid-0"])
    return worker


@pytest.fixture(scope="module")
def stage(tmp_path_factory) -> Iterator[Stage]:
    """A worker that raises an alert for what a stolen card pays, whatever its score."""
    with ExitStack() as stack:
        kafka = stack.enter_context(cluster())
        blocked = {"card_id": [STOLEN, HOSTILE["card_id"]]}
        world = World(
            kafka.bootstrap,
            tmp_path_factory.mktemp("console"),
            policy={"block": blocked},
            drift={"warmup": "2d"},
        )
        stack.callback(world.close)
        yield Stage(kafka, world, asyncio.run(_begin(world)))


def paid(number: int, card: str, **more: object) -> dict[str, object]:
    """A transaction."""
    return {
        "transaction_id": f"paid-{number}", "event_time": START_MS + number * 60_000,
        "card_id": card, "terminal_id": "term-1", "amount": 20.0 + number, **more,
    }  # fmt: skip


async def test_an_alert_appears_within_two_seconds(stage, eyes):
    """Without a reload, from the moment its transaction is published."""
    page = await eyes.page()
    await page.goto(f"{stage.url}/#/alerts")
    await expect(page.locator("#state")).to_have_text("scoring")
    rows = page.locator(".space .row")
    await expect(page.get_by_text("No alert yet")).to_be_visible()
    took_s: list[float] = []
    async with stage.world.producer() as producer:
        # A machine may be busy for a moment: one of five is enough, and the first as a rule.
        while not took_s or (min(took_s) >= 2.0 and len(took_s) < 5):
            number = 1 + 1_000 * len(took_s)
            value = json.dumps(paid(number, STOLEN)).encode()
            began_s = time.monotonic()
            await producer.send(stage.world.topics.transactions.name, value, key=STOLEN.encode())
            await expect(rows).to_have_count(len(took_s) + 1)
            took_s.append(time.monotonic() - began_s)
    sys.stdout.write(f"on the page {min(took_s) * 1_000:.0f} ms after it was published\n")
    await expect(rows.first).to_contain_text(STOLEN)
    assert min(took_s) < 2.0


async def test_a_click_teaches_the_learner(stage, eyes):
    """One click, and the learner has learnt one more, on the page too."""
    before = stage.worker.metric("weir_examples_learned")
    page = await eyes.page()
    await page.clock.install()
    await page.goto(f"{stage.url}/#/alerts/paid-1")
    fraud = page.get_by_role("button", name="Fraud")
    await expect(fraud).to_be_visible()
    await stand_still(page)
    await fraud.click()
    await expect(page.locator(".verdicts .note")).to_contain_text("held back")
    await page.clock.resume()
    trail = page.get_by_role("region", name="Labels of this transaction")
    await expect(trail).to_contain_text("the model has learnt it")
    await expect(trail).to_contain_text("analyst")
    assert before + 1 == stage.worker.metric("weir_examples_learned")
    await page.goto(f"{stage.url}/#/now")
    learnt = page.locator(".stat", has_text="Learnt").locator("dd")
    await expect(learnt).to_contain_text(f"{before + 1:.0f}")
    assert [("local", "paid-1")] == await _entered(stage.world, "label")


async def test_hostile_strings_are_text(stage, eyes):
    """In every field that somebody else fills in, in every view that shows it."""
    world, page = stage.world, await eyes.page()
    hostile = {**paid(2, HOSTILE["card_id"]), **HOSTILE}
    name = HOSTILE["transaction_id"]
    await world.transact([hostile])
    raw = json.dumps({**hostile, "amount": SOURCE})
    await world.publish(world.topics.transactions, [(HOSTILE["card_id"].encode(), raw.encode())])
    label = {"transaction_id": name, "is_fraud": True, "event_time": START_MS + 9_999_999}
    await world.label([{**label, "source": SOURCE}])
    await page.goto(f"{stage.url}/#/alerts")
    await page.get_by_label("Show").select_option("")
    row = page.locator(".space .row", has_text=HOSTILE["card_id"])
    await row.click()
    detail = page.locator(".detail")
    for text in (name, HOSTILE["card_id"], SOURCE):
        await expect(detail).to_contain_text(text)
    await expect(detail).to_contain_text("__proto__'\"`${window.hacked=1}")
    await page.get_by_role("link", name="All features").click()
    await expect(detail).to_contain_text(name)
    await expect(detail).to_contain_text("What would change the decision")
    await page.goto(f"{stage.url}/#/letters")
    await page.locator(".space .row").first.click()
    await expect(page.get_by_role("textbox")).to_have_value(_holds(SOURCE))
    await expect(detail.locator("header")).to_contain_text(SOURCE)
    assert await page.evaluate("window.hacked === undefined")
    assert 0 == await page.locator("main img, main script, main svg, main b b").count()


def _holds(text: str) -> re.Pattern[str]:
    return re.compile(re.escape(text))


async def test_a_dead_letter_is_mended_and_scored(stage, eyes):
    """Its amount put right and sent again, it has a score like any other."""
    world, page = stage.world, await eyes.page()
    spoilt = {**paid(3, "card-3"), "amount": "12,50"}
    await world.transact([spoilt])
    await page.goto(f"{stage.url}/#/letters")
    await page.locator(".space .row", has_text="12,50").click()
    value = page.get_by_role("textbox")
    await expect(value).to_have_value(_holds("12,50"))
    await value.fill(json.dumps({**spoilt, "amount": 12.5}))
    await page.get_by_role("button", name="Send again").click()
    await expect(page.locator(".toast", has_text="sent again")).to_be_visible()
    scores = {s["transaction_id"]: s["amount"] for s in await world.scored(["paid-3"])}
    assert 12.5 == scores["paid-3"]
    assert 1 == len(await _entered(world, "dead-letter.retry"))


async def _entered(world: World, kind: str) -> list[tuple[str, str]]:
    """Who did this to what, as the audit has it, once it has it."""

    def is_in(found: list[Any]) -> bool:
        return kind in {json.loads(record.value)["kind"] for record in found}

    found = await world.collect(world.topics.audit, is_in, f"no {kind} in the audit")
    entries = [json.loads(record.value) for record in found]
    return [(one["actor"], one["subject"]) for one in entries if one["kind"] == kind]


async def test_drift_opens_an_incident(stage, eyes):
    """Amounts rise on the sixth day: the page says which and since when, by itself."""
    page = await eyes.page()
    await page.goto(f"{stage.url}/#/drift")
    await expect(page.get_by_text("Nothing has drifted")).to_be_visible()
    payments = Payments(
        scenario="drift", per_day=2_000, moment_ms=START_MS + 5 * DAY_MS, terminals_side=12,
        shares=Shares(large=0.01, stolen=1.0, testing=0.3),
    )  # fmt: skip
    until_ms = START_MS + 8 * DAY_MS
    items = simulated(payments, CARD_FIELDS)
    stream = itertools.takewhile(lambda item: item.time_ms < until_ms, items)
    # No faster than the worker: in a backlog one partition runs days ahead of another.
    await asyncio.wait_for(publish(stream, stage.world.settings, AtRate(1_000)), 120)
    # On a stream of a few days something else may have been told, and have returned.
    incident = page.locator(".incidents a", has_text="amount", has_not_text="returned").first
    await expect(incident).to_be_visible(timeout=60_000)
    await incident.click()
    said = page.locator(".detail header")
    await expect(said.locator("h2")).to_contain_text("amount")
    await expect(said).to_contain_text(re.compile("since about 2024-01-0[567]"))


@pytest.mark.parametrize(
    ("size", "scheme"), [("wide", "light"), ("wide", "dark"), ("narrow", "light")]
)
async def test_every_view_is_accessible_and_has_its_picture_taken(
    stage, eyes, pictures, size, scheme
):
    """Axe finds nothing serious; the pictures are for a person to look at."""
    page = await eyes.page(size, scheme)
    await page.goto(stage.url)
    for view in ("now", "alerts", "alerts/1", "model", "drift", "letters", "explain", "explain/1"):
        name, _, one = view.partition("/")
        chosen = f"{name}/paid-1" if one else name
        await page.goto(f"{stage.url}/#/{chosen}")
        await expect(page.locator(".view")).to_have_attribute("data-view", name)
        await expect(page.locator("[aria-busy]")).to_have_count(0)
        assert [] == await violations(page), view
        await page.screenshot(path=pictures / f"{view.replace('/', '-')}-{size}-{scheme}.png")


async def test_the_page_says_that_the_broker_is_gone_and_that_it_is_back(stage, eyes):
    """Within seconds, and without a reload."""
    page = await eyes.page()
    await page.goto(f"{stage.url}/#/now")
    banner = page.get_by_role("alert")
    await expect(page.locator("#state")).to_have_text("scoring")
    await expect(banner).to_be_hidden()
    await asyncio.to_thread(stage.kafka.run, "stop")
    await expect(banner).to_contain_text("Kafka", timeout=45_000)
    await asyncio.to_thread(stage.kafka.run, "start")
    await expect(banner).to_be_hidden(timeout=90_000)
    await expect(page.locator("#state")).to_have_text("scoring")
