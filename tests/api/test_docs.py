"""The examples of docs/api.md do what the page says: every curl is run."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.api.served import Served, listening

PAGE = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on this machine")
def test_every_curl_example_succeeds():
    """In the order of the page, against a worker, as somebody who reads it would."""
    served = Served(policy={"threshold": 0.0})
    served.driver.publish("transactions", b'{"transaction_id": "t-9"', key="card-9")
    served.run()
    assert 15 < len(EXAMPLES)
    said = []
    with listening(served.apps["worker-0"]) as url:
        for example in EXAMPLES[1:]:
            told = subprocess.run(
                ["bash", "-euc", example],
                env={"WEIR": url, "PATH": "/usr/bin:/bin"},
                capture_output=True,
                text=True,
                timeout=30,
                check=False,
            )
            assert 0 == told.returncode, f"{example}\n{told.stdout}\n{told.stderr}"
            said.append(told.stdout)
    assert {"t-1001", "t-9"} == {score.transaction_id for score in served.driver.read("scores")}
    assert ["learn"] == [outcome.outcome for outcome in served.driver.read("outcomes")]
    assert "event: hello" in "".join(said)
