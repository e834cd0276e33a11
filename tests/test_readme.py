"""The README's commands do what it says, in a fresh copy with an empty `mlruns/`; those that cost money left out."""

import os
import re
import shutil
import signal
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FENCES = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.M | re.S)
BLOCKS = [text for language, text in FENCES if language == "bash"]
FREE = [block for block in BLOCKS if "costs money" not in block and "needs a server" not in block]
TABLE = re.findall(r"^\| [^|]+ \| `(\.venv/bin/python -m [^`]+)`", README, re.M)
# These commands are for real sizes; here they only have to work, and must not ask a real teacher.
SMALL = ["rehearsal=always", "labeler.max_items=60", "data.gold_size=40", "student.pretrained=false",
         "student.input_size=32", "student.batch_size=16", "trainer.max_epochs=1"]


def lines(block: str) -> list[str]:
    joined = block.replace("\\\n", " ")
    return [line.split("#")[0].strip() for line in joined.splitlines() if line.split("#")[0].strip()]


def small(command: str) -> str:
    return " ".join([command, *(key for key in SMALL if key not in command)])


def test_the_readme_still_holds_what_is_tested_here() -> None:
    assert ["make demo", "make test"] in [lines(block) for block in FREE]
    assert len(BLOCKS) - len(FREE) == 2 and len(TABLE) == 10


def test_the_way_without_make_is_the_makefiles_own() -> None:
    makefile = (ROOT / "Makefile").read_text()
    plain = next(text for language, text in FENCES if not language and "venv" in text)
    assert "-m pip install" in plain and "-r requirements.txt" in plain and "-r requirements.txt" in makefile
    assert ".venv/bin/python -m src.train +experiment=demo" in plain
    assert "$(BIN)/python -m src.train +experiment=demo" in makefile
    # The Makefile runs the same tests side by side.
    chosen = '-m "not slow and not shared"'
    assert f".venv/bin/python -m pytest -q {chosen}" in plain
    assert re.search(rf"\$\(BIN\)/python -m pytest -q .*{chosen}", makefile)


def test_ci_runs_the_readmes_test_command() -> None:
    assert "\nmake test\n" in (ROOT / ".ci" / "run").read_text()


def test_make_help_lists_every_target() -> None:
    told = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    assert targets and all(f"make {target} " in told for target in targets)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project as a user has it after installing, with nothing run yet."""
    copy = tmp_path_factory.mktemp("clone") / "flywheel"
    left_out = shutil.ignore_patterns(".venv", "mlruns", ".git", "*_cache", "__pycache__")
    shutil.copytree(ROOT, copy, ignore=left_out)
    (copy / ".venv").symlink_to(Path(os.environ.get("VIRTUAL_ENV", ROOT / ".venv")))
    (copy / "mlruns").mkdir()
    return copy


def environment() -> dict[str, str]:
    """A newcomer's: no keys, nothing of ours."""
    ours = ("MLFLOW", "FLYWHEEL")
    return {k: v for k, v in os.environ.items() if not k.endswith("_API_KEY") and not k.startswith(ours)}


def run(command: str, where: Path) -> str:
    """Output and errors together; fails the test with both where the command fails."""
    done = subprocess.run(command, shell=True, cwd=where, env=environment(), text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}"
    assert "Traceback" not in done.stdout
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_demo_shows_what_it_promises_and_asks_once(clone: Path) -> None:
    told = run("make demo", clone)
    assert "Results REHEARSAL (stand-in teacher, drawn images)" in told and "accuracy against truth (test)" in told
    assert re.search(r"Files: mlruns/outputs/\S+", told)
    assert "Look at it: .venv/bin/mlflow ui --backend-store-uri sqlite:///mlruns/mlflow.db" in told
    accuracy = re.search(r"accuracy against truth \(test\) +│ (0\.\d+)", told)
    drawn = next((clone / "mlruns" / "data").glob("*-rendered-*/"))
    assert accuracy and float(accuracy[1]) >= pixels_alone(drawn) + 0.05
    # What the target runs; an epoch will do to see that nobody is asked.
    again = run(".venv/bin/python -m src.train +experiment=demo trainer.max_epochs=1", clone)
    assert re.search(r"Labels: \S+: 0 questions to ask", again) and "requests in this run" in again
    answer = served("make serve KEYS=serving.port=0", clone)
    assert answer["rehearsal"] and answer["items"][0]["student"]["label"]


