"""Lightning's training curves, handed to whoever wants them: training knows of no tracking server."""

from collections.abc import Mapping
from typing import Any, Protocol

from lightning.pytorch.loggers import Logger

BY_STEP = "train/step_"  # how the names of metrics begin that are logged at every step


class Log(Protocol):
    def __call__(self, values: Mapping[str, float], step: int | None = None) -> None: ...


class Curves(Logger):
    """Passes each epoch's metrics on, with the epoch as the step, and those of each step with the step's own number."""

    def __init__(self, log: Log) -> None:
        super().__init__()
        self._log = log

    @property
    def name(self) -> str:
        return "curves"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """The job records its whole config itself."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        epoch = metrics.get("epoch")
        curves = {name: value for name, value in metrics.items() if name != "epoch"}
        of_step = {name: curves.pop(name) for name in list(curves) if name.startswith(BY_STEP)}
        if of_step:
            self._log(of_step, step)
        if curves:
            self._log(curves, step if epoch is None else int(epoch))
