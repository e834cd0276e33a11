"""Somebody else's servers take what the labeler sends: `transformers`, with a model that sees, and MLflow's AI gateway
in front of it. Both come with the pinned dependencies, run offline, and refuse what breaks the protocol."""

import asyncio
import colorsys
import copy
import importlib.util
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest
from PIL import Image
from scripted_server import HOW, PROMPT, TASK, make_spec, make_teacher

from src.data.spec import Shown
from src.labeling.ask import Answers, Survey
from src.labeling.client import Client, Fault
from src.store import Store
from src.task import Failure, Item

pytestmark = [pytest.mark.slow, pytest.mark.skipif(importlib.util.find_spec("transformers") is None,
                                                   reason="transformers is not installed; it comes with crowd-kit")]
TESTS = Path(__file__).parent
PATIENCE_S = 240.0
MODEL = "seeing-model"
SERVERS = ("transformers", "mlflow")
# Whoever tried to reach another host would fail, and neither reports its use.
OFFLINE = {
    "HF_HUB_OFFLINE": "1", "HTTP_PROXY": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9",
    "NO_PROXY": "127.0.0.1,localhost", "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true",
    "OMP_NUM_THREADS": "1",
}
GATEWAY = {
    "MLFLOW_GATEWAY_API_BASE_ALLOW_PRIVATE_IPS": "true", "MLFLOW_GATEWAY_API_BASE_ALLOWED_SCHEMES": "http",
    "MLFLOW_CRYPTO_KEK_PASSPHRASE": "for a test alone", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
}


def post(address: str, body: object) -> tuple[int, Any]:
    request = urllib.request.Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(request, timeout=60) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def start(command: list[str], log: Path, **changes: str) -> "subprocess.Popen[str]":
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    with log.open("w") as errors:
        # A session of its own: MLflow's server is a process below the one that is started.
        return subprocess.Popen(command, cwd=log.parent, env=environment | OFFLINE | changes, text=True,
                                stdout=subprocess.PIPE, stderr=errors, start_new_session=True)


def wait_for(address: str, process: "subprocess.Popen[str]", log: Path) -> None:
    """Return when it answers there."""
    give_up = time.monotonic() + PATIENCE_S
    host, port = address.split("/")[2].split(":")
    while True:
        assert process.poll() is None and time.monotonic() < give_up, log.read_text()[-3000:]
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
            return
        except OSError:
            time.sleep(0.2)


