"""`python -m src.serve` as a process of its own, on a student that was really trained: what clients and the LLM see of
it, and that nobody and nothing is lost when the LLM dies and the server is told to stop."""

import asyncio
import hashlib
import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp
import mlflow
import pytest
import requests
from conftest import ROOT
from jobs import call, runs
from mlflow.entities import Run
from omegaconf import OmegaConf
from stand_in import make_errors

from src import train
from src.config import Job
from src.data.digits import bring
from src.data.images import load, shown
from src.store import DecisionLog, Store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]

PATIENCE_S = 120.0
TRAINING = ["+experiment=digits", "data=folder", "data.gold_size=60", "data.test_size=700", "labeler.max_items=200",
            "student.pretrained=false", "student.input_size=32", "student.batch_size=16", "trainer.max_epochs=6",
            "trainer.accelerator=cpu", "student.export=false"]
RATE = 30.0
SECONDS = 20.0


@contextmanager
def process(*command: str) -> Iterator[subprocess.Popen[str]]:
    running = subprocess.Popen([sys.executable, "-u", "-m", *command], cwd=ROOT, text=True, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT)
    try:
        yield running
    finally:
        running.kill()
        running.wait()
        assert running.stdout
        running.stdout.close()


def told(running: subprocess.Popen[str], pattern: str) -> str:
    """What the pattern's group finds in the first line to come that holds it."""
    assert running.stdout
    lines = []
    for line in running.stdout:
        lines.append(line)
        if found := re.search(pattern, line):
            return found[1]
    raise AssertionError("".join(lines))


@dataclass
class Llm:
    """The stand-in teacher as a process at one port, to be killed and started again, with the books that it keeps."""

    folder: Path
    port: int

    @contextmanager
    def running(self) -> Iterator[subprocess.Popen[str]]:
        files = [f"--{name}={self.folder / file}" for name, file in (
            ("task", "task.yaml"), ("errors", "errors.yaml"), ("truths", "truths.json"), ("ledger", "ledger.jsonl"))]
        with process("src.labeling.rehearsal", *files, f"--port={self.port}") as server:
            told(server, "(http)")
            yield server

    @property
    def bill_usd(self) -> float:
        lines = (self.folder / "ledger.jsonl").read_text().splitlines()
        return float(sum(json.loads(line)["cost_usd"] for line in lines))


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory, make_job: Callable[..., Job]) -> Path:
    names = make_job("+experiment=digits").task.names
    return bring(tmp_path_factory.mktemp("data") / "digits", root=None, classes=names, download=False)


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory, digits: Path, make_job: Callable[..., Job]) -> Llm:
    folder, job = tmp_path_factory.mktemp("llm"), make_job("+experiment=digits")
    truths = {}
    for path in sorted(digits.rglob("*.png")):
        seen = shown(load(path, 10**6), job.data.shown)
        truths[hashlib.sha256(seen).hexdigest()] = (hashlib.sha256(path.read_bytes()).hexdigest(), path.parent.name)
    (folder / "truths.json").write_text(json.dumps(truths))
    OmegaConf.save(OmegaConf.create(asdict(job.task)), folder / "task.yaml")
    OmegaConf.save(OmegaConf.create(asdict(make_errors(latency_ms_median=50.0))), folder / "errors.yaml")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    return Llm(folder, port)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, digits: Path, llm: Llm) -> Path:
    """A training run whose labels came from that LLM."""
    home = tmp_path_factory.mktemp("home")
    with llm.running():
        assert call(train.main, *TRAINING, f"home={home}", f"data.root={digits}", "rehearsal=never",
                    "teacher=openai_compatible", f"teacher.base_url=http://127.0.0.1:{llm.port}/v1",
                    "teacher.model=google/gemini-2.5-flash", "labeler.max_cost_usd=100") == 0
    return home


@pytest.fixture(scope="module")
def run(home: Path) -> Run:
    return runs(home)[0]


@pytest.fixture(scope="module")
def test_part(home: Path, run: Run, digits: Path) -> list[bytes]:
    """What the student did not learn from: the images of the run's own test part."""
    client = mlflow.MlflowClient(f"sqlite:///{home}/mlflow.db")
    said = (Path(client.download_artifacts(run.info.run_id, "predictions.csv"))).read_text().splitlines()
    keys = {line.split(",")[0] for line in said if line.split(",")[1] == "test"}
    found = [path.read_bytes() for path in sorted(digits.rglob("*.png"))]
    return [payload for payload in found if hashlib.sha256(payload).hexdigest() in keys]


