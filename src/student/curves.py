"""Lightning's training curves, handed to whoever wants them: training knows of no tracking server."""

from collections.abc import Mapping
from typing import Any, Protocol

from lightning.pytorch.loggers import Logger


class Log(Protocol):
    def __call__(self, values: Mapping[str, float], step: int | None = None) -> None: ...


class Curves(Logger):
    """Passes each epoch's metrics on, with the epoch as the step."""

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
        if curves:
            self._log(curves, step if epoch is None else int(epoch))
