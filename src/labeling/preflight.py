"""A handful of answers looked at before the rest is paid for: does the teacher see what it is shown?

A wrong image part once made a model answer "apple" to everything, unseen for a whole run. Pure: answers in, a reason to
stop out. Knows nothing about how they were got.
"""

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import zip_longest

from PIL import Image
from scipy.special import bdtr  # scipy.stats takes 60 MB

from src.data.spec import Shown
from src.task import Annotation, Failure, Item, TaskSpec

KNOWN = 8  # gold items that are asked about
LEAST = 4  # answers below which nothing can be said
GOOD_ACCURACY = 0.9  # a teacher of this accuracy
RARE = 0.0007  # would answer one class for all by mistake at most this often
FAIR_ACCURACY = 0.6  # a teacher below this is not worth its money,
SURPRISE = 0.01  # and one of at least that would do so badly on KNOWN items at most this often
IGNORED_SHARE = 0.5  # of refused requests or unusable answers, from which on they are no accident
UNUSABLE = (Failure.INVALID_JSON, Failure.UNKNOWN_LABEL, Failure.EMPTY, Failure.TRUNCATED, Failure.REFUSAL)
SHOWN_CHARS = 200  # of a server's or a teacher's own words
ONCE_MORE = "Then run again with labeler.retry_failed=true, or what failed now is not asked again."


def chosen(gold: Sequence[Item], task: TaskSpec) -> list[Item]:
    """KNOWN items of gold, as many classes among them as there are, in an order that depends on the items alone."""
    by_class = [[item for item in gold if item.truth == name] for name in task.names]
    turns = zip_longest(*by_class)
    return [item for turn in turns for item in turn if item][:KNOWN]


def blank(how: Shown | None) -> bytes | str:
    """Nothing at all, of the usual size: a grey picture, or a text without a word."""
    if how is None:
        return "…"
    picture = io.BytesIO()
    Image.new("RGB", (how.size, how.size), (128, 128, 128)).save(picture, format="JPEG", quality=how.jpeg_quality)
    return picture.getvalue()


def objection(answers: Sequence[Annotation], blank_answer: Annotation | None, truths: Mapping[str, str],
              task: TaskSpec, *, images: bool) -> str | None:
    """Why nothing more should be asked of this teacher, or None. `answers` hold the last one for each item; `images`
    says whether these are shown as such."""
    judged = [(label, truths[a.item]) for a in answers if (label := task.map_label(a.label))]
    about_the_blank = task.map_label(blank_answer.label) if blank_answer else None
    return _refuses(answers) or _ignores_the_schema(answers, task) or (
        (_answers_one_class(judged, about_the_blank, images=images) or _errs_too_often(judged))
        if len(judged) >= LEAST else None)


def _refuses(answers: Sequence[Annotation]) -> str | None:
    """A model that takes no images says so by refusing the request."""
    refused = [a for a in answers if a.failure == Failure.BAD_REQUEST]
    if not _no_accident(refused, answers):
        return None
    return (f"{len(refused)} of the first {len(answers)} requests were refused: {refused[0].why[:SHOWN_CHARS]!r}. "
            "Check that the model takes this kind of item, and teacher.json_mode, teacher.sampling and "
            f"teacher.routing. {ONCE_MORE}")


def _ignores_the_schema(answers: Sequence[Annotation], task: TaskSpec) -> str | None:
    failures = [a for a in answers if task.map_label(a.label) is None and a.failure in UNUSABLE]
    if not _no_accident(failures, answers):
        return None
    kinds = Counter(str(a.failure) for a in failures)
    named = ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items()))
    one = failures[0]
    said = f"label: {one.label}" if one.label else " ".join((one.why or one.reply).split())
    return (f"{len(failures)} of the first {len(answers)} answers cannot be used ({named}): the teacher ignores the "
            f"answer's schema. One says {said[:SHOWN_CHARS]!r}. Try another teacher.json_mode, a larger "
            f"teacher.max_tokens, or a plainer prompt. {ONCE_MORE}")


def _no_accident(failures: Sequence[Annotation], answers: Sequence[Annotation]) -> bool:
    return len(answers) >= LEAST and len(failures) >= IGNORED_SHARE * len(answers)


def _answers_one_class(judged: Sequence[tuple[str, str]], about_the_blank: str | None, *, images: bool) -> str | None:
    """`judged` holds pairs of answer and truth. Of a rare class, gold may have too few items to tell."""
    given, true = {label for label, _ in judged}, {truth for _, truth in judged}
    wrong = sum(label != truth for label, truth in judged)
    # Even if a good teacher took everything that it mistakes for this one class.
    by_mistake = GOOD_ACCURACY ** (len(judged) - wrong) * (1 - GOOD_ACCURACY) ** wrong
    if len(given) > 1 or len(true) == 1 or by_mistake > RARE:
        return None
    also = ", and so is the one about a blank item" if about_the_blank in given else ""
    return (f"All {len(judged)} answers about gold items of {len(true)} classes are {judged[0][0]!r}{also}: the "
            "teacher does not seem to see the items. Check "
            + ("that the model takes images and that teacher.base_url passes image_url parts on." if images else
               "the prompt, and that teacher.base_url passes the text part behind it on."))


def _errs_too_often(judged: Sequence[tuple[str, str]]) -> str | None:
    right = sum(label == truth for label, truth in judged)
    if bdtr(right, len(judged), FAIR_ACCURACY) >= SURPRISE:
        return None
    return (f"Only {right} of the first {len(judged)} answers about gold items are right: the teacher does not seem "
            "to see the items, or gold's labels are not what the prompt asks for. Look at the prompt, the model, and "
            "gold.")
