"""Which values to try next: an Optuna study on disk, which any later process can go on with.

The only place that imports Optuna. Knows nothing about trainings or runs: it gives out values and is told a figure.
"""

import json
import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy as sa
from filelock import FileLock
from optuna.trial import FrozenTrial, TrialState

from src.config import Dimension
from src.errors import ConfigError, StoreError
from src.labeling import owner

OWNER = "owner"  # attribute of a trial: the process that tries it
REPEATED = "repeated"  # attribute: its process died, and its values are given out again


@dataclass(frozen=True)
class Point:
    """One trial: its number in the study, and the value of every key."""

    number: int
    values: dict[str, Any]


class Study:
    """One search. `fixed` is what all its trials have in common; a study that was begun with something else is not gone
    on with, since its trials would not compare. Raises ConfigError for that, StoreError for a broken file."""

    def __init__(self, path: Path, name: str, space: Mapping[str, Dimension], *, fixed: Mapping[str, Any],
                 seed: int) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        logging.getLogger("alembic").setLevel(logging.ERROR)
        self.space = dict(space)
        self._owner = owner.born()
        path.parent.mkdir(parents=True, exist_ok=True)
        wanted = json.loads(json.dumps({"space": {key: asdict(span) for key, span in space.items()}, **fixed}))
        self._lock = FileLock(path.with_suffix(".lock"))
        try:
            with self._lock:  # two at once on a fresh database crash
                patient = {"connect_args": {"timeout": 60}}
                storage = optuna.storages.RDBStorage(f"sqlite:///{path}", engine_kwargs=patient)
                self._study = optuna.create_study(storage=storage, study_name=name, direction="maximize",
                                                  load_if_exists=True)
                begun = self._study.user_attrs.get("wanted")
                if begun is None:
                    self._study.set_user_attr("wanted", wanted)
                elif begun != wanted:
                    other = ", ".join(key for key in wanted if begun.get(key) != wanted[key])
                    raise ConfigError("search.study", name, f"another name: this one was begun with another {other}")
        except (sa.exc.SQLAlchemyError, optuna.exceptions.OptunaError) as error:
            raise StoreError(f"{path} cannot be used: {str(error).splitlines()[0][:300]}. Move it away to begin the "
                             "search anew; MLflow has the runs.") from error
        # A seed that is the same on going on would draw the same first values again.
        self._study.sampler = optuna.samplers.TPESampler(seed=(seed + len(self._study.trials)) % 2**32)

    @property
    def parent(self) -> str | None:
        """The run that the trials stand below, once there is one."""
        found: str | None = self._study.user_attrs.get("parent")
        return found

    @parent.setter
    def parent(self, run: str) -> None:
        self._study.set_user_attr("parent", run)

    @property
    def ended(self) -> int:
        """Trials that have a figure or have failed."""
        return sum(trial.state in (TrialState.COMPLETE, TrialState.FAIL, TrialState.PRUNED)
                   and REPEATED not in trial.user_attrs for trial in self._study.trials)

    @property
    def repeated(self) -> list[int]:
        """Trials that came to nothing, since their process died; others have their values."""
        return [trial.number for trial in self._study.trials if REPEATED in trial.user_attrs]

    def settle(self, figure_of: Callable[[int], float | None]) -> None:
        """See to trials whose process died on this machine. Where a figure came of one after all, it has ended; else
        its values are tried next."""
        with self._lock:
            for trial in self._study.get_trials(states=(TrialState.RUNNING,)):
                if not self._is_dead(trial):
                    continue
                figure = figure_of(trial.number)
                if figure is not None:
                    self._study.tell(trial.number, figure)
                    continue
                self._study._storage.set_trial_user_attr(trial._trial_id, REPEATED, True)
                self._study.tell(trial.number, state=TrialState.FAIL)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                    self._study.enqueue_trial(trial.params)

    def ask(self) -> Point:
        trial = self._study.ask()
        trial.set_user_attr(OWNER, self._owner)
        return Point(trial.number, {key: self._suggest(trial, key, span) for key, span in self.space.items()})

    def tell(self, point: Point, figure: float | None) -> None:
        """What came of it; None where it failed."""
        failed = figure is None
        self._study.tell(point.number, None if failed else figure,
                         state=TrialState.FAIL if failed else TrialState.COMPLETE)

    @staticmethod
    def _suggest(trial: optuna.Trial, key: str, span: Dimension) -> Any:
        if span.values is not None:
            return trial.suggest_categorical(key, span.values)
        assert span.low is not None and span.high is not None
        if span.whole:
            return trial.suggest_int(key, int(span.low), int(span.high), log=span.log)
        return trial.suggest_float(key, span.low, span.high, log=span.log)

    @staticmethod
    def _is_dead(trial: FrozenTrial) -> bool:
        name = trial.user_attrs.get(OWNER)
        return name is not None and owner.is_dead(name, datetime.now(UTC))  # of another machine's nothing is known
