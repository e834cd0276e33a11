"""What can go wrong, as one tree.

FlywheelError
├── ConfigError        a key, its value, and what is allowed
├── DataError          items that cannot be read, split or rehearsed
│   └── DataUnavailable    a data set that is neither here nor downloadable
├── StoreError         the annotation store is locked, full, corrupt or of another version
│   └── RowsRefused        rows that stand there already, or that no database takes; others can be written
├── TeacherError       the whole labelling run must stop: wrong key, model or address, no credit
├── QualityError       the labels are not worth training on
├── ReviewError        a review file that cannot be imported as it stands
└── TrackingError      an MLflow run that cannot be found or read

Every message names the thing, the value and the way out. Foreign exceptions are translated where the foreign library
is called. Imports nothing of ours.
"""

from hydra.errors import CompactHydraException


class FlywheelError(CompactHydraException):
    """A mistake or a fault that the user can mend; its text is all they need to see.

    Of Hydra's compact family: it is printed without a traceback, the exit status is 1, and the other jobs of a
    multirun still run.
    """


class ConfigError(FlywheelError):
    """A configuration value that is not allowed."""

    def __init__(self, key: str, value: object, allowed: str) -> None:
        super().__init__(f"{key}={value!r} is not allowed: {allowed}")


class DataError(FlywheelError):
    """Items that cannot be read, split or rehearsed."""


class DataUnavailable(DataError):
    """A data set that is neither on this machine nor can be downloaded."""


class StoreError(FlywheelError):
    """The annotation store, or what lies beside it, cannot be opened, read or written."""


class RowsRefused(StoreError):
    """Rows that cannot be written though others can: they stand there already, or hold what no database takes."""


class TeacherError(FlywheelError):
    """A fault that every further question would meet as well."""


class QualityError(FlywheelError):
    """The labels are not worth training on."""


class ReviewError(FlywheelError):
    """A review file that cannot be imported as it stands."""


class TrackingError(FlywheelError):
    """An MLflow run that cannot be found or read."""
