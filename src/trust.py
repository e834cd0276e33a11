"""How far a run's student is trusted: scores → probabilities, and the confidence from which on it may answer.

By its newest certificate that is about the student as it answers here; without one it is trusted with nothing.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from src.address import keys_to_find
from src.calibration.calibrate import calibrate_if_gold_allows
from src.calibration.calibrators import Calibrator, from_dict, to_logits
from src.calibration.certificate import usual_threshold
from src.cascade.policy import Policy
from src.cascade.spec import CascadeSpec
from src.metrics import Floats
from src.reopen import Past
from src.student.protocol import Student
from src.tracking import certificates


@dataclass(frozen=True)
class Trust:
    """How the student's scores become probabilities, and from which on it answers. `policies` holds them by name, the
    one that is reported first; `name` says what that one's threshold is, `statement` what is promised of it. A
    `rehearsed` teacher is a stand-in."""

    calibrator: Calibrator
    policies: dict[str, Policy]
    target: float
    name: str
    statement: str
    rehearsed: bool

    @property
    def policy(self) -> Policy:
        """The one that is reported first, and that a server follows."""
        return next(iter(self.policies.values()))

    def probabilities(self, scores: Floats) -> Floats:
        """[N, C] calibrated, of the student's own [N, C]."""
        found: Floats = self.calibrator(to_logits(scores))
        return found


def trusted(past: Past, student: Student, gold: Floats, truth: NDArray[np.int64], *, cascade: CascadeSpec,
            target_precision: float | None, uri: str) -> Trust:
    """From the certificates of a run, and the usual threshold beside it: read off `gold`, the student's [N, C] on
    gold's *choose* part, whose classes are `truth`. `target_precision` is whose certificate is taken; None takes the
    newest."""
    spec, given, wanted = past.job.calibration, cascade.threshold, target_precision
    found = certificates(uri, past.stored.id, past.stored.folder)
    certified = next((pair for pair in found if pair[0]["certified"] and is_about(pair[0], student)
                      and wanted in (None, pair[0]["target_precision"])), None)
    if certified:
        certificate, calibration = certified
        target, calibrator = certificate["target_precision"], from_dict(calibration["calibrator"])
        statement = certificate["statement"]
    else:
        target = wanted or spec.target_precision
        calibrator = calibrate_if_gold_allows(spec.method, gold, truth, target).calibrator
        run = f"run={past.stored.id}{keys_to_find(past.job.home, uri)}"
        statement = (f"Nothing is certified at {target:g} for this student in {student.dtype} on {student.runtime}, so "
                     f"the LLM gets everything: .venv/bin/python -m src.certify {run} runtime={student.runtime} "
                     f"dtype={student.dtype} calibration.target_precision={target:g}, where its gold allows.")
    probabilities = calibrator(to_logits(gold))
    usual = usual_threshold(probabilities.max(axis=1), probabilities.argmax(axis=1) == truth, target)
    threshold = certified[0]["threshold"] if certified else None
    chosen = cascade.policy(threshold)
    name = "cascade, threshold as given" if given is not None else f"cascade, certified at {target:g}" if certified \
        else "cascade, nothing certified"
    if given is not None:
        statement = f"cascade.threshold={given:g} was given: nothing is promised of it."
    policies = {name: chosen, f"cascade, usual threshold for {target:g}": replace(chosen, threshold=usual)}
    return Trust(calibrator, policies, target, "certified" if given is None else "given", statement, is_rehearsed(past))


def is_about(certificate: dict[str, Any], student: Student) -> bool:
    """Whether it is about these answers. In fp32 runtimes give the same; other dtypes round as each of them likes."""
    dtype = certificate.get("dtype", "fp32")  # the first certificates were all of torch in fp32, and do not say so
    return bool(dtype == student.dtype and (dtype == "fp32" or certificate["runtime"] == student.runtime))


def is_rehearsed(past: Past) -> bool:
    """Whether a stand-in labelled what the run learned from."""
    return past.stored.tags.get("annotator", "").startswith("rehearsal:")