def behind_the_gateway(gateway: str, upstream: str) -> None:
    """Tell MLflow's gateway to pass questions for MODEL on."""
    to = f"{gateway}/api/3.0/mlflow/gateway"
    secret = {"secret_name": "none", "secret_value": {"api_key": "none"}, "provider": "openai",
              "auth_config": {"api_base": upstream}}
    status, made = post(f"{to}/secrets/create", secret)
    assert status == 200, made
    model = {"name": MODEL, "secret_id": made["secret"]["secret_id"], "provider": "openai", "model_name": MODEL}
    status, made = post(f"{to}/model-definitions/create", model)
    assert status == 200, made
    linked = {"model_definition_id": made["model_definition"]["model_definition_id"], "linkage_type": "PRIMARY"}
    status, made = post(f"{to}/endpoints/create", {"name": MODEL, "usage_tracking": False, "model_configs": [linked]})
    assert status == 200, made


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Their base URLs, by name."""
    home = tmp_path_factory.mktemp("servers")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        gateway = f"http://127.0.0.1:{free.getsockname()[1]}"
    logs = {name: home / f"{name}.log" for name in SERVERS}
    processes = {
        "transformers": start([sys.executable, str(TESTS / "seeing_model.py")], logs["transformers"]),
        "mlflow": start([sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port",
                         gateway.split(":")[2], "--workers", "1", "--backend-store-uri", f"sqlite:///{home}/mlflow.db",
                         "--artifacts-destination", str(home / "artifacts")], logs["mlflow"], **GATEWAY),
    }
    try:
        said: IO[str] | None = processes["transformers"].stdout
        assert said is not None
        upstream = said.readline().strip()
        assert upstream, logs["transformers"].read_text()[-3000:]
        wait_for(upstream, processes["transformers"], logs["transformers"])
        wait_for(gateway, processes["mlflow"], logs["mlflow"])
        behind_the_gateway(gateway, upstream)
        yield {"transformers": upstream, "mlflow": f"{gateway}/gateway/mlflow/v1"}
    finally:
        for process in processes.values():
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def pictures(folder: Path, count: int) -> list[Item]:
    """Shades of red and of green in turn."""
    items = []
    for n in range(count):
        red, green, blue = colorsys.hsv_to_rgb((n % 2) / 3, 0.5 + 0.04 * n, 0.8)
        path = folder / f"{n}.png"
        Image.new("RGB", (32, 32), (round(255 * red), round(255 * green), round(255 * blue))).save(path)
        items.append(Item(f"{n:064x}", path, path.name, truth=TASK.names[n % 2]))
    return items


def sentences(count: int) -> list[Item]:
    return [Item(f"{n:064x}", f"Number {n} is {('red', 'green')[n % 2]} all over", str(n), truth=TASK.names[n % 2])
            for n in range(count)]


def survey(base_url: str, items: list[Item], store: Store, *, how: Shown | None, teacher: dict[str, Any],
           **changes: Any) -> tuple[Survey, Answers]:
    fields = {"model": MODEL, "timeout_s": 120.0, **teacher}
    made = Survey(task=TASK, teachers=[make_teacher(base_url, **fields)], arbiter=None, how=how,
                  spec=make_spec(**changes), store=store, rehearsal=None, max_pixels=10**6, seed=0, job="j")
    return made, made.run(items[:8], items[8:], lambda annotations: None)


@pytest.mark.parametrize("json_mode", ["json_schema", "json_object", "none"])
@pytest.mark.parametrize("server", SERVERS)
def test_every_request_is_taken_and_every_answer_stored(servers: dict[str, str], store: Store, tmp_path: Path,
                                                        server: str, json_mode: str) -> None:
    items = pictures(tmp_path, 12)
    asked, answers = survey(servers[server], items, store, how=HOW, teacher={"json_mode": json_mode}, passes=2,
                            preflight=True, pilot=4)
    # Two passes, and the blank picture of the preflight.
    assert asked.figures()["label/requests"] == 25 and answers.asked.outcomes == {"answered": 25}
    kept = {(a.item, a.pass_index): a for a in answers.annotations}
    assert len(kept) == len(answers.annotations) == 24
    # It has seen the pictures: nothing else tells apples from pears.
    assert all(kept[item.key, n].label == item.truth for item in items for n in (0, 1))
    assert {(a.failure, a.confidence, a.tokens_out) for a in answers.annotations} == {(None, 0.9, 2)}
    assert all(MODEL in a.model and a.tokens_in > 0 for a in answers.annotations)


@pytest.mark.parametrize("server", SERVERS)
def test_texts_are_taken_too(servers: dict[str, str], store: Store, server: str) -> None:
    items = sentences(12)
    _, answers = survey(servers[server], items, store, how=None, teacher={})
    assert answers.asked.outcomes == {"answered": 12}
    assert {a.item: a.label for a in answers.annotations} == {item.key: item.truth for item in items}


def jpeg() -> bytes:
    picture = io.BytesIO()
    Image.new("RGB", (16, 16), (200, 30, 30)).save(picture, "JPEG")
    return picture.getvalue()


@pytest.mark.parametrize("server", SERVERS)
def test_a_question_asked_once_more_is_taken_too(servers: dict[str, str], server: str) -> None:
    async def ask() -> None:
        teacher = make_teacher(servers[server], model=MODEL, timeout_s=120.0)
        async with Client(teacher, PROMPT, TASK, connections=1) as client:
            outcome = await client.ask(jpeg(), "q-0", Fault("It is an apple.", "it is not one JSON object"))
            assert (outcome.failure, outcome.label) == (None, "apple")

    asyncio.run(ask())


# That they take something means little where they take anything


def without_messages(body: dict[str, Any]) -> None:
    del body["messages"]


def no_messages(body: dict[str, Any]) -> None:
    body["messages"] = []


def another_apis_image_part(body: dict[str, Any]) -> None:
    url = body["messages"][1]["content"][1]["image_url"]["url"]
    body["messages"][1]["content"][1] = {"type": "input_image", "image_url": url}


def a_bare_address(body: dict[str, Any]) -> None:
    part = body["messages"][1]["content"][1]
    part["image_url"] = part["image_url"]["url"]


def no_such_format(body: dict[str, Any]) -> None:
    body["response_format"] = {"type": "yaml"}


def a_format_without_its_schema(body: dict[str, Any]) -> None:
    del body["response_format"]["json_schema"]["schema"]


def no_tokens(body: dict[str, Any]) -> None:
    body["max_tokens"] = 0


def too_hot(body: dict[str, Any]) -> None:
    body["temperature"] = 3.0


def another_model(body: dict[str, Any]) -> None:
    body["model"] = "another"


def an_unknown_field(body: dict[str, Any]) -> None:
    body["provider"] = {"data_collection": "deny"}


@pytest.mark.parametrize(("server", "breach", "status"), [
    *(("mlflow", breach, 400) for breach in (
        without_messages, no_messages, another_apis_image_part, a_bare_address, no_such_format,
        a_format_without_its_schema, no_tokens, too_hot)),
    ("mlflow", another_model, 404),
    ("mlflow", an_unknown_field, 422),  # passed on, and refused behind it
    ("transformers", an_unknown_field, 422),
])
def test_a_broken_request_is_refused(servers: dict[str, str], server: str, breach: Callable[[dict[str, Any]], None],
                                     status: int) -> None:
    address = f"{servers[server]}/chat/completions"
    client = Client(make_teacher(servers[server], model=MODEL, json_mode="json_schema"), PROMPT, TASK, connections=1)
    whole = client.body(jpeg())
    assert post(address, whole)[0] == 200
    broken = copy.deepcopy(whole)
    breach(broken)
    got, said = post(address, broken)
    assert got == status, said


@pytest.mark.parametrize(("server", "fault"), [("mlflow", {"sampling": {"top_p": 7}}),
                                               ("transformers", {"routing": {"provider": {}}})])
def test_a_refusal_has_its_name_and_the_servers_words(servers: dict[str, str], store: Store, tmp_path: Path,
                                                      server: str, fault: dict[str, Any]) -> None:
    _, answers = survey(servers[server], pictures(tmp_path, 4), store, how=HOW, teacher=fault)
    assert answers.asked.outcomes == {"bad_request": 4}
    field = next(iter(next(iter(fault.values()))))
    assert all(a.failure == Failure.BAD_REQUEST and field in a.why for a in answers.annotations)
