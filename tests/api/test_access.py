"""Who may do what: the table is made from the OpenAPI document, so no route can be forgotten."""

import re
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest

from app import access
from app.access import Seal, Who, new_token
from app.api import doors
from app.config import TokenSettings, load
from app.errors import Misconfigured
from app.kafka import now_ms
from app.peers import PEER_HEADER
from tests.api.served import Served, transaction

ROLES = ("read", "feedback", "admin")
TOKENS = {role: new_token(role) for role in ROLES}
ACCESS: dict[str, Any] = {
    "tokens": [{"name": role, "role": role, "hash": TOKENS[role][1]} for role in ROLES],
    "rate": 100_000,
}


@pytest.fixture(scope="module")
def served():
    """A worker that wants tokens."""
    return Served(access=ACCESS)


def bearer(role):
    """The header of somebody with a role."""
    return {"Authorization": f"Bearer {TOKENS[role][0]}"}


async def ask(served, method, path, **more):
    """The answer; of events its beginning."""
    async with served.client() as client:
        return await client.request(method, path, **more)


async def operations(served):
    """(method, path, role) of all that is served and described."""
    told = (await ask(served, "GET", "/openapi.json", headers=bearer("read"))).json()
    return [
        (method.upper(), re.sub(r"\{[^}]+\}", "1", path), one["x-weir-role"])
        for path, methods in told["paths"].items()
        for method, one in methods.items()
    ]


async def test_every_route_refuses_without_its_role(served):
    """Without a token 401, with a lesser role 403; with its own neither."""
    table = await operations(served)
    assert 20 < len(table)
    assert {"open", *ROLES} == {role for _, _, role in table}
    for method, path, role in table:
        if role == "open":
            assert path in {"/healthz", "/readyz"}
            assert 200 == (await ask(served, method, path)).status_code
            continue
        answer = await ask(served, method, path, json={})
        assert (401, "Bearer") == (answer.status_code, answer.headers["www-authenticate"]), path
        for lesser in ROLES[: ROLES.index(role)]:
            answer = await ask(served, method, path, json={}, headers=bearer(lesser))
            assert 403 == answer.status_code, (method, path, lesser)
            assert "application/problem+json" == answer.headers["content-type"]
        if path != "/v1/events":  # it has no end
            answer = await ask(served, method, path, json={}, headers=bearer(role))
            assert answer.status_code not in {401, 403, 500}, (method, path, role)


async def test_no_route_is_served_that_the_document_does_not_describe(served):
    """But for the documents themselves, the page, and what workers ask each other."""
    told = (await ask(served, "GET", "/openapi.json", headers=bearer("read"))).json()
    paths = {route.path_format for route in served.apps["worker-0"].litestar.routes}
    known = {"/", "/internal/peek", "/openapi.json", "/asyncapi.json"}
    assert set() == {p for p in paths - set(told["paths"]) - known if not p.startswith("/console")}


async def test_to_record_takes_more_than_to_ask(served):
    """Read-only decisions are reading; a recorded one changes what is known."""
    value = transaction("t-role")
    for path, body in (("/v1/score", value), ("/v1/score/batch", {"transactions": [value]})):
        asked = await ask(served, "POST", path, json=body, headers=bearer("read"))
        assert 200 == asked.status_code
        refused = await ask(served, "POST", f"{path}?record=1", json=body, headers=bearer("read"))
        assert 403 == refused.status_code


@pytest.mark.parametrize("token", ["", "weir.read.wrong", "x", "weir.nobody.x", "weir.read."])
async def test_a_wrong_token_is_nobody(token):
    """Whatever is wrong with it; and it is remembered, so that asking again costs nothing."""
    served = Served(access=ACCESS)
    for _ in range(2):
        answer = await ask(served, "GET", "/v1/me", headers={"Authorization": f"Bearer {token}"})
        assert 401 == answer.status_code


async def test_guessing_is_slow(monkeypatch):
    """So many tokens a second that were not seen before, and no more."""
    clock = SimpleNamespace(monotonic=lambda: 7.5)
    monkeypatch.setattr(doors, "time", clock)
    served = Served(access=ACCESS)
    guesses = [{"Authorization": f"Bearer weir.{ROLES[0]}.{i}"} for i in range(9)]
    told = [await ask(served, "GET", "/v1/me", headers=guess) for guess in guesses]
    assert [401] * 5 + [429] * 4 == [answer.status_code for answer in told]
    clock.monotonic = lambda: 8.0
    assert 401 == (await ask(served, "GET", "/v1/me", headers=guesses[-1])).status_code


