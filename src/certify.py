"""Promise how right a student's answers are: `python -m src.certify run=<id>`, for the run that was chosen.

Calibrates and declares thresholds on gold's *choose* part, tests them on *certify*, against truth, and writes down what
that cost in confidence. `plan=true` says beforehand how much gold it takes.
"""

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import hydra
from omegaconf import DictConfig

from src.calibration.calibrate import Calibrated, advice, calibrate
from src.calibration.calibrators import Calibrator, to_logits
from src.calibration.certificate import Certificate, certify, declare
from src.calibration.gold_needed import CHANCE, highest_target, least_gold
from src.calibration.ledger import Budget, budget, read_ledger, spend
from src.calibration.spec import CalibrationSpec
from src.config import CONF, Certification, output_folder, read
from src.console import entry_point, say, table, warn
from src.errors import ConfigError, DataError
from src.metrics import Bools, Floats, Interval, Ints
from src.quality.agreement import teacher_accuracy
from src.record import refresh_report
from src.reopen import Past, reopen, student_of, truths
from src.reporting import certificates
from src.store import Store
from src.student.choose import MODEL, MODEL_INT8
from src.student.device import resolve
from src.student.images import decode
from src.student.protocol import Student
from src.task import Item
from src.tracking import open_run

FORMAT = 1
TARGETS = (0.90, 0.95, 0.98)


@dataclass(frozen=True)
class Scored:
    """A part of gold: its items, the student's [N, C] probabilities and the [N] true class indices."""

    items: list[Item]
    probabilities: Floats
    truth: Ints

    def by(self, calibrator: Calibrator) -> tuple[Floats, Bools]:
        """[N] confidences of the answers, and whether they are right."""
        calibrated = calibrator(to_logits(self.probabilities))
        return calibrated.max(axis=1), calibrated.argmax(axis=1) == self.truth


@hydra.main(config_path=CONF, config_name="certify", version_base="1.3")
@entry_point
def main(cfg: DictConfig) -> None:
    asked: Certification = read(cfg, Certification)
    spec = asked.calibration
    if asked.plan and asked.run is None:
        return show_plan(asked.gold_sizes, spec, spec.delta * spec.spend)
    assert asked.run is not None  # the config has seen to that
    device, out = resolve(asked.accelerator, "accelerator"), output_folder()
    past = reopen(asked.tracking.uri, asked.run, home=Path(asked.home), out=out)
    splits = past.dataset.splits
    certify_keys = [item.key for item in splits.certify]
    ledger = Path(asked.home) / "certifications.jsonl"
    if asked.plan:
        left = budget(read_ledger(ledger), "", certify_keys, delta=spec.delta, spend=spec.spend)
        return show_plan([len(splits.choose) + len(certify_keys)], spec, left.delta)
    check_same_items(past)
    student = student_of(past, runtime=asked.runtime, dtype=asked.dtype, margin=asked.margin, device=device, out=out)
    max_pixels = past.job.data.max_pixels
    choose = scores(student, splits.choose, max_pixels, "choose")
    check_enough(choose, len(student.classes))
    calibrated = calibrate(spec.method, choose.probabilities, choose.truth, spec.target_precision)
    if told := advice(spec.method, len(choose.items)):
        warn(told)
    question = fingerprint(past.checkpoint, student, spec)
    expected = budget(read_ledger(ledger), question, certify_keys, delta=spec.delta, spend=spec.spend)
    check_target(spec, len(certify_keys), expected.delta)
    own = scores(student, splits.certify, max_pixels, "certify")
    paid = spend(ledger, question, certify_keys, delta=spec.delta, share=spec.spend, run=past.stored.id,
                 time=datetime.now(UTC).isoformat(timespec="seconds"))
    thresholds = declare(calibrated.confidence, calibrated.correct, spec.coverages, target=spec.target_precision,
                         delta=paid.delta, certify_size=len(own.items))
    certificate = certify(*own.by(calibrated.calibrator), thresholds, target=spec.target_precision, delta=paid.delta)
    teacher = agreement_with_teacher(choose, calibrated.calibrator, certificate, past)
    record(past, asked, student, calibrated, thresholds, certificate, paid, teacher, out)