def pixels_alone(root: Path) -> float:
    """Test accuracy of logistic regression on the pixels of all training pictures with their true labels."""
    def read(part: str) -> tuple[np.ndarray, list[str]]:
        paths = sorted((root / part).rglob("*.png"))
        pixels = [np.asarray(Image.open(path), np.float32).ravel() for path in paths]
        return np.stack(pixels), [path.parent.name for path in paths]

    (train, truth), (test, expected) = read("train"), read("test")
    model = make_pipeline(StandardScaler(), LogisticRegression(C=1e-3, max_iter=200)).fit(train, truth)
    return float(model.score(test, expected))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_other_commands_run(clone: Path) -> None:
    for block in FREE:
        for command in lines(block):
            if not command.startswith("make"):
                made = run(small(command), clone)
                assert "Results REHEARSAL" in made
    found = re.search(r"src\.evaluate run=(\w+)", made)
    for command in TABLE:
        if "src.evaluate" in command:
            assert found and "judged again" in run(command.replace("<id>", found[1]), clone)
        elif "src.certify" in command:
            assert "Gold items needed" in run(command, clone)
        elif "src.serve" in command:
            assert found
            answers = served(f"{command} serving.port=0".replace("<id>", found[1]), clone)
            assert [item["position"] for item in answers["items"]] == [0] and answers["rehearsal"]
        elif "src.decisions" in command:
            assert "decisions.csv" in run(f"{command} task=digits", clone)
            assert len((clone / "decisions.csv").read_text().splitlines()) >= 2
        elif "src.cost" in command:
            assert "The flywheel pays at 1,000,000 items a month" in run(command, clone)
        elif "src.report" in command:
            assert found and "report.html" in run(command.replace("<id>", found[1]), clone)
        elif "src.search" in command:
            assert "2 of 2 jobs finished" in run(f"{small(command)} search.trials=2", clone)
        else:
            run(small(command), clone)


def served(command: str, where: Path) -> dict[str, Any]:
    """What the server of this command answers about one of the prepared images."""
    image = next((where / "mlruns" / "data").glob("*-*/**/*.png")).read_bytes()
    server = subprocess.Popen(command, shell=True, cwd=where, text=True, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, env=environment(), start_new_session=True)
    try:
        assert server.stdout
        told = []
        for line in server.stdout:
            told.append(line)
            if found := re.search(r"Listening on (http://[\d.]+:\d+)", line):
                answer = requests.post(f"{found[1]}/v1/decide?wait=student", files={"image": image}, timeout=60)
                assert answer.status_code == 200
                return dict(answer.json())
        raise AssertionError("".join(told))
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        assert "Stopped." in server.communicate(timeout=60)[0]


@pytest.mark.slow
def test_make_ui_serves_the_runs(clone: Path) -> None:
    (clone / "mlruns").mkdir(exist_ok=True)
    server = subprocess.Popen(["make", "ui"], cwd=clone, start_new_session=True, stdout=subprocess.DEVNULL,
                              stderr=subprocess.DEVNULL, env={**os.environ, "MLFLOW_PORT": "5987"})
    try:
        for _ in range(90):
            time.sleep(1)
            try:
                with urllib.request.urlopen("http://127.0.0.1:5987/health", timeout=5) as answer:
                    assert answer.status == 200
                    return
            except OSError:
                assert server.poll() is None, "the UI ended by itself"
        pytest.fail("no answer from the UI within 90 s")
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)
