"""The serving benchmark's figures are sound: clients send what they are told and see what happened, what is held
against a bar is what its words say, and what is started is gone at the end. No speed is asserted."""

import asyncio
import json
import math
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
from aiohttp import web

from src.benchmarks import decisions, served, serving
from src.benchmarks.in_process import Asked
from src.benchmarks.machine import Elsewhere, Helper
from src.benchmarks.serving import Load
from src.benchmarks.traffic import LOST, Seen, Target, Traffic
from src.errors import DataError


class Listener:
    """Counts bodies; those that begin with `refuse` get 429, with `close` no answer, with `slow` one after 0.2 s."""

    def __init__(self) -> None:
        self.heard = Counter[str]()
        self.at_once = self.most_at_once = 0

    async def respond(self, request: web.BaseRequest) -> web.Response:
        body = (await request.read()).decode()
        self.heard[body] += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        if body.startswith("slow"):
            await asyncio.sleep(0.2)
        self.at_once -= 1
        if body.startswith("refuse"):
            return web.Response(status=429, headers={"Retry-After": "3"})
        if body.startswith("close"):
            assert request.transport
            request.transport.abort()
        return web.Response(text="x" * 100_000)


@contextmanager
def listening() -> Iterator[tuple[str, Listener]]:
    listener, ready, loop = Listener(), threading.Event(), asyncio.new_event_loop()
    stop, port = asyncio.Event(), 0

    async def serve() -> None:
        nonlocal port
        runner = web.ServerRunner(web.Server(listener.respond))
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port = runner.addresses[0][1]
        ready.set()
        await stop.wait()
        await runner.cleanup()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    ready.wait()
    try:
        yield f"http://127.0.0.1:{port}/v1/decide", listener
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


def bodies(folder: Path, *contents: str) -> Path:
    return serving._bodies(folder, [content.encode() for content in contents])


def test_clients_send_every_body_in_turn_and_see_what_became_of_it(tmp_path: Path) -> None:
    with listening() as (url, listener), Traffic() as traffic:
        target = Target(url, bodies(tmp_path / "b", "fine", "refuse me", "close", "fine too"), "text/plain")
        seen = traffic.in_turn(target, 12, clients=3)
        pid = traffic.pid
        assert listener.heard == {"fine": 3, "refuse me": 3, "close": 3, "fine too": 3}
        assert seen.answered == 6 and seen.count(429) == 3 and seen.count(LOST) == 3
        assert set(seen.retry_after_s[seen.status == 429]) == {3.0}
        assert np.isnan(seen.retry_after_s[seen.status == 200]).all()
        assert seen.rate == pytest.approx(6 / seen.seconds) and seen.cpu_s > 0
    assert not psutil.pid_exists(pid)


def test_a_stream_comes_at_its_rate_however_slow_answers_are(tmp_path: Path) -> None:
    with listening() as (url, listener), Traffic() as traffic:
        target = Target(url, bodies(tmp_path / "b", "slow"), "text/plain")
        seen = traffic.stream(target, [(100, 1.0), (20, 1.0)], seed=3)
        again = traffic.stream(target, [(100, 1.0), (20, 1.0)], seed=3)
    first, second = seen.between(0, 1), seen.between(1, 2)
    assert seen.answered == len(seen.status) == len(again.status)  # the same moments by the same seed
    assert 70 < len(first.status) < 130 and 8 < len(second.status) < 35  # about three deviations
    assert listener.most_at_once > 5  # 20 by Little's law: nobody waited for an answer before asking
    assert min(seen.ms) >= 195
    assert len(traffic_gaps := np.diff(first.at_s)) and traffic_gaps.std() > 0.3 * traffic_gaps.mean()  # not a beat


def test_nobody_listens(tmp_path: Path) -> None:
    with Traffic() as traffic:
        seen = traffic.in_turn(Target("http://127.0.0.1:9/x", bodies(tmp_path / "b", "a"), "text/plain"), 2)
    assert seen.count(LOST) == 2 and all(math.isnan(found) for found in seen.percentiles(50, 99))


