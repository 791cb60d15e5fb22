"""What the routes answer, asked as services and people ask: the real application, no broker."""

import asyncio
import json
from typing import Any, cast

import msgspec
import pytest

from app import codec
from app.records import Drift, ModelVersion, Undo
from tests.api.served import Served, transaction

ALWAYS: dict[str, Any] = {"policy": {"threshold": 0.0}}  # every score is an alert


@pytest.fixture
def served():
    """One worker that alerts of everything."""
    return Served(**ALWAYS)


async def post(served, path, value, name="worker-0", **headers):
    """The answer to a POST."""
    async with served.client(name, **headers) as client:
        return await client.post(path, json=value)


async def get(served, path, name="worker-0", **headers):
    """The answer to a GET."""
    async with served.client(name, **headers) as client:
        return await client.get(path)


def logs(served):
    """How much lies on every partition."""
    return {at: log.end for at, log in served.driver.logs.items()}


# ---- Deciding.


async def test_a_read_only_decision_is_the_one_that_is_recorded_next(served):
    """Nothing is written and nothing changes; the flow then says the same, bit for bit."""
    served.publish(*[transaction(f"t{i}", amount=10.0 + i) for i in range(5)])
    before = logs(served)
    asked = transaction("t9", amount=700.0)
    first, again = [await post(served, "/v1/score", asked) for _ in range(2)]
    assert (200, before) == (first.status_code, logs(served))
    assert first.json() == again.json()
    recorded = (await post(served, "/v1/score?record=true", asked)).json()
    assert recorded["recorded"]
    assert recorded["source"]["topic"] == "transactions"
    for name in ("score", "raw", "features", "is_alert", "reasons", "policy", "model"):
        assert first.json()[name] == recorded[name], name


async def test_in_a_group_a_decision_is_gathered_from_those_who_keep_the_entities():
    """Whichever worker is asked, the answer is that of one worker alone."""
    alone, group = Served(**ALWAYS), Served(workers=3, **ALWAYS)
    traffic = [
        transaction(f"t{i}", card_id=f"card-{i % 5}", terminal_id=f"shop-{i % 3}", amount=5.0 + i)
        for i in range(30)
    ]
    for one in (alone, group):
        one.publish(*traffic)
    for i in range(6):
        asked = transaction(f"new{i}", card_id=f"card-{i}", terminal_id=f"shop-{5 - i}")
        expected = (await post(alone, "/v1/score", asked)).json()
        for name in group.desks:
            answer = await post(group, "/v1/score", asked, name)
            assert 200 == answer.status_code
            assert (expected["features"], expected["score"]) == (
                answer.json()["features"],
                answer.json()["score"],
            )
    assert sum(cast("Any", desk.peers).n_asked for desk in group.desks.values()) > 0


async def test_in_a_group_a_recorded_decision_comes_from_the_worker_that_scores():
    """And a transaction, an entity, a label reach whoever has them, by any worker."""
    group = Served(workers=3, **ALWAYS)
    for i, name in enumerate(group.desks):
        card, identity = f"card-{i}", f"t{i}"
        asked = transaction(identity, card_id=card)
        assert (await post(group, "/v1/score?record=true", asked, name)).json()["recorded"]
        for other in group.desks:
            found = await get(group, f"/v1/transactions/{identity}", other)
            assert "waiting" == found.json()["state"]
            known = await get(group, f"/v1/entities/card_id/{card}", other)
            assert 1 == len(known.json()["transactions"])
        label = {"transaction_id": identity, "is_fraud": True, "time_ms": group.driver.now_ms}
        answer = await post(group, "/v1/labels", label, name)
        assert (202, "learn") == (answer.status_code, answer.json()["will"])
    assert ["learn"] * 3 == [one.outcome for one in group.driver.read("outcomes")]


