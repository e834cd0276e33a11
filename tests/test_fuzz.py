"""The server against what schemathesis makes of its own OpenAPI document: right and wrong requests by the hundred."""

import asyncio
import sys
from pathlib import Path

import pytest
from served import KEYS, served

CONFIG = """
[checks]
# Text that is no image is refused, and a schema cannot say what an image is.
positive_data_acceptance.expected-statuses = ["200", "202", "404", "422"]
# More items than are taken are a body that is too large.
negative_data_rejection.expected-statuses = ["400", "401", "403", "404", "405", "411", "413", "415", "422"]
"""
# Of looking up a request, everything that fits its schema must be found, or not be there.
STRICT = """
[[operations]]
include-path = "/v1/requests/{request}"
checks.positive_data_acceptance.expected-statuses = ["200", "202", "404"]
"""


@pytest.mark.slow
@pytest.mark.parametrize("keys", [None, KEYS], ids=["open", "keys"])
def test_nothing_that_fits_the_document_or_does_not_breaks_the_server(
        tmp_path: Path, keys: dict[str, str] | None, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("schemathesis")
    config = tmp_path / "schemathesis.toml"
    config.write_text(CONFIG + STRICT)

    async def body() -> tuple[int | None, str, str]:
        async with served(tmp_path, keys=keys, wait_s=2) as server:
            key = {"Authorization": "Bearer ann-has-a-long-key"} if keys else {}
            fuzzing = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "schemathesis.cli", "--config-file", str(config), "run",
                f"{server.url}/openapi.json", "--seed", "1", "--max-examples", "50", "--checks", "all", "--no-color",
                *(word for name, value in key.items() for word in ("-H", f"{name}: {value}")), cwd=tmp_path,
                stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT)
            told, _ = await fuzzing.communicate()
            async with server.client.get("/metrics", headers=key) as response:
                return fuzzing.returncode, told.decode(), await response.text()

    status, told, figures = asyncio.run(body())
    assert status == 0, told
    counts = [line for line in figures.splitlines() if line.startswith("flywheel_requests_total")]
    assert not [line for line in counts if 'status="5' in line]
    decided = {line.split('status="')[1][:3] for line in counts if 'endpoint="decide"' in line}
    assert {"200", "422", "415" if not keys else "401"} <= decided, counts  # both sides were met
    assert "not foreseen" not in capsys.readouterr().err
