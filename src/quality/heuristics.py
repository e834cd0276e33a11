"""Signs in a single answer that it may be wrong, without knowing the truth.

They put an item before a person; by default they take nothing from training.
"""

import re

from src.task import Annotation, TaskSpec

UNSURE = re.compile(r"\b(unclear|unsure|uncertain|not sure|hard to tell|cannot tell|can't tell|ambiguous|blurry|guess)\b")


def doubt(annotation: Annotation, task: TaskSpec) -> str | None:
    """Why this answer deserves a second look, in a few words, or None.

    Its reasons name another class and not its own, or admit that it is a guess.
    """
    label = task.map_label(annotation.label)
    if label is None:
        return None
    why = annotation.why.lower()
    named = [name for name in task.names if re.search(rf"\b{re.escape(name.replace('_', ' '))}s?\b", why)]
    if named and label not in named:
        return f"says {label} and speaks of {named[0]}"
    if found := UNSURE.search(why):
        return f"admits doubt: {found.group()}"
    return None