def show_plan(sizes: list[int], spec: CalibrationSpec, delta: float) -> None:
    """Tables of what gold allows, where the next certification may spend `delta`."""
    targets = sorted({*TARGETS, spec.target_precision})
    say(f"The next certification on this gold may break its promise with a chance of {delta:g}: calibration.spend="
        f"{spec.spend:g} of what is left of calibration.delta={spec.delta:g}. Half of gold certifies, the other half "
        "calibrates.")
    accepted = [f"if {share:.0%} accepted" for share in certificates.COVERAGES]
    table(f"Gold items needed, for a chance of {CHANCE:.0%} to be certified, by the error rate among accepted items",
          certificates.gold_rows(targets, delta), ("target", "error rate", *accepted))
    shares = ", ".join(f"{share:.0%}" for share in certificates.COVERAGES)
    table(f"Errors allowed among the items accepted, if these are {shares} of half of gold; – is not even none",
          certificates.allowed_rows(sizes, targets, delta),
          ("gold", *(f"{target:.1%}" for target in targets), "never above"))


def check_same_items(past: Past) -> None:
    """Raises DataError where gold may have been trained on."""
    if not past.same_items:
        raise DataError(f"The items or their split are no longer those of run={past.stored.id!r}: this student may "
                        "have been trained on what would certify it. Bring the data back as it was, or train again on "
                        "what it is now and certify that run.")


def check_enough(choose: Scored, classes: int) -> None:
    """Raises DataError for gold that would rest a promise about all classes on nothing, however it is calibrated."""
    more = "Check more items by hand (more rows in data.gold_csv, a larger data.gold_size)."
    if len(choose.items) < classes:
        raise DataError(f"{len(choose.items)} gold items (choose) for {classes} classes are too few to certify on. "
                        f"{more}")
    if len(set(choose.truth.tolist())) < 2:
        raise DataError(f"All {len(choose.items)} gold items (choose) are of one class: a promise about the others "
                        f"would rest on nothing. {more}")


def check_target(spec: CalibrationSpec, n: int, delta: float) -> None:
    """Raises ConfigError for a target that not even faultless answers would reach, before confidence is spent on it."""
    if not n or highest_target(n, delta) < spec.target_precision:
        raise ConfigError(
            "calibration.target_precision", spec.target_precision,
            f"at most {highest_target(n, delta):.4f} can be certified on {n} items (gold's certify part) at delta "
            f"{delta:g}, all of them accepted and right; {spec.target_precision} takes "
            f"{least_gold(spec.target_precision, delta)} gold items at the very least (plan=true says more). Nothing "
            "was spent"
        )


def scores(student: Student, items: list[Item], max_pixels: int, part: str) -> Scored:
    images = decode(items, student.input_size, sharpen=student.sharpen, max_pixels=max_pixels,
                    what=f"decoding gold's {part} part")
    return Scored(items, student.predict(images), truths(items, student.classes))


def fingerprint(checkpoint: Path, student: Student, spec: CalibrationSpec) -> str:
    """Names the student and what is asked of it: the same question twice has the same answer and costs nothing more.
    In fp32, runtimes give the same answers; other dtypes round as each of them likes."""
    asked = [spec.method, spec.target_precision, spec.delta, spec.coverages]
    if student.dtype != "fp32":
        asked += [student.runtime, student.dtype]
    return hashlib.sha256(checkpoint.read_bytes() + json.dumps(asked).encode()).hexdigest()


def agreement_with_teacher(choose: Scored, calibrator: Calibrator, certificate: Certificate,
                           past: Past) -> Interval | None:
    """The share of the student's answers on gold's *choose* part, from the certified threshold on, that the teacher
    gives as well (its first answer); None where nothing is certified or the teacher's answers are not at hand. The
    teacher is never asked about *certify*."""
    job, tags = past.job, past.stored.tags
    annotator = tags.get("annotator")
    here = "://" in job.store or Path(job.store).exists()
    if certificate.threshold is None or annotator is None or not here:
        return None
    probabilities = calibrator(to_logits(choose.probabilities))
    answers = {item.key: job.task.names[row.argmax()]
               for item, row in zip(choose.items, probabilities, strict=True) if row.max() >= certificate.threshold}
    store = Store(job.store)
    said = store.read(annotator=annotator, prompt_hash=tags.get("prompt_hash"), items=list(answers), replies=False)
    store.close()
    return teacher_accuracy(said, answers, job.task).get(annotator)


