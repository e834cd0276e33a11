"""The shape of the code: one direction of imports, one room for SQL, one for MLflow, asyncio in its rooms."""

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src"
# In the order the data walks: a room imports only rooms above its own.
ROOMS = ["errors", "address", "console", "task", "metrics", "store", "data", "labeling", "quality", "labels", "student",
         "calibration", "cascade", "serving", "cost_model", "reporting", "config", "written", "study", "tracking",
         "reopen", "trust", "record", "benchmarks"]
ENTRY_POINTS = ["label", "train", "search", "evaluate", "certify", "compare", "cost", "report", "review", "serve",
                "decisions", "benchmark"]
MODULES = sorted(SRC.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(SRC).parts[0].removesuffix(".py")


@functools.cache
def nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text())))


def imported(path: Path, *, of_types: bool = False) -> Iterator[str]:
    skipped = set()
    for node in nodes(path):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            skipped |= {inner for statement in node.body for inner in ast.walk(statement)}
    for node in nodes(path):
        if node in skipped and not of_types:
            continue
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names if node.module == "src")


def test_every_file_stands_in_a_known_room() -> None:
    assert {room(path) for path in MODULES} == {"__init__", *ROOMS, *ENTRY_POINTS}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(SRC).as_posix())
def test_imports_go_one_way(path: Path) -> None:
    own = room(path)
    if own == "__init__":
        return
    allowed = ROOMS if own in ENTRY_POINTS else ROOMS[: ROOMS.index(own) + 1]
    used = {name.split(".")[1] for name in imported(path, of_types=True) if name.startswith("src.")}
    assert used <= set(allowed), f"{path.name} imports {used - set(allowed)}, which stand below it"


@pytest.mark.parametrize(("library", "where"), [("mlflow", {"tracking"}),
                                                ("sqlalchemy", {"store", "study", "tracking"}), ("optuna", {"study"})])
def test_one_room_for_one_library(library: str, where: set[str]) -> None:
    users = {room(path) for path in MODULES
             if any(name.split(".")[0] == library for name in imported(path))}
    assert users == where


def test_asyncio_stays_where_requests_are_made() -> None:
    users = {room(path) for path in MODULES if {"asyncio", "aiohttp"} & {n.split(".")[0] for n in imported(path)}}
    assert users == {"labeling", "serving", "benchmarks"}


def test_labelling_imports_no_torch(loaded: dict[str, set[str]]) -> None:
    assert not {"torch", "lightning", "timm"} & loaded["src.label"]


def test_class_names_stand_in_the_task_alone() -> None:
    for path in MODULES:
        words = [node.value for node in nodes(path) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
        assert not {"mushroom", "sweet_pepper", "seven"} & set(words), path