def test_a_helper_that_dies_is_named() -> None:
    with Helper("src.benchmarks.traffic") as helper, pytest.raises(DataError, match=r"src\.benchmarks\.traffic ended"):
        helper.ask(nonsense=True)


def test_what_others_do_is_counted_apart() -> None:
    spin = [sys.executable, "-c", "import sys\nprint(flush=True)\nwhile True: pass"]
    with subprocess.Popen(spin, stdout=subprocess.PIPE) as busy:
        try:
            assert busy.stdout
            busy.stdout.readline()
            with Elsewhere([busy.pid]) as elsewhere:
                time.sleep(1)
        finally:
            busy.kill()
    assert 0.05 < elsewhere.cpu_s[0] < 1.5 and elsewhere.cores >= 0


def seen(ms: list[float], status: int | list[int] = 200, *, seconds: float = 10.0, again: float = math.nan) -> Seen:
    """At an even pace."""
    count = len(ms)
    statuses = np.array([status] * count if isinstance(status, int) else status)
    return Seen(np.arange(count) * seconds / count, np.array(ms), statuses,
                np.where(statuses == 429, again, math.nan), seconds, 0.0, 0.1)


def test_full_load_is_what_is_borne_without_end() -> None:
    assert serving._bears(seen([5.0] * 90))
    assert not serving._bears(seen([5.0] * 90, [200] * 89 + [429]))
    assert not serving._bears(seen([float(n) for n in range(300)]))  # everybody waits longer than the one before
    assert serving._bears(seen([1.0] * 60 + [20.0] * 30))  # slower, but nobody minds 20 ms


class Scripted(Traffic):
    """Clients of a server that bears 300 a second."""

    def __init__(self) -> None:
        self.asked: list[float] = []

    def stream(self, target: Target, stages: object, *, seed: int = 0) -> Seen:
        assert isinstance(stages, list)
        rate, seconds = stages[0]
        self.asked.append(rate)
        count = round(rate * seconds)
        return seen([5.0] * count, [200] * count if rate <= 300 else [200] * (count - 1) + [429], seconds=seconds)

    def in_turn(self, target: Target, count: int, *, clients: int = 1) -> Seen:
        return seen([5.0] * count, seconds=count / 250)


def test_full_load_is_found() -> None:
    target = Target("", Path(), "")
    assert serving.full_load(Scripted(), target, probe_s=1) == pytest.approx(300, rel=0.05)


def test_the_first_second_of_a_return_to_normal() -> None:
    late = seen([500.0] * 30 + [10.0] * 70)
    assert serving._back(late, 0.0, 10.0) == 3
    assert serving._back(late, 0.0, 400.0) == 0
    assert math.isinf(serving._back(seen([500.0] * 100), 0.0, 10.0))
    assert serving._back(seen([10.0] * 100, [429] * 20 + [200] * 80), 0.0, 10.0) == 2


def overloaded(*, during_ms: float, again: float, lost: int = 0) -> list[serving.Bar]:
    """Half load, twice the full, half load; of the middle, half is refused."""

    class Once(Scripted):
        def stream(self, target: Target, stages: object, *, seed: int = 0) -> Seen:
            ms = [10.0] * 50 + [during_ms] * 400 + [10.0] * 100
            status = [200] * 50 + [200, 429] * 200 + [LOST] * lost + [200] * (100 - lost)
            at = np.concatenate([np.linspace(0, 9.9, 50), np.linspace(10, 19.9, 400), np.linspace(20, 34.9, 100)])
            return Seen(at, np.array(ms), np.array(status),
                        np.where(np.array(status) == 429, again, math.nan), 35.0, 0.0, 0.1)

    full = Load("full", 20.0, [seen([40.0] * 100)], [1.0], [0.0])
    return serving.shed(Once(), Target("", Path(), ""), 20.0, full, load_s=10.0)


