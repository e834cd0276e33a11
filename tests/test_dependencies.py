"""What is installed is pinned, and what sees the key loads little that others wrote."""

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PINNED = re.compile(r"([A-Za-z0-9_.\-]+)==([0-9][A-Za-z0-9.+!]*)( ; .+)?")
BAD = {"litellm"}  # 1.82.7 and 1.82.8 stole keys
# What reads the key, sends it, and books what comes back, may import; the standard library besides.
TRUSTED = {"aiohttp", "jinja2", "numpy", "scipy", "PIL", "pydantic", "psutil", "omegaconf"}
CLIENTS = {"openai", "litellm", "anthropic", "google.genai", "langchain", "instructor", "httpx", "httpx2", "requests"}


def pinned(path: Path) -> dict[str, str]:
    """Package → version; an AssertionError names a line that allows more than one version."""
    found = {}
    for line in path.read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            match = PINNED.fullmatch(line)
            assert match, f"{path.name}: {line!r} pins no version"
            found[re.sub(r"[-_.]+", "-", match[1]).lower()] = match[2]
    return found


def test_every_dependency_is_pinned_and_none_is_known_to_be_bad() -> None:
    files = sorted(ROOT.glob("requirements*.txt"))
    assert ROOT / "requirements.txt" in files
    for path in files:
        assert len(packages := pinned(path)) > 10 and not BAD & packages.keys(), path
    asked_for = (ROOT / "pyproject.toml").read_text().lower()
    assert not any(re.search(rf'"{name}\b', asked_for) for name in BAD)


def imports(path: Path) -> set[str]:
    """Dotted names of all that a file imports, also within functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level and node.module
            found.add(node.module)
    return found


def test_what_sees_the_key_imports_little() -> None:
    rooms = {"errors", "console", "task", "metrics", "store", "data", "labeling"}
    paths = sorted((ROOT / "src/labeling").rglob("*.py"))
    assert len(paths) > 15
    for path in paths:
        for name in imports(path):
            top, _, rest = name.partition(".")
            allowed = rest.split(".")[0] in rooms if top == "src" else top in TRUSTED | sys.stdlib_module_names
            assert allowed, f"{path.name} imports {name}"


def test_what_sees_the_key_loads_nobody_elses_client(loaded: dict[str, set[str]]) -> None:
    modules = loaded["src.labeling.ask"]
    assert "aiohttp" in modules and not CLIENTS & modules
