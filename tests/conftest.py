"""What many tests start from. Nothing here reaches beyond loopback."""

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

# What is computed here is so small that threads mostly wait for each other, and beside other work they do so for
# minutes. This must stand before numpy is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import review_folder
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from src.config import Job, read
from src.quality.review_file import ReviewFile
from src.store import Store

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"

# Side by side, the longest files go first: one that begins last is waited for alone.
LONGEST = ("test_train", "test_interrupt", "test_server", "test_faults", "test_certify_job", "test_runtimes",
           "test_review_job", "test_student", "test_labeler", "test_teacher_lane", "test_benchmark_inference")

# A key in the developer's own environment must not turn a test into a paid run, and no library may phone home.
for name in ("OPENROUTER_API_KEY", "OPENAI_API_KEY", "MLFLOW_TRACKING_URI"):
    os.environ.pop(name, None)
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["ORT_DISABLE_TELEMETRY"] = "1"


# What a sweep leaves in its process's environment for its jobs.
SWEEPS_OWN = ("FLYWHEEL_PARENT_RUN", "FLYWHEEL_SWEPT", "MLFLOW_TRACKING_URI")


def as_it_was() -> Iterator[None]:
    """Takes back what was done to the environment: a sweep's run must not become the parent of a later test's."""
    before = {name: os.environ.get(name) for name in SWEEPS_OWN}
    yield
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


# Both, since a sweep may be what a module's tests share.
after_each_test = pytest.fixture(autouse=True, name="after_each_test")(as_it_was)
after_each_module = pytest.fixture(autouse=True, scope="module", name="after_each_module")(as_it_was)


@functools.cache
def composed(name: str, *overrides: str) -> DictConfig:
    """A config from `conf/`; kept, since Hydra takes a third of a second for each. Change copies of it only."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose(name, overrides=list(overrides))


@pytest.fixture(scope="session")
def make_job(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Job]:
    """A typed config from `conf/`, with all state below a temporary folder."""
    home = tmp_path_factory.mktemp("home")

    def make(*overrides: str) -> Job:
        job = read(composed("job", f"home={home}", *overrides), Job)
        assert isinstance(job, Job)
        return job

    return make


@pytest.fixture(scope="session")
def loaded() -> dict[str, set[str]]:
    """What a process has loaded that imports one of our modules after the other; by module, lightest first."""
    names = ["src.metrics", "src.quality.suspects", "src.reporting.figures", "src.labeling.ask", "src.label"]
    program = f"import importlib, json, sys\nfor name in {names}:\n    importlib.import_module(name)\n    " \
              "print(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    return {name: set(json.loads(line)) for name, line in zip(names, done.stdout.splitlines(), strict=True)}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "annotations.db")
    yield opened
    opened.close()


@pytest.fixture
def review(tmp_path: Path) -> ReviewFile:
    """Where `review_folder`'s labels are reviewed; no file is written yet."""
    return ReviewFile(tmp_path / "review/fruit/review_labels.csv", review_folder.TASK, "ada")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first; tests on the shared data are skipped where it is not."""
    place = {name: n for n, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONGEST)))
    missing = pytest.mark.skip(reason="the shared development data is not beside this checkout")
    for item in items:
        if "shared" in item.keywords and not SHARED.is_dir():
            item.add_marker(missing)
