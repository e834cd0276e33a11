"""What is looked up in MLflow: nothing there, or nobody who answers."""

from pathlib import Path

import pytest

from src.errors import TrackingError
from src.tracking import certificates, find, find_sweep, run_of
from src.tracking.judged import find_judged
from src.tracking.kept import kept


def test_a_server_that_does_not_answer_is_not_taken_for_a_missing_run(monkeypatch: pytest.MonkeyPatch,
                                                                      tmp_path: Path) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    address, run = "http://127.0.0.1:1", "0" * 32
    for look in (lambda: find(address, run, tmp_path), lambda: find_sweep(address, run, ()),
                 lambda: find_judged(address, run, ()), lambda: kept(address, run, (), "tables", tmp_path),
                 lambda: run_of(address, "latest"), lambda: certificates(address, run, tmp_path)):
        with pytest.raises(TrackingError, match=r"MLflow at http://127\.0\.0\.1:1 could not be read") as failed:
            look()
        assert "\n" not in str(failed.value)
