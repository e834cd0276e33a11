"""What figures stand beside: the machine they were made on, and how many other processes are started here."""

import os
import platform
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def processor() -> str:
    """Its name and the number of its cores."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        named = (line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line)
        model = next(named, model)
    return f"{model}, {os.cpu_count()} cores"


def in_a_process(module: str, *arguments: str) -> dict[str, Any]:
    """What `subprocess.Popen` needs to run one of these modules from any folder."""
    return {"args": [sys.executable, "-m", module, *arguments], "cwd": ROOT,
            "env": {**os.environ, "PYTHONPATH": str(ROOT)}}
