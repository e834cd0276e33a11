"""Signs in a single answer that it may be wrong, without knowing the truth.

They put an item before a person; by default they take nothing from training.
"""

import re

from src.task import Annotation, TaskSpec

UNSURE = re.compile(
    r"\b(unclear|unsure|uncertain|not sure|hard to tell|cannot tell|can't tell|ambiguous|blurry|guess)\b"
)


def doubt(annotation: Annotation, task: TaskSpec) -> str | None:
    """Why this answer deserves a second look, in a few words, or None.

    Its reasons name another class and not its own, under whatever alias, or admit that it is a guess.
    """
    label = task.map_label(annotation.label)
    if label is None:
        return None
    why = annotation.why.lower()
    own = [label, *(alias for alias, name in task.aliases.items() if name == label)]
    named = [name for name in task.names if _speaks_of(why, name)]
    if named and not any(_speaks_of(why, name) for name in own):
        return f"says {label} and speaks of {named[0]}"
    if found := UNSURE.search(why):
        return f"admits doubt: {found.group()}"
    return None


def _speaks_of(why: str, name: str) -> bool:
    """`why` is in lower case, which an alias need not be."""
    return bool(re.search(rf"\b{re.escape(name.lower().replace('_', ' '))}s?\b", why))
