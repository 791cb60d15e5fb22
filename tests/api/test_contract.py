"""What is served is what the documents say: OpenAPI by schemathesis, AsyncAPI by its schemas."""

import json

import hypothesis
import jsonschema
import pytest
import schemathesis
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from app.asyncapi import asyncapi_of
from tests.api.served import Served, listening, transaction

#: Each route is asked so often; `--hypothesis-seed` repeats a run.
EXAMPLES = 10


@pytest.fixture(scope="module")
def served():
    """A worker that has something of everything to tell."""
    served = Served(policy={"threshold": 0.0}, access={"rate": 1_000_000, "timeout": "2s"})
    served.publish(*[transaction(f"t{i}", amount=1.0 + i) for i in range(20)])
    served.driver.publish("transactions", b"{", key="1")
    served.run()
    return served


@pytest.fixture(scope="module")
def api(served):
    """The document as it is served, behind a port."""
    with listening(served.apps["worker-0"]) as url:
        yield schemathesis.openapi.from_url(f"{url}/openapi.json")


#: Not now: not ready, nobody to ask, too late. All else above 499 is a mistake of ours.
NOT_NOW = {503, 504}


def conforms(case):
    """Ask, and hold the answer against the document."""
    answer = case.call(timeout=10.0)
    assert answer.status_code < 500 or answer.status_code in NOT_NOW, answer.text
    case.validate_response(
        answer,
        checks=[status_code_conformance, content_type_conformance, response_schema_conformance],
    )
    return answer.status_code


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_no_answer_is_a_server_error_or_undocumented(api, mode):
    """Whatever is asked, rightly or wrongly: a documented status, type and shape."""
    seen = set()
    for found in api.get_all_operations():
        operation = found.ok()
        if operation.path == "/v1/events":
            continue  # it has no end

        @hypothesis.settings(
            max_examples=EXAMPLES,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
        def ask(case):
            seen.add(conforms(case))

        try:
            ask()
        except hypothesis.errors.Unsatisfiable:
            assert mode is GenerationMode.NEGATIVE, operation.label  # nothing can be wrong with it
    assert {200, 404, 422} <= seen if mode is GenerationMode.POSITIVE else {400} <= seen


def test_asyncapi_names_every_topic_that_services_use(served):
    """Its payloads are the schemas that the records hold."""
    told = asyncapi_of(served.driver.settings)
    assert "3.0.0" == told["asyncapi"]
    assert {"transactions", "labels", "scores", "alerts"} <= set(told["channels"])
    for name in ("scores", "alerts"):
        payload = told["components"]["messages"][name]["payload"]
        for record in served.driver.records(name):
            jsonschema.validate(json.loads(record.value), payload)
    for name, channel in told["channels"].items():
        assert channel["address"] == getattr(served.driver.topics, name).name
