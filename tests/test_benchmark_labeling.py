"""The labelling benchmark's figures are sound: who is compared does the same work, and what is counted happened.

No speed is asserted.
"""

import http.client
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from src.benchmarks import defaults, labeling, texts
from src.benchmarks.askers import Questions, Timing, bare, labeler, openai_client
from src.benchmarks.servers import completion, serving
from src.errors import StoreError
from src.labeling.prompt import render

ROOT = Path(__file__).parents[1]
WORKERS = 4


def questions(count: int) -> Questions:
    return Questions(texts.TASK, render(texts.TASK, None), [b"\xff\xd8\xff one", b"\xff\xd8\xff two", "three"], count)


def ways(asked: Questions, base_url: str, folder: Path) -> dict[str, Callable[[], Timing]]:
    teacher = defaults.teacher(base_url)
    spec = defaults.labeler(concurrency=WORKERS, passes=1)
    return {"labeler": lambda: labeler(asked, teacher, spec, folder), "bare": lambda: bare(asked, teacher, WORKERS),
            "openai": lambda: openai_client(asked, teacher, WORKERS)}


@contextmanager
def listening() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server that keeps every body it is sent."""
    heard = []

    class Listener(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            answer = completion(texts.LABEL)
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Listener) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/v1", heard
        finally:
            server.shutdown()
            thread.join()


def test_all_who_are_compared_post_the_same_bodies(tmp_path: Path) -> None:
    def sent(ask: Callable[[], Timing]) -> list[str]:
        heard.clear()
        ask()
        return sorted(json.dumps(body, sort_keys=True) for body in heard)

    with listening() as (base_url, heard):
        bodies = {name: sent(ask) for name, ask in ways(questions(9), base_url, tmp_path).items()}
    assert len(bodies["labeler"]) == 9 and len(set(bodies["labeler"])) == 3
    assert bodies["bare"] == bodies["labeler"] and bodies["openai"] == bodies["labeler"]


def test_every_question_is_answered_once_and_none_before_its_time(tmp_path: Path) -> None:
    with serving(texts.LABEL, latency_s=0.05) as server:
        for name, ask in ways(questions(5 * WORKERS), server.base_url, tmp_path).items():
            server.anew()
            timing = ask()
            assert server.count()["answered"] == len(timing.done_at) == 5 * WORKERS, name
            # One worker at least asks five times, one after the other.
            assert timing.seconds >= 5 * 0.05 and timing.rate <= WORKERS / 0.05, name
            assert timing.cpu_s > 0 and timing.cpu_ms == pytest.approx(1e3 * timing.cpu_s / 20), name


def test_first_and_last_wave_do_not_count() -> None:
    waves = [7.0, 7.5, 8.0, 8.5, 20.0]
    timing = Timing(20.0, 1.0, [at + late for at in waves for late in (0.0, 0.01, 0.02)])
    assert timing.steady_rate(3) == pytest.approx(3 / 0.5)


def test_an_answer_that_is_not_in_the_store_is_no_figure(tmp_path: Path) -> None:
    with serving("neither praise nor blame") as server, pytest.raises(StoreError, match="0 counted as answered"):
        ways(questions(4), server.base_url, tmp_path)["labeler"]()


def test_the_bucket_takes_what_it_holds_and_says_when_to_come_back() -> None:
    with serving(texts.LABEL, rate=10) as server:
        connection = http.client.HTTPConnection(urlsplit(server.base_url).netloc)
        began, statuses = time.time(), []
        for _ in range(40):
            connection.request("POST", "/v1/chat/completions", b"{}")
            with connection.getresponse() as response:
                statuses.append(response.status)
                waits = response.headers["Retry-After"]
                assert response.status == 200 or int(waits) >= 1
                response.read()
        connection.close()
        times = server.times()
    assert statuses[:10] == [200] * 10
    assert 10 <= statuses.count(200) <= 11 + 10 * (time.time() - began)
    assert [len(times["answered"]), len(times["refused"])] == [statuses.count(200), statuses.count(429)]
    assert all(began <= at <= time.time() for kind in times.values() for at in kind)


def test_pacing_is_told_by_the_bucket_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    accepted, refused = labeling.paced(tmp_path, rate=20, seconds=2, concurrency=WORKERS)
    # A full bucket, and what it was given since; one more may be on its way.
    assert 0 < float(accepted.figure.rstrip("%")) <= 100 * (20 * 2 + 20 + 1) / (20 * 2)
    assert refused.figure == "0.0%", "nothing is asked after the first five seconds of two"
    assert "20 requests a second" in capsys.readouterr().out


@pytest.mark.slow
def test_the_suite_prints_every_bar(tmp_path: Path) -> None:
    sizes = ["repeats=2", "concurrency=[8,16]", "latency_s=0.05", "waves=6", "requests=200", "bucket_s=6",
             "stored_items=2000", "labelled_items=1000"]
    command = [sys.executable, "-m", "src.benchmark", "suite=labeling", f"home={tmp_path}", *sizes]
    told = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    bars = told[told.index("All bars"):]
    assert len(re.findall(r"│ (?:yes|NO) +│", bars)) == 8
    assert re.search(r"A store of 4,001 annotations", told), "two for each of 2,000 texts, and one about a blank one"
    shares = [float(share) for share in re.findall(r"([\d.]+)% \[", told)]
    ideal = [float(share) for share in re.findall(r"([\d.]+)% │$", told, re.MULTILINE)]
    assert min(shares) > 0 and max(ideal) <= 110
    base, early, late = (float(re.search(rf"{what} +│ +(\d+) MB", told)[1]) for what in (
        "memory with its items, before", "memory at 10% of the questions", "memory at 100%"))
    assert 50 < base <= early * 1.02 and early <= late * 1.02
