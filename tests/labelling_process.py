"""`python -m src.label` and the stand-in teacher, each in a process of its own, over the handwritten digits."""

import hashlib
import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from src.config import Job, read
from src.data.dataset import open_dataset
from src.data.images import load, shown
from src.store import Store
from src.task import Annotation

ROOT = Path(__file__).parents[1]
MODEL = "google/gemini-2.5-flash"
PATIENCE_S = 60.0


@dataclass
class Labelling:
    """A home folder, the stand-in at `base_url` with its ledger, and the command that labels with it."""

    home: Path
    base_url: str
    overrides: list[str]

    @property
    def ledger_file(self) -> Path:
        return self.home / "ledger.jsonl"

    @property
    def store_file(self) -> Path:
        return self.home / "annotations.db"

    def start(self) -> "subprocess.Popen[str]":
        overrides = [*self.overrides, "teacher=openai_compatible", f"teacher.base_url={self.base_url}",
                     f"teacher.model={MODEL}", "rehearsal=never"]
        ours = ("MLFLOW_", "FLYWHEEL_")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        return subprocess.Popen([sys.executable, "-m", "src.label", *overrides], cwd=ROOT, env=environment, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def ledger(self) -> list[dict[str, Any]]:
        """The stand-in's own record of what it answered; `question` is item and pass, without who was asked what."""
        text = self.ledger_file.read_text() if self.ledger_file.exists() else ""
        records = [json.loads(line) for line in text.splitlines()]
        return [{**record, "question": "-".join(record["question"].split("-")[:2])} for record in records]

    def stored(self) -> list[Annotation]:
        if not self.store_file.exists():
            return []
        store = Store(self.store_file)
        try:
            return store.read()
        finally:
            store.close()

    def held_usd(self) -> float:
        """What is claimed, and so will be booked if whoever claimed it is dead."""
        with closing(sqlite3.connect(self.store_file)) as plain:
            if not plain.execute("SELECT 1 FROM sqlite_master WHERE name = 'claims'").fetchone():
                return 0.0
            return float(plain.execute("SELECT coalesce(sum(worst_usd), 0) FROM claims").fetchone()[0])

    def wait_for_answers(self, process: "subprocess.Popen[str]", more_than: int) -> None:
        """Return at the first sign of an answer beyond `more_than`; an AssertionError shows what the process said."""
        give_up = time.monotonic() + PATIENCE_S
        while self.ledger_file.stat().st_size == 0 or len(self.ledger()) <= more_than:
            assert process.poll() is None and time.monotonic() < give_up, process.communicate()[0]
            time.sleep(0.005)


def question(annotation: Annotation) -> str:
    """As the ledger names it."""
    return f"{annotation.item[:32]}-{annotation.pass_index}"


@contextmanager
def labelling(home: Path, *overrides: str, **errors: float) -> Iterator[Labelling]:
    """Prepare the digits below `home` and run a stand-in that knows them; `errors` are changes to a perfect teacher."""
    sizes = ["data.shown.size=32", "data.gold_size=40", "data.test_size=40"]
    settings = ["+experiment=digits", f"home={home}", *sizes, *overrides]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        job: Job = read(compose("job", [*settings, "rehearsal=always"]), Job)
    splits = open_dataset(job.task, job.data, home=home, download=False, stand_in=False).splits
    truths = {}
    for item in [*splits.choose, *splits.pool[: job.labeler.max_items]]:
        image = shown(load(Path(item.payload), job.data.max_pixels), job.data.shown)
        truths[hashlib.sha256(image).hexdigest()] = [item.key, item.truth]
    files = {name: home / f"{name}.{suffix}" for name, suffix in
             (("task", "yaml"), ("errors", "yaml"), ("truths", "json"), ("ledger", "jsonl"))}
    OmegaConf.save(OmegaConf.structured(job.task), files["task"])
    OmegaConf.save(OmegaConf.merge(OmegaConf.load(ROOT / "conf/rehearsal/errors/none.yaml"), errors), files["errors"])
    files["truths"].write_text(json.dumps(truths))
    arguments = [f"--{name}={path}" for name, path in files.items()]
    command = [sys.executable, "-m", "src.labeling.rehearsal", *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as stand_in:
        try:
            assert stand_in.stdout is not None
            yield Labelling(home, stand_in.stdout.readline().strip(), settings)
        finally:
            stand_in.kill()
