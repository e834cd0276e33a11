"""Passwords in addresses are struck out, and those are refused that libraries would read in several ways."""

import pytest
from sqlalchemy import make_url

from src.address import is_clear, keys_to_find, without_passwords


@pytest.mark.parametrize(("address", "told"), [
    ("postgresql://me:pa/ss@db/labels", "postgresql://me:***@db/labels"),
    ("postgresql://me:p@ss@db/labels", "postgresql://me:***@db/labels"),
    ("postgresql://me@srv:S3cret@srv.example.com/db", "postgresql://me@srv:***@srv.example.com/db"),
    ("postgresql://db/labels?user=me&password=hunter2&x=1", "postgresql://db/labels?user=me&password=***&x=1"),
    ("sqlite:///mlruns/mlflow.db", "sqlite:///mlruns/mlflow.db"),
    ("http://localhost:11434/v1", "http://localhost:11434/v1"),
])
def test_passwords_are_struck_out(address: str, told: str) -> None:
    assert without_passwords(f"store={address}") == f"store={told}"


@pytest.mark.parametrize("address", [
    "postgresql://me:p%40ss@db/labels", "postgresql://me:pass@db:5432/labels?options=a@b", "postgresql://db:5432/labels",
    "postgresql://me@db/labels", "sqlite:////home/a:b@c/d.db",
    "sqlite:///mlruns/mlflow.db", "https://db/at/a:b@c", "http://localhost:5000/team%40x", "postgresql://me@srv:pass@db/labels",
    "http://me:pass@localhost:5000", "mlruns/annotations.db",
])
def test_an_address_that_all_read_alike(address: str) -> None:
    assert is_clear(address)
    assert "@" not in (make_url(address).host or "") if "://" in address else True


def test_a_user_may_have_one_too() -> None:
    assert make_url("postgresql://me@srv:pass@db/labels").password == "pass"


@pytest.mark.parametrize("password", ["ab/c?x=1", "pa@ss", "pa/ss", "12@pa/ss", "12/pa@ss", "pa#ss", "pa?ss",
                                      "12?a=b@ss"])
@pytest.mark.parametrize("scheme", ["postgresql", "mysql+pymysql", "http"])
def test_a_password_that_would_be_cut_is_refused(scheme: str, password: str) -> None:
    assert not is_clear(f"{scheme}://me:{password}@db/labels")
    assert not is_clear(f"{scheme}://me:{password}@db/labels?sslmode=require")


def test_a_command_says_what_it_needs_to_find_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert keys_to_find("mlruns", "sqlite:///mlruns/mlflow.db") == ""
    assert keys_to_find("other", "sqlite:///other/mlflow.db") == " home=other"
    assert keys_to_find("mlruns", "http://mlflow:5000") == " tracking.uri=http://mlflow:5000"
    assert keys_to_find("other", "http://me:pass@mlflow:5000") == " home=other"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert keys_to_find("mlruns", "http://mlflow:5000") == ""