async def test_an_id_that_was_scored_before_is_a_conflict(served):
    """Read-only by the entity's ring; recorded by the dead letter that it became."""
    served.publish(transaction("t1"))
    assert 409 == (await post(served, "/v1/score", transaction("t1"))).status_code
    answer = await post(served, "/v1/score?record=true", transaction("t1"))
    assert 409 == answer.status_code
    assert "an id that was not used before" in answer.json()["detail"]


async def test_what_cannot_be_read_is_refused_and_not_published(served):
    """The problem names the field, the value and what was expected."""
    before = logs(served)
    answer = await post(served, "/v1/score?record=true", transaction("t1", amount="12,50"))
    assert (422, before) == (answer.status_code, logs(served))
    assert "application/problem+json" == answer.headers["content-type"]
    assert [{"field": "amount", "message": 'amount is "12,50"; expected a finite number'}] == (
        answer.json()["errors"]
    )


async def test_a_batch_answers_each_by_itself(served):
    """What cannot be decided says why, and does not take the others along."""
    asked = {"transactions": [transaction("a"), {"no": 1}, transaction("b")]}
    items = (await post(served, "/v1/score/batch", asked)).json()["items"]
    assert ["a", None, "b"] == [
        item["decision"] and item["decision"]["transaction_id"] for item in items
    ]
    assert 422 == items[1]["problem"]["status"]
    await post(served, "/v1/score/batch?record=true", asked)
    assert {"a", "b"} == {score.transaction_id for score in served.driver.read("scores")}


async def test_what_is_not_scored_in_time_says_where_it_lies():
    """504, and the waiting is forgotten: nobody is kept."""
    slow = Served(access={"timeout": "1500ms"})
    cast("Any", slow).run = lambda: None  # the flow stands still
    answer = await post(slow, "/v1/score?record=true", transaction("t1"))
    assert (504, True) == (answer.status_code, "transactions[" in answer.json()["detail"])
    assert ({}, {}) == (slow.desk.refused, slow.desk.stages()[-1].awaited)


# ---- Explaining.


async def test_an_explanation_adds_up_and_its_changes_turn_the_decision():
    """Contributions and bias are the margin; what is said to turn the decision does."""
    served = Served(
        policy={"threshold": 0.5},
        model={"name": "logistic", "cold_start": 0},
        explain={"actionable": {"amount_log1p": [0.0, 12.0], "amount": [0.0, 2_000.0]}},
    )
    frauds = [transaction(f"f{i}", amount=900.0 + i, card_id=f"c{i}") for i in range(60)]
    fair = [transaction(f"g{i}", amount=5.0 + i / 9, card_id=f"d{i}") for i in range(60)]
    served.publish(*[one for pair in zip(frauds, fair, strict=True) for one in pair])
    for one in frauds + fair:
        label = {"transaction_id": one["transaction_id"], "event_time": START_MS}
        served.driver.publish("labels", {**label, "is_fraud": one in frauds})
    served.run()
    told = (await post(served, "/v1/explain", transaction("x", amount=950.0))).json()
    assert told["is_alert"]
    assert (
        sorted(map(abs, (f["contribution"] for f in told["features"])))
        == [abs(f["contribution"]) for f in told["features"]][::-1]
    )
    assert {"amount_log1p", "amount"} == set(told["searched"])
    assert told["changes"]
    for found in told["changes"]:
        assert not found["is_alert"]
        assert found["score"] < 0.5 <= told["score"]
    known = (await get(served, "/v1/transactions/f1/explain")).json()
    assert "told by the model of now" in known["note"]


START_MS = 1_780_218_000_000  # 2026-05-31T09:00:00Z


# ---- Teaching.


async def test_a_label_says_what_it_will_lead_to_and_does(served):
    """learn, duplicate, corrected, early: as the join then decides."""
    served.publish(transaction("t1"))
    now = served.driver.now_ms

    async def will(identity, is_fraud):
        body = {"transaction_id": identity, "is_fraud": is_fraud, "time_ms": now}
        return (await post(served, "/v1/labels", body)).json()["will"]

    told = [await will("t1", True), await will("t1", True), await will("t1", False)]
    assert ["learn", "duplicate", "corrected", "early"] == [*told, await will("t2", True)]
    outcomes = [one.outcome for one in served.driver.read("outcomes")]
    assert ["learn", "duplicate", "corrected"] == outcomes
    assert ("label", "local") in served.audited


