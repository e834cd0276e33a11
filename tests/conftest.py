"""What many tests start from. Nothing here reaches beyond loopback."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

import src.config
from src.config import Job, read

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"

# A key in the developer's own environment must not turn a test into a paid run, and no library may phone home.
for name in ("OPENROUTER_API_KEY", "OPENAI_API_KEY", "MLFLOW_TRACKING_URI"):
    os.environ.pop(name, None)
os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture
def make_job(tmp_path: Path) -> Callable[..., Job]:
    """A typed config from `conf/`, with all state below a temporary folder."""

    def make(*overrides: str, name: str = "job") -> Job:
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            cfg = compose(name, overrides=[f"home={tmp_path / 'mlruns'}", *overrides])
        job = read(cfg, src.config.Job)
        assert isinstance(job, Job)
        return job

    return make


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests on the shared data are skipped where it is not."""
    missing = pytest.mark.skip(reason="the shared development data is not beside this checkout")
    for item in items:
        if "shared" in item.keywords and not SHARED.is_dir():
            item.add_marker(missing)