def test_bars_of_overload_say_what_they_count() -> None:
    assert [bar.reached for bar in overloaded(during_ms=79.0, again=1.0)] == [True, True, True]
    assert [bar.reached for bar in overloaded(during_ms=81.0, again=1.0)] == [True, False, True]
    assert [bar.reached for bar in overloaded(during_ms=79.0, again=math.nan)] == [False, True, True]
    assert not overloaded(during_ms=79.0, again=1.0, lost=3)[0].reached
    assert "200 turned away, 200 with Retry-After" in overloaded(during_ms=79.0, again=1.0)[0].figure


def test_half_load_is_held_against_one_process() -> None:
    class Alone(Helper):
        def __init__(self) -> None:
            pass

        def ask(self, **command: object) -> dict[str, object]:
            return {"ms": [2.0] * 9, "cpu_s": 0.01} if not command["gap_s"] else {"ms": [4.0] * 9, "cpu_s": 0.01}

    def bar(ms: float) -> serving.Bar:
        loads = [Load(name, share * 100, [seen([ms * share * 2] * 9)] * 3, [1.0] * 3, [0.0] * 3)
                 for name, share in serving.SHARES]
        return serving.waited(loads, Alone(), wait_ms=2.0)

    assert bar(8.0).reached and not bar(8.1).reached  # 2 + 3 × 2
    assert bar(8.0).wanted == "2 + 3 × 2.00 = 8.0 ms"
    assert bar(8.0).figure == "8.0 ms (2 + 3.0 × 2.00, or 1.5 × the paced 4.00)"


@pytest.mark.parametrize("kind", ["logged", "replayed"])
def test_decisions_are_all_there_and_memory_is_watched(tmp_path: Path, kind: str) -> None:
    found = asyncio.run(getattr(decisions, kind)(tmp_path / "d.db", 1500))
    assert 0 < found["early"] <= found["most"] and found["seconds"] > 0
    assert 100 < found["bytes"] < 2000 and 0 < found["p50_ms"] <= found["p99_ms"]
    if kind == "replayed":
        assert found["escalated"] == 150


def test_growth_is_told_and_a_failure_too(capsys: pytest.CaptureFixture[str]) -> None:
    bar = serving.grown("1,000 decisions", "--logged", 1000)
    assert bar.wanted == "within 50 MB" and bar.figure.endswith(" MB") and "bytes a step" in capsys.readouterr().out
    with pytest.raises(DataError, match="failed"):
        serving.grown("none", "--nonsense", 1)


def test_without_a_server_the_same_files_are_answered() -> None:
    class Student:
        input_size, sharpen = 8, False

        def __init__(self) -> None:
            self.sizes: list[int] = []

        def predict(self, images: np.ndarray) -> np.ndarray:
            assert images.shape[1:] == (3, 8, 8) and images.dtype == np.uint8
            self.sizes.append(len(images))
            return np.ones((len(images), 1))

    from served import picture

    student = Student()
    asked = Asked(student, [picture(10), picture(200)], 10_000)  # type: ignore[arg-type]
    assert asked.batches(size=5, count=4)["images"] == 20 and student.sizes == [5] * 7
    assert len(asked.singles(count=6, gap_s=0.0)["ms"]) == 6


def test_a_server_that_does_not_start_is_quoted_and_gone(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; print('no such thing'); sys.exit(3)"]
    with pytest.raises(DataError, match="no such thing"), served._running(command, {}, tmp_path / "log") as process:
        served._until(process, tmp_path / "log", served._address)


def test_a_server_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    child = "import time; print('Listening on http://127.0.0.1:80: there', flush=True); time.sleep(600)"
    command = [sys.executable, "-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"]
    with served._running(command, {}, tmp_path / "log") as process:
        assert served._until(process, tmp_path / "log", served._address) == "http://127.0.0.1:80"
        family = [process.pid, *(one.pid for one in psutil.Process(process.pid).children(recursive=True))]
        assert len(family) == 2
    assert not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in family)


def test_hydra_reads_quoted_values_as_they_are() -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    for value in ("a b", "it's", "x,y", "C:\\data", "$HOME", "{a: 1}", "sqlite:////tmp/a.db"):
        parsed = OverridesParser.create().parse_override(f"home={served._quoted(value)}")
        assert parsed.value() == value, json.dumps(value)