@contextmanager
def server(home: Path, *keys: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    with process("src.serve", f"home={home}", "serving.port=0", "runtime=torch", "accelerator=cpu",
                 "serving.max_usd_per_hour=100", *keys) as running:
        yield told(running, r"Listening on (http://[\d.]+:\d+)"), running


def test_a_registered_model_is_served_and_the_llm_gets_what_nothing_is_promised_of(
        home: Path, run: Run, llm: Llm, test_part: list[bytes]) -> None:
    client = mlflow.MlflowClient(f"sqlite:///{home}/mlflow.db")
    client.create_registered_model("digits")
    client.create_model_version("digits", f"runs:/{run.info.run_id}/student", run_id=run.info.run_id)
    client.set_registered_model_alias("digits", "champion", "1")
    with llm.running(), server(home, "run=digits@champion") as (address, running):
        answer = requests.post(f"{address}/v1/decide", files=[("image", payload) for payload in test_part[:20]],
                               timeout=60).json()
        assert answer["model"] == "models:/digits/1" and answer["rehearsal"] is False
        items = answer["items"]
        assert {item["route"] for item in items} == {"teacher"} and all(item["final"] for item in items)
        assert {item["escalated"] for item in items} == {"uncertified"}
        running.send_signal(signal.SIGTERM)
        rest, _ = running.communicate(timeout=PATIENCE_S)
    assert running.returncode == 0 and "Stopped. 20 items: student 0, LLM 20, people 0, open 0" in rest
    paid = [a for a in Store(home / "annotations.db").read() if a.job == "serve"]
    assert len(paid) == 20 and all(a.cost_usd > 0 for a in paid)


async def load_it(address: str, payloads: list[bytes], events: list[tuple[float, Callable[[], None]]],
                  stop: Callable[[], None]) -> tuple[list[tuple[int, dict[str, Any]]], int, float]:
    """One request for each payload at an even rate; `events` and `stop` happen at their seconds. Returns all answers,
    how many requests found nobody once the server had been told to stop, and when that was."""
    answers: list[tuple[int, dict[str, Any]]] = []
    nobody = 0
    stopped_at = float("inf")
    async with aiohttp.ClientSession() as session:

        async def one(n: int, payload: bytes) -> None:
            nonlocal nobody
            began = time.monotonic()
            form = aiohttp.FormData({"wait": "poll"} if n % 2 else {"timeout_s": "2"})
            form.add_field("image", payload, filename="a.png")
            try:
                async with session.post(f"{address}/v1/decide", data=form) as response:
                    answers.append((response.status, await response.json()))
            except aiohttp.ClientConnectorError:
                assert began > stopped_at, "it did not listen, and had not been told to stop"
                nobody += 1

        tasks = []
        began = time.monotonic()
        for n, payload in enumerate(payloads):
            while events and time.monotonic() - began > events[0][0]:
                await asyncio.to_thread(events.pop(0)[1])
            if n == len(payloads) - 20:
                stop()
                stopped_at = time.monotonic()
            tasks.append(asyncio.create_task(one(n, payload)))
            await asyncio.sleep(max(0.0, began + (n + 1) / RATE - time.monotonic()))
        await asyncio.gather(*tasks)
    assert not events
    return answers, nobody, stopped_at


def test_the_llm_dies_and_comes_back_and_the_server_stops_and_nothing_is_lost(
        home: Path, llm: Llm, test_part: list[bytes], tmp_path: Path) -> None:
    payloads = test_part[20:20 + int(RATE * SECONDS)]
    database = tmp_path / "annotations.db"
    billed = llm.bill_usd
    came_back = 0.0
    started: list[Any] = []

    with server(home, "run=latest", "cascade.threshold=0.95", f"store={database}", "cascade.teacher_confidence=0",
                "serving.teacher_within_s=3") as (address, running):
        first = llm.running()
        first_process = first.__enter__()

        def die() -> None:
            first_process.kill()

        def come_back() -> None:
            nonlocal came_back
            again = llm.running()
            again.__enter__()
            started.append(again)
            came_back = time.time()

        def stop() -> None:
            running.send_signal(signal.SIGTERM)

        try:
            answers, _, _ = asyncio.run(load_it(address, payloads, [(SECONDS / 4, die), (SECONDS / 2, come_back)],
                                                stop))
            rest, _ = running.communicate(timeout=PATIENCE_S)
        finally:
            for one in (first, *started):
                one.__exit__(None, None, None)
    assert running.returncode == 0, rest
    status = Counter(status for status, _ in answers)
    assert set(status) <= {200, 202, 503} and status[200] > 100

    # Every accepted request is in the log, and nothing else is; what was final is what the log says.
    accepted = {body["request"]: body for code, body in answers if code != 503}
    log = DecisionLog(database)
    steps = list(log.read())
    assert {row.request for row in steps} == set(accepted)
    assert len({(row.request, row.position, row.step) for row in steps}) == len(steps)
    latest = {row.request: row for row in steps}  # oldest first
    for request, body in accepted.items():
        (item,) = body["items"]
        if item["final"]:
            assert (latest[request].answer, latest[request].route) == (item["label"], item["route"])
    still_open = [row for row in latest.values() if row.answer is None]
    assert f"{len(latest)} items: " in rest and f"open {len(still_open)}" in rest

    # While the LLM was away, people were to answer; before and after, it did.
    routes = Counter(row.route for row in latest.values())
    assert routes["student"] and routes["teacher"] and routes["human"]
    assert any(row.route == "teacher" and row.answer and row.created_at.timestamp() > came_back for row in steps)

    # The books are never below the bill, and every answer by the LLM is an annotation.
    store = Store(database)
    annotations = store.read()
    assert sum(a.cost_usd for a in annotations) >= llm.bill_usd - billed - 1e-9
    by_llm = {row.item for row in steps if row.route == "teacher" and row.answer}
    assert by_llm <= {a.item for a in annotations if a.label}

    # What is open is taken up again by the next server: the LLM is there, but these are for people.
    with llm.running(), server(home, "run=latest", "cascade.threshold=0.95", f"store={database}",
                               "cascade.teacher_confidence=0") as (address, running):
        seen = requests.get(f"{address}/review/api/progress", headers={"X-Reviewer": "rita"}, timeout=60).json()
        waiting = [row for row in DecisionLog(database).open("digits", 1) if row.route == "human"]
        assert seen["progress"]["waiting"] == len({row.item for row in waiting}) > 0
        running.send_signal(signal.SIGTERM)
        running.communicate(timeout=PATIENCE_S)
