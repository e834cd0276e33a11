"""What is looked up in MLflow: nothing there, or nobody who answers."""

from pathlib import Path

import pytest

from src.errors import TrackingError
from src.tracking import certificates, find, find_sweep, go_on_with, run_of
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


@pytest.mark.parametrize("address", ["localhost:5000", "sqllite:///mlflow.db", "mysql+nodriver://me@host/db", "", " "])
def test_an_address_that_cannot_be_used_is_not_taken_for_a_missing_run(address: str) -> None:
    for look in (lambda: run_of(address, "latest"), lambda: find_sweep(address, "0" * 32, ()),
                 lambda: go_on_with(address, "0" * 32)):
        with pytest.raises(TrackingError, match=r"could not be read|is no address"):
            look()


def test_a_search_goes_on_in_a_run_that_is_there(tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match=r"is not at sqlite:.* any more: give another search\.study"):
        go_on_with(f"sqlite:///{tmp_path}/mlflow.db", "0" * 32)
