"""Entry points called as the command line calls them, and the runs they leave."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Run

from src import tracking


def call(main: Callable[[], Any], *overrides: str) -> int:
    """Run an entry point as the command line would, in this process, and return its exit status."""
    before = sys.argv
    sys.argv = ["job", *overrides]
    for name in ("MLFLOW_TRACKING_URI", tracking.PARENT):  # set for child processes; a new command has neither
        os.environ.pop(name, None)
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    finally:
        sys.argv = before
    return 0


def runs(home: Path) -> list[Run]:
    """Newest first."""
    client = mlflow.MlflowClient(f"sqlite:///{home}/mlflow.db")
    found = client.search_runs([e.experiment_id for e in client.search_experiments()])
    return sorted(found, key=lambda run: -run.info.start_time)
