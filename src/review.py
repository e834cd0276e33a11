"""Hand labels to people and take back what they say: `python -m src.review +experiment=cifar5 action=export`.

The keys of `src.label` and four of its own (conf/review.yaml). Asks no teacher: labels are concluded from the store.
"""

import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from src.config import CONF, Review, read
from src.console import entry_point, say, warn
from src.errors import ReviewError
from src.labels import Labelled, make_labels
from src.quality.contact_sheet import contact_sheet
from src.quality.label_studio_answers import import_answers
from src.quality.label_studio_tasks import embedded, export_tasks, local
from src.quality.review_file import ReviewFile
from src.quality.review_list import Listed, to_review
from src.quality.reviewers import last_words, reviewer_agreement
from src.quality.spot_checks import audit
from src.quality.spreadsheet import write_whole
from src.store import Store
from src.task import Item


@hydra.main(config_path=CONF, config_name="review", version_base="1.3")
@entry_point
def main(cfg: DictConfig) -> None:
    job: Review = read(cfg, Review)
    store, quality = Store(job.store), job.quality
    if quality.consensus == "crowdlab":
        warn("No student is asked here: labels are listed and judged as quality.consensus=majority has them.")
        quality = replace(quality, consensus="majority")
    made = make_labels(
        task=job.task, data=job.data, teachers=job.teachers, arbiter=job.arbiter, labeler=job.labeler,
        quality=quality, rehearsal=job.rehearsal, home=Path(job.home), store=store, out=None, seed=job.seed,
    )
    splits = made.dataset.splits
    items = {item.key: item for part in splits.sizes() for item in getattr(splits, part)}
    file = ReviewFile(Path(job.home) / "review" / job.task.name / "review_labels.csv", job.task, job.quality.reviewer)
    if job.action == "import":
        _import(job, file, store, items)
    else:
        _export(job, file, store, items, made)
    _judge(job, file, store, made, items)


def _export(job: Review, file: ReviewFile, store: Store, items: Mapping[str, Item], made: Labelled) -> None:
    if not made.labels:
        raise ReviewError("No item has an answer yet, so there is nothing to review. Label first: "
                          f".venv/bin/python -m src.label {_keys()}")
    listed = to_review(made.labels, made.unreviewed, keep=last_words(file.annotations(store), job.task),
                       spot_checks=job.quality.spot_checks, seed=job.data.split_seed)
    if job.format == "label_studio":
        open_ones = [one for one in listed if one.label.reason != "reviewed"]
        _export_tasks(job, file.path.with_name("label_studio_tasks.json"), items, made, open_ones)
        return
    written = file.export(made.labels, items, store, unreviewed=made.unreviewed, spot_checks=job.quality.spot_checks,
                          seed=job.data.split_seed)
    say(f"To review: {written} ({_counted(listed)}). Write a class into label_final.")
    page = written.with_name("review.html")
    title = f"{job.task.name}: to review {made.stand_ins}".strip()
    write_whole(page, contact_sheet(listed, items, title=title, max_pixels=job.data.max_pixels))
    say(f"The same to look at: {page}")
    say(f"Then run any job, or: {_again('import')}")


def _export_tasks(job: Review, path: Path, items: Mapping[str, Item], made: Labelled, listed: list[Listed]) -> None:
    root = made.dataset.root.resolve()
    address = embedded(job.data.max_pixels) if job.images == "embedded" else local(root)
    config = export_tasks(path, listed, items, job.task, address=address)
    say(f"Label Studio tasks to import: {path} ({_counted(listed)}) {made.stand_ins}".rstrip())
    say(f"Labeling config to paste (Settings, Labeling Interface, Code): {config}")
    if job.images == "local" and any(isinstance(item.payload, Path) for item in items.values()):
        say(f"Start Label Studio with LOCAL_FILES_SERVING_ENABLED=true LOCAL_FILES_DOCUMENT_ROOT={root.parent} and add "
            f"{root} to the project as a source storage of local files, without syncing it.")
    say(f"Export the answers as JSON or JSON-MIN, then: {_again('import', 'format=label_studio', 'file=EXPORT.json')}")


def _import(job: Review, file: ReviewFile, store: Store, items: Mapping[str, Item]) -> None:
    given = Path(job.file).expanduser() if job.file else None
    if job.format == "label_studio" and given:
        found = import_answers(given, store, task=job.task, items=items)
        say(f"{found.new} answer(s) by {found.people} people imported from {given}; {found.known} known before, "
            f"{found.empty} empty or skipped. The next run trains on them.")
        return
    count = file.import_edits(store, given)
    say(f"{count} edit(s) imported from {given or file.path}. The next run trains on them.")


def _judge(job: Review, file: ReviewFile, store: Store, made: Labelled, items: Mapping[str, Item]) -> None:
    """What people's answers so far say of the labels, and of each other."""
    reviews = file.annotations(store)
    found = audit(made.unreviewed, reviews, task=job.task, spot_checks=job.quality.spot_checks,
                  seed=job.data.split_seed)
    if found:
        say(f"Accepted labels' accuracy by spot checks: {found.accuracy} ({len(found.wrong)} wrong)")
    if found and found.next:
        waiting = f"; {found.waiting} answered behind it wait for that" if found.waiting else ""
        say(f"Next of {found.drawn} spot checks: {items[found.next].name}{waiting}")
    if agreed := reviewer_agreement(reviews, job.task):
        say(f"Reviewers agree: {agreed}")


def _counted(listed: list[Listed]) -> str:
    spots = sum(one.blind for one in listed)
    return f"{len(listed)} items, {spots} of them spot checks"


def _keys() -> str:
    """The command line's own keys, without those of this entry point."""
    own = ("action=", "format=", "images=", "file=")
    return shlex.join(key for key in HydraConfig.get().overrides.task if not key.startswith(own))


def _again(action: str, *further: str) -> str:
    return " ".join(filter(None, [".venv/bin/python -m src.review", _keys(), f"action={action}", *further]))


if __name__ == "__main__":
    main()
