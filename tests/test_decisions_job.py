"""`python -m src.decisions`: every step handed out, whole or not at all, and a table that adds up."""

import csv
import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from decided import NOON, asked, make, person
from jobs import call
from pyarrow import parquet

from src import decisions
from src.decisions import ROW_GROUP
from src.store import DecisionLog, Logged

ROWS = [row if row.task == "digits" else replace(row, task="cifar5") for row in (
    make(1, client="=cmd|' /C calc'!A0"),
    asked(2, cost_usd=0.25, probabilities=(0.1, 1 / 3), created_at=NOON + timedelta(hours=1)),
    make(2, step=1, answer="äpple", route="teacher", escalated="doubtful", annotator="host/m", cost_usd=0.5,
         created_at=NOON + timedelta(hours=1, microseconds=1)),
    person(3, created_at=NOON + timedelta(days=1)),
    make(4, task="digits", created_at=NOON + timedelta(days=2)),
)]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    log = DecisionLog(tmp_path / "annotations.db")
    log.append(ROWS)
    log.close()
    return tmp_path


def export(home: Path, *keys: str) -> int:
    return call(decisions.main, f"home={home}", *keys)


def back(fields: dict[str, object]) -> Logged:
    given = {**fields, "probabilities": tuple(fields["probabilities"]),  # type: ignore[arg-type]
             "created_at": NOON.fromisoformat(str(fields["created_at"]))}
    return Logged(**given)  # type: ignore[arg-type]


def test_every_step_comes_back_from_each_kind_of_file(home: Path) -> None:
    assert export(home, f"file={home}/new/a.jsonl") == 0
    lines = (home / "new/a.jsonl").read_text().splitlines()
    assert [back(json.loads(line)) for line in lines] == ROWS
    assert export(home, f"file={home}/a.parquet") == 0
    assert [back(row) for row in parquet.read_table(home / "a.parquet").to_pylist()] == ROWS
    assert export(home, f"file={home}/a.csv") == 0
    with (home / "a.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["request"] for row in rows] == [row.request for row in ROWS]
    assert json.loads(rows[1]["probabilities"]) == [0.1, 1 / 3]
    assert rows[1]["answer"] == "" and rows[2]["cost_usd"] == "0.5"
    assert rows[0]["client"] == "'=cmd|' /C calc'!A0", "nothing that a spreadsheet would run"
    assert not list(home.glob("*.partial")) and not list(home.glob(".*.partial"))


def test_task_and_times_choose_and_the_table_adds_up(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export(home, "task=cifar5", "since=2026-03-01T14:00+01:00", "until=2026-03-03", f"file={home}/a.jsonl") == 0
    told = capsys.readouterr().out
    kept = [back(json.loads(line)) for line in (home / "a.jsonl").read_text().splitlines()]
    assert kept == ROWS[1:4] and f"3 step(s): {home}/a.jsonl" in told.replace("\n", "")
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in told.splitlines() if line.count("│") == 7]
    assert cells == [["teacher", "doubtful", "", "2", "1", "0.7500"],
                     ["human", "doubtful", "teacher_unsure", "1", "0", "0.0000"], ["all", "", "", "3", "1", "0.7500"]]


def test_without_a_file_only_the_table_is_shown(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export(home) == 0 and "Steps of decisions" in capsys.readouterr().out
    assert export(home, "task=digits", "until=2026-03-02") == 0
    assert "No step of a decision matches." in capsys.readouterr().out
    assert not list(home.glob("*.csv"))


def test_a_file_is_replaced_only_when_told_to(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = home / "a.csv"
    path.write_text("mine")
    assert export(home, f"file={path}") == 1
    assert "it is there already; name another, or add overwrite=true" in capsys.readouterr().err
    assert path.read_text() == "mine"
    assert export(home, f"file={path}", "overwrite=true") == 0 and path.read_text(encoding="utf-8-sig").count("\n") == 6


def test_a_file_that_cannot_be_written(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "file").write_text("")
    assert export(home, f"file={home}/file/a.csv") == 1
    assert "it cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize(("keys", "told"), [
    (["since=yesterday"], "since='yesterday' is not allowed: a day or time such as 2026-11-23"),
    (["since=2026-03-02", "until=2026-03-02"], "until='2026-03-02' is not allowed: later than since=2026-03-02"),
    (["file=decisions.xlsx"], "file='decisions.xlsx' is not allowed: a name that ends in .csv, .jsonl, .parquet"),
    (["task=nobodys"], "Could not find 'task/nobodys'"),
    (["store=nowhere.db"], "There is no store at nowhere.db"),
])
def test_what_is_wrong_is_named(home: Path, keys: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert export(home, *keys) == 1
    assert told in capsys.readouterr().err
    assert not Path("nowhere.db").exists()


def test_parquet_comes_in_groups(tmp_path: Path) -> None:
    with decisions.writing(str(tmp_path / "a.parquet"), overwrite=False) as write:
        for n in range(ROW_GROUP + 1):
            write(make(n))
    found = parquet.ParquetFile(tmp_path / "a.parquet")
    assert [found.metadata.row_group(n).num_rows for n in range(found.num_row_groups)] == [ROW_GROUP, 1]