def test_guesses_keep_nobody_out_who_has_a_token(monkeypatch):
    """However many are guessed, of whatever names: what is right stays known."""
    right, wrong = TOKENS[ROLES[0]][0], [f"weir.{ROLES[0]}.{i}" for i in range(3_000)]
    monkeypatch.setattr(access, "is_token", lambda token, hashed: token == right)
    tokens = access.Tokens([TokenSettings(**told) for told in ACCESS["tokens"]])
    assert (False, None) == tokens.known(right)
    who = tokens.find(right)
    assert {None} == {tokens.find(guess) for guess in wrong}
    assert (True, None) == tokens.known("weir.nobody.x"), "no hash is spent on it"
    assert (True, None) == tokens.known(wrong[-1])
    assert (True, who) == tokens.known(right)


# ---- Pages of other sites, and names that were rebound.


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:6066"}, 200),
        ({"Host": "[::1]:6066"}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Host": ""}, 403),
        ({"Host": "127.0.0.1.evil.example:6066"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1"}, 200),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, 200),
    ],
)
async def test_a_page_from_elsewhere_gets_nothing(headers, status):
    """Even where nobody has to say who they are."""
    answer = await ask(Served(), "GET", "/v1/me", headers=headers)
    assert status == answer.status_code


async def test_a_form_of_another_site_changes_nothing():
    """A POST that a browser sends without asking first has a body that is not JSON."""
    served = Served()
    body = "transaction_id=t1&is_fraud=true"
    for kind in ("application/x-www-form-urlencoded", "text/plain", "multipart/form-data"):
        headers = {"Origin": "http://evil.example", "Content-Type": kind}
        answer = await ask(served, "POST", "/v1/labels", content=body, headers=headers)
        assert 403 == answer.status_code
    assert [] == served.driver.records("labels")


async def test_every_answer_has_the_headers_that_keep_a_page_in_its_place():
    """Also errors, and pages that are not there."""
    for path in ("/healthz", "/v1/me", "/v1/nothing", "/"):
        headers = (await ask(Served(), "GET", path)).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "nosniff" == headers["x-content-type-options"]
        assert "set-cookie" not in headers


# ---- A reverse proxy, other workers, bounds.


async def test_a_proxy_says_who_somebody_is():
    """Its header counts if it comes from its address; from elsewhere it is a lie."""
    told = {"proxy_header": "X-User", "proxy_role_header": "X-Role", "proxies": ["10.0.0.1"]}
    served = Served(access=told)
    app, headers = served.apps["worker-0"], {"X-User": "anna", "X-Role": "feedback"}
    for client, expected in ((("10.0.0.1", 1), 200), (("10.0.0.2", 1), 401)):
        transport = httpx.ASGITransport(app=cast("Any", app), client=client)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as asked:
            answer = await asked.get("/v1/me", headers=headers)
            assert expected == answer.status_code
            if expected == 200:
                assert ("anna", "feedback") == (answer.json()["name"], answer.json()["role"])
            bad = await asked.get("/v1/me", headers={"X-User": "anna", "X-Role": "root"})
            assert 401 == bad.status_code


async def test_what_workers_ask_each_other_is_signed(served):
    """A signature of another path, of another key or of long ago opens nothing."""
    key = served.driver.settings.learner.key.get_secret_value().encode()
    seal, who, now = Seal(key), Who("anna", "admin"), now_ms()
    for sealed, expected in (
        (seal.sign(who, "GET", "/v1/me", b"", now), 200),
        (seal.sign(who, "GET", "/v1/config", b"", now), 401),
        (seal.sign(who, "GET", "/v1/me", b"", now - 120_000), 401),
        (Seal(b"another").sign(who, "GET", "/v1/me", b"", now), 401),
        ("nonsense", 401),
    ):
        answer = await ask(served, "GET", "/v1/me", headers={PEER_HEADER: sealed})
        assert expected == answer.status_code
    assert (
        403
        == (
            await ask(served, "POST", "/internal/peek", content=b"", headers=bearer("admin"))
        ).status_code
    )


async def test_bodies_and_rates_have_bounds():
    """413 and 429, with a problem document and when to come again."""
    served = Served(access={"body_max": 2_048, "rate": 5})
    big = transaction("t1", card_id="x" * 4_096)
    assert 413 == (await ask(served, "POST", "/v1/score", json=big)).status_code
    told = [await ask(served, "GET", "/v1/me") for _ in range(20)]
    late = next(answer for answer in told if answer.status_code == 429)
    assert "1" == late.headers["retry-after"]


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"worker": {"web_host": "::"}}, "weir token new"),
        ({"worker": {"web_host": "10.0.0.1"}, "access": {"proxy_header": "X"}}, "learner.key"),
    ],
)
def test_nothing_is_bound_beyond_this_machine_without_tokens(monkeypatch, tables, words):
    """The configuration refuses it, and says what to do."""
    for table, values in tables.items():
        for name, value in values.items():
            monkeypatch.setenv(f"WEIR_{table}__{name}".upper(), value)
    with pytest.raises(Misconfigured, match=re.escape(words)):
        load(profile="card")