async def test_the_same_idempotency_key_publishes_once(served):
    """The same answer again; another body under the same key is refused."""
    served.publish(transaction("t1"))
    body = {"transaction_id": "t1", "is_fraud": True, "time_ms": served.driver.now_ms}
    key = {"Idempotency-Key": "click-1"}
    first, again = [await post(served, "/v1/labels", body, **key) for _ in range(2)]
    assert (202, first.json()) == (again.status_code, again.json())
    assert 1 == len(served.driver.records("labels"))
    assert 422 == (await post(served, "/v1/labels", {**body, "is_fraud": False}, **key)).status_code


async def test_unsure_teaches_nothing_and_is_seen(served):
    """It is no label: nothing is published."""
    served.publish(transaction("t1"))
    answer = await post(served, "/v1/labels", {"transaction_id": "t1", "is_fraud": None})
    assert ("noted", []) == (answer.json()["will"], served.driver.records("labels"))
    assert "unsure" == (await get(served, "/v1/alerts")).json()["items"][0]["state"]


# ---- Looking on.


async def test_alerts_come_page_by_page_each_once(served):
    """Newest first, whatever comes in between; filters count before they cut."""
    served.publish(*[transaction(f"t{i}", amount=1.0 + i) for i in range(25)])
    found, cursor = [], ""
    while True:
        page = (await get(served, f"/v1/alerts?limit=10{cursor}")).json()
        found += [one["transaction_id"] for one in page["items"]]
        served.publish(transaction(f"later{len(found)}"))
        if page["next"] is None:
            break
        cursor = f"&cursor={page['next']}"
    assert (25, 25) == (len(found), len({name for name in found if name.startswith("t")}))
    one = (await get(served, "/v1/alerts?q=T7")).json()
    assert (["t7"], 1) == ([a["transaction_id"] for a in one["items"]], one["total"])
    assert 0 == (await get(served, "/v1/alerts?entity=card_id:nobody")).json()["total"]


async def test_the_riskiest_alerts_come_first_where_that_is_asked(served):
    """The highest score first; a limit keeps the highest, and there is no next page."""
    for one in range(9):
        served.publish(transaction(f"t{one}", amount=5.0 + 40.0 * one))
    every = (await get(served, "/v1/alerts")).json()["items"]
    page = (await get(served, "/v1/alerts?order=score&limit=4")).json()
    assert sorted((a["score"] for a in every), reverse=True)[:4] == [
        a["score"] for a in page["items"]
    ]
    assert (9, None) == (page["total"], page["next"])


async def test_a_label_changes_the_state_of_its_alert(served):
    """By whoever it was sent, and by what became of it."""
    served.publish(transaction("t1"))
    body = {"transaction_id": "t1", "is_fraud": True, "time_ms": served.driver.now_ms}
    await post(served, "/v1/labels", body)
    [alert] = (await get(served, "/v1/alerts?state=fraud")).json()["items"]
    [label] = alert["labels"]
    assert ("learn", "local", "analyst") == (label["outcome"], label["by"], label["source"])