def record(past: Past, asked: Certification, student: Student, calibrated: Calibrated, thresholds: list[float],
           certificate: Certificate, paid: Budget, teacher: Interval | None, out: Path) -> None:
    """Files, figures and the statement, in a run of their own that names the one it certifies."""
    stored, note, spec = past.stored, past.note, asked.calibration
    before, after = calibrated.before, calibrated.after
    told = certificates.statement(certificate)
    calibration = {
        "format": FORMAT, "run": stored.id, "task": student.task, "task_version": student.task_version,
        "classes": student.classes, **calibrated.to_dict(),
    }
    document = {
        "format": FORMAT, "statement": told, "rehearsal": note or False, "run": stored.id, "task": student.task,
        "task_version": student.task_version, "student": _digest(past.checkpoint), "runtime": student.runtime,
        "dtype": student.dtype, **certificate.to_dict(),
        "thresholds_declared": thresholds, "confidence": {"delta": spec.delta, "spent_now": paid.delta,
                                                          "left": paid.left, "earlier_certifications": paid.earlier,
                                                          "asked_before": paid.paid},
        "teacher_agreement": vars(teacher) if teacher else None,
    }
    tags = {"flywheel.stage": "certify", "flywheel.certifies": stored.id, "task": past.job.task.name,
            "student": past.job.student.name, "runtime": student.runtime, "dtype": student.dtype,
            "rehearsal": note or "no", "certified": str(bool(certificate.certified))}
    with open_run(uri=asked.tracking.uri, experiment=stored.experiment, artifacts=Path(asked.tracking.artifacts),
                  name=f"certified at {spec.target_precision:g}: {stored.name}", tags=tags) as run:
        run.metrics({**figures(certificate, paid, teacher), **calibrated.figures()})
        for name, content in (("calibration.json", calibration), ("certificate.json", document)):
            (out / name).write_text(json.dumps(content, indent=2), encoding="utf-8")
            run.file(out / name)
        for name in (MODEL, MODEL_INT8):
            if student.runtime != "torch" and (out / name).exists():
                run.file(out / name)
        run.figure(certificates.figure(certificate, before, after, confidence=calibrated.confidence,
                                       correct=calibrated.correct, title=f"{stored.name}: calibration and certificate",
                                       note=note), "certificate")
    rows = [("calibration error (ECE) on choose, by folds", f"{before.ece:.3f} → {after.ece:.3f}"),
            ("Brier score on choose, by folds", f"{before.brier:.3f} → {after.brier:.3f}"),
            ("coverage (certify)", str(certificate.coverage) if certificate.certified else "none"),
            ("agreement with the teacher (choose; not certified)", str(teacher) if teacher else "not known"),
            ("confidence spent", f"{paid.delta:g} of {spec.delta:g}" + (", in an earlier run" if paid.paid else "")),
            ("confidence left on this gold", f"{paid.left:g}, {paid.earlier} certification(s) before")]
    table(f"{stored.name}, precision {spec.target_precision:g} {note}".strip(), rows, ("what", "figure"))
    say(told + (f" {note}" if note else ""))
    say(f"Certificate, calibration and picture: MLflow run {run.id}")
    refresh_report(asked.tracking.uri, stored.id, past.dataset.splits, out)


def figures(certificate: Certificate, paid: Budget, teacher: Interval | None) -> dict[str, float]:
    """`cascade/precision` is what was seen among accepted items; nothing else of the cascade is where none is
    certified."""
    found: dict[str, float] = {"cascade/certified": float(certificate.certified is not None),
                               "cascade/delta": certificate.delta, "cascade/delta_left": paid.left}
    if step := certificate.certified:
        coverage = certificate.coverage
        found |= {"cascade/threshold": step.threshold, "cascade/coverage": coverage.value,
                  "cascade/coverage_low": coverage.low, "cascade/coverage_high": coverage.high,
                  "cascade/escalation_rate": 1 - coverage.value, "cascade/accepted": step.accepted,
                  "cascade/errors": step.errors, "cascade/precision": 1 - step.errors / step.accepted,
                  "cascade/precision_lower_bound": step.lower_bound}
    elif certificate.gold_needed:
        found["cascade/gold_needed"] = certificate.gold_needed
    if teacher:
        found |= {"cascade/teacher_agreement": teacher.value, "cascade/teacher_agreement_low": teacher.low,
                  "cascade/teacher_agreement_high": teacher.high}
    return found


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    main()
