"""The cascade in front of traffic: `python -m src.serve run=<id>` answers over HTTP, asks the LLM about what the
student doubts, and has a page where people decide the rest.

What is promised of its answers is the certificate's; without one the student answers nothing alone.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig

from src.address import without_passwords
from src.config import CONF, Serve, output_folder, read
from src.console import entry_point, say, warn
from src.data.images import decode, square
from src.errors import ConfigError, DataError
from src.labeling.ask import rehearses
from src.reopen import Past, reopen, student_of, truths
from src.serving.access import Access
from src.serving.server import Model, Serving, serve
from src.serving.teacher import TeacherLane
from src.store import Store
from src.student.device import resolve
from src.student.images import decode as decode_items
from src.student.protocol import Student
from src.tracking import run_of
from src.trust import Trust, is_rehearsed, trusted

PAYER = "serve"
MakesLane = Callable[[Store], TeacherLane]


@hydra.main(config_path=CONF, config_name="serve", version_base="1.3")
@entry_point
def main(cfg: DictConfig) -> None:
    asked: Serve = read(cfg, Serve)
    access = Access(asked.serving.host, os.environ)
    device, out = resolve(asked.accelerator, "accelerator"), output_folder()
    if asked.sample_traffic and not access.open:
        raise ConfigError("sample_traffic", asked.sample_traffic, "0 where clients need keys, which it has none of")
    run, name = run_of(asked.tracking.uri, asked.run)
    past = reopen(asked.tracking.uri, run, home=Path(asked.home), out=out)
    known = known_truths(past) if is_rehearsed(past) else {}
    teacher = teacher_of(past, asked, known)
    student = student_of(past, runtime=asked.runtime, dtype=asked.dtype, margin=asked.margin, device=device, out=out)
    trust = trust_in(past, student, asked)
    say(f"{name}: {student.name} in {student.dtype} on {student.runtime}. {trust.statement} {past.note}".strip())
    warm_up(student, asked.serving.batch_images)
    serve(served(past, student, trust, teacher, known, asked, access, name))


def trust_in(past: Past, student: Student, asked: Serve) -> Trust:
    choose = past.dataset.splits.choose
    images = decode_items(choose, student.input_size, sharpen=student.sharpen,
                          max_pixels=past.job.data.max_pixels, what="decoding gold")
    return trusted(past, student, student.predict(images), truths(choose, student.classes), cascade=asked.cascade,
                   target_precision=asked.target_precision, uri=asked.tracking.uri)


def warm_up(student: Student, most: int) -> None:
    """Runtimes prepare for each number of images when it first comes, 0.2 s long: not while somebody waits."""
    side = student.input_size
    for count in sorted({*(2**power for power in range(most.bit_length())), most}):
        student.predict(np.zeros((count, 3, side, side), np.uint8))


def known_truths(past: Past) -> dict[str, str]:
    """Item → class, of all that the run's data tells: what a stand-in can be asked about."""
    splits = past.dataset.splits
    return {item.key: item.truth for part in (splits.pool, splits.choose, splits.certify, splits.test)
            for item in part if item.truth}


def served(past: Past, student: Student, trust: Trust, teacher: MakesLane | None, known: dict[str, str], asked: Serve,
           access: Access, name: str) -> Serving:
    """What the server is made of."""
    job, samples = past.job, []
    if asked.sample_traffic:
        samples = [Path(item.payload).read_bytes() for item in past.dataset.splits.test]
        if not samples:
            raise DataError(f"run={past.stored.id!r} has no test part to take sample traffic from: "
                            "leave sample_traffic at 0.")

    def see(payload: bytes) -> NDArray[np.uint8]:
        image = decode(payload, job.data.max_pixels)
        return square(image, student.input_size, sharpen=student.sharpen).transpose(2, 0, 1)

    def predict(images: NDArray[np.uint8]) -> Any:
        return trust.probabilities(student.predict(images))

    return Serving(task=job.task, model=Model(name, see, predict), policy=trust.policy,
                   teacher=teacher, rehearsal=is_rehearsed(past), truths=known,
                   spec=asked.serving, access=access, home=Path(asked.home), store=asked.store,
                   max_pixels=job.data.max_pixels, samples=samples, sample_traffic=asked.sample_traffic)


def teacher_of(past: Past, asked: Serve, known: dict[str, str]) -> MakesLane | None:
    """How the lane to the run's own teacher is made; None where nobody may be asked."""
    job, spec, rehearsal = past.job, asked.serving, is_rehearsed(past)
    # The run's config holds no passwords.
    shown = without_passwords(asked.store)
    if shown != job.store and Path(shown).resolve() != Path(job.store).resolve():
        warn(f"Decisions go to store={shown}, and the run's own store is another: what the LLM said about gold, by "
             "which its answers are believed, may not be there.")
    if job.teacher.answers:
        warn(f"The run's teacher is a recording ({job.teacher.answers}), which knows nothing of new images: people get "
             "all that the student doubts.")
        return None
    if not rehearsal and job.teacher.lacks_key and spec.max_usd_per_hour == 0:
        warn("serving.max_usd_per_hour=0 and no key: the LLM is not asked, people get all that the student doubts.")
        return None
    if not rehearsal and rehearses("auto", [job.teacher], drawn=past.dataset.drawn):
        raise ConfigError(job.teacher.key_env or "rehearsal", "", "the run's teacher needs a key to be asked: export "
                          "it, or serve without the LLM by serving.max_usd_per_hour=0")
    if rehearsal:
        warn(f"{past.note or 'REHEARSAL'}: a stand-in answers for the LLM, about images of the run's own data alone.")
    gold = {item.key: item.truth for item in past.dataset.splits.choose if item.truth}

    def lane(store: Store) -> TeacherLane:
        return TeacherLane(task=job.task, teacher=job.teacher, how=job.data.shown, spec=job.labeler, store=store,
                           gold=gold, max_usd_per_hour=spec.max_usd_per_hour, max_pixels=job.data.max_pixels,
                           rehearsal=job.rehearsal if rehearsal else None, truths=known, seed=job.seed,
                           job=PAYER)

    return lane


if __name__ == "__main__":
    main()
