"""CIFAR-100, filtered to the task's classes. Needs torchvision, and only while it prepares."""

from collections.abc import Sequence
from pathlib import Path

from src.console import progress, say
from src.errors import DataError, DataUnavailable

WAY_OUT = "Put `cifar-100-python/` there, name its folder with data.root=…, or use data=rendered."


def bring(into: Path, *, root: Path | None, classes: Sequence[str], download: bool) -> Path:
    """Write `into/train/<class>/` and `into/test/<class>/`, 32×32 PNG files, the official parts.

    `root` holds or will hold torchvision's copy (`cifar-100-python/`). Raises DataUnavailable where there is none and
    it cannot be downloaded, DataError where a class is not one of CIFAR-100's.
    """
    place = root or into.parent / "cifar100"
    if not download and not (place / "cifar-100-python").is_dir():
        raise DataUnavailable(f"CIFAR-100 is not in {place}, and rehearsal=always downloads nothing. {WAY_OUT}")
    from torchvision.datasets import CIFAR100

    try:
        if download and not (place / CIFAR100.base_folder).is_dir():
            say(f"Downloading CIFAR-100 (169 MB) to {place} …")
        parts = {part: CIFAR100(str(place), train=part == "train", download=download) for part in ("train", "test")}
    except (RuntimeError, OSError) as error:  # a missing or damaged copy, no network
        raise DataUnavailable(
            f"CIFAR-100 is not in {place} and could not be downloaded ({error}). {WAY_OUT}"
        ) from error
    missing = sorted(set(classes) - set(parts["train"].classes))
    if missing:
        raise DataError(f"CIFAR-100 has no class {', '.join(missing)}: choose another data source for this task.")
    for part, images in parts.items():
        wanted = [n for n, target in enumerate(images.targets) if images.classes[target] in classes]
        with progress(f"filtering CIFAR-100 {part}", len(wanted)) as update:
            for done, n in enumerate(wanted, start=1):
                image, target = images[n]
                folder = into / part / images.classes[target]
                folder.mkdir(parents=True, exist_ok=True)
                image.save(folder / f"{n:05d}.png")
                update(done)
    return into