async def test_dead_letters_are_listed_shown_repaired_and_dropped(served):
    """What was repaired is scored; what was settled is not open any more, on any worker."""
    bad = json.dumps(transaction("t1", amount="12,50")).encode()
    served.driver.publish("transactions", bad, key="card-1")
    served.driver.publish("labels", b"\xff{", key="x")
    served.run()
    listed = (await get(served, "/v1/dead-letters")).json()
    assert 2 == len(listed["items"]) == len(listed["by_reason"])
    of = {one["topic"]: one for one in listed["items"]}
    first, second = of["transactions"]["offset"], of["labels"]["offset"]
    whole = (await get(served, f"/v1/dead-letters/{first}")).json()
    assert (bad.decode(), True) == (whole["value"], whole["is_text"])
    assert not (await get(served, f"/v1/dead-letters/{second}")).json()["is_text"]
    unmended = await post(served, f"/v1/dead-letters/{first}/retry", {})
    assert 422 == unmended.status_code
    mended = {"value": bad.decode().replace('"12,50"', "12.5")}
    assert 202 == (await post(served, f"/v1/dead-letters/{first}/retry", mended)).status_code
    assert ["t1"] == [score.transaction_id for score in served.driver.read("scores")]
    assert 202 == (await post(served, f"/v1/dead-letters/{second}/drop", {})).status_code
    assert [] == (await get(served, "/v1/dead-letters")).json()["items"]
    settled = (await get(served, "/v1/dead-letters?state=all")).json()["items"]
    assert {"retried", "dropped"} == {one["state"] for one in settled}
    assert 409 == (await post(served, f"/v1/dead-letters/{first}/retry", mended)).status_code
    assert [("dead-letter.retry", "local"), ("dead-letter.drop", "local")] == [
        one for one in served.audited if one[0].startswith("dead")
    ]


async def test_a_reaction_is_undone_by_a_word_in_the_log(served):
    """It is audited, and lies on the examples for the learner; what is over cannot be undone."""
    drift = Drift(
        detector="CUSUM", kind="feature", subject="amount", before=1.0, after=2.0, since_ms=0,
        detected_ms=1, n_examples=9, model=ModelVersion("champion", 9, "0"), incident="drift-1",
    )  # fmt: skip
    served.driver.publish("drift", codec.encode(drift), key="drift-1")
    served.run()
    assert 404 == (await post(served, "/v1/drift/drift-2/undo", {"reason": "x"})).status_code
    assert 400 == (await post(served, "/v1/drift/drift-1/undo", {"reason": ""})).status_code
    done = await post(served, "/v1/drift/drift-1/undo", {"reason": "a holiday"})
    assert (202, "drift-1") == (done.status_code, done.json()["incident"])
    assert [Undo(incident="drift-1", actor="local", reason="a holiday")] == [
        fact for fact in served.driver.read("examples") if isinstance(fact, Undo)
    ]
    assert ("drift.undo", "local") in served.audited
    closed = msgspec.structs.replace(drift, event="closed")
    served.driver.publish("drift", codec.encode(closed), key="drift-1")
    served.run()
    assert 409 == (await post(served, "/v1/drift/drift-1/undo", {"reason": "x"})).status_code


async def test_events_tell_what_comes_and_what_was_missed(served):
    """Alerts and labels as they happen; who comes back hears what it missed, once."""
    feed = served.desk.feed
    stream = feed.listen({"version": "x"})
    assert b"event: hello" in await anext(stream)
    served.publish(transaction("t1"))
    event = (await asyncio.wait_for(anext(stream), 5)).decode()
    assert event.startswith("event: alert\nid: test-1\n")
    assert "t1" == json.loads(event.split("data: ")[1])["transaction_id"]
    await stream.aclose()
    served.publish(transaction("t2"))
    again = feed.listen({}, "test-1")
    assert b'"missed":false' in await anext(again)
    assert b'"t2"' in await anext(again)
    await again.aclose()
    stranger = feed.listen({}, "another-1")
    assert b'"missed":true' in await anext(stranger)
    await stranger.aclose()
    assert 0 == len(feed)


async def test_summary_models_and_config_are_told(served):
    """Figures of the worker; no secret in the configuration."""
    served.publish(transaction("t1"))
    told = (await get(served, "/v1/metrics/summary")).json()
    assert (1, 1, {"card_id": 1, "terminal_id": 1}) == (
        told["n_scored"],
        told["n_alerts"],
        told["entities"],
    )
    assert "champion" == (await get(served, "/v1/models")).json()["champion"]["name"]
    config = (await get(served, "/v1/config")).text
    assert served.driver.settings.learner.key.get_secret_value() not in config
