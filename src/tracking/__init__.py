"""Runs in MLflow; the only room that imports it.

A job is one run (`runs`), opened around everything it does and closed with what became of it: FINISHED, FAILED or
KILLED. A multirun is a parent run above its jobs (`sweeps`). Knows nothing about labels or students beyond their
numbers, files and pictures.
"""

import os

# Nothing about a user's runs leaves their machine; this must stand before MLflow is imported.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

from src.tracking.models import StudentModel
from src.tracking.runs import PARENT, SWEPT, Run, open_run
from src.tracking.server import prepare
from src.tracking.stored import (
    FAILED,
    Child,
    StoredRun,
    StoredSweep,
    certificates,
    find,
    find_sweep,
    latest,
    run_of,
    swept_values,
)
from src.tracking.sweeps import (
    ParentRun,
    close_parent,
    figure_of,
    go_on_with,
    mark_failed,
    mark_repeated,
    open_parent,
)

__all__ = ["FAILED", "PARENT", "SWEPT", "Child", "ParentRun", "Run", "StoredRun", "StoredSweep", "StudentModel",
           "certificates", "close_parent", "figure_of", "find", "find_sweep", "go_on_with", "latest", "mark_failed",
           "mark_repeated", "open_parent", "open_run", "prepare", "run_of", "swept_values"]
