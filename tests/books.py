"""A server's own books, and the store's held against them.

The server bills like a tokenizer that makes a token of every byte: the worst case that a labeler has to reckon with.
"""

import contextlib
import json
import math
import random
import sqlite3
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from scripted_server import TASK, Asked, make_teacher, make_texts

from src.labeling.plan import again_usd, worst_usd
from src.labeling.prompt import render
from src.labeling.teacher import Price
from src.store import Store
from src.task import Annotation, Failure

MAX_TOKENS = 100  # of an answer
TEACHER: dict[str, Any] = {"price": Price(input_usd=40.0, output_usd=200.0, source="", date=""),
                           "max_tokens": MAX_TOKENS}
FRAME = 10  # tokens around each message


@dataclass(frozen=True)
class Entry:
    """One request as the server booked it; `seen` says whether its reply told what it cost."""

    asked: Asked
    fate: str
    usd: float
    seen: bool


@dataclass(frozen=True)
class Held:
    """A claim as it stands in the store."""

    item: str
    pass_index: int
    annotator: str
    owner: str
    worst_usd: float


def usage(asked: Asked, chance: random.Random) -> dict[str, int]:
    """What a question takes: up to a token for every byte that was sent as words, and up to MAX_TOKENS for the answer.
    """
    contents = [message["content"] for message in asked.body["messages"]]
    parts = [part["text"] for content in contents if isinstance(content, list) for part in content]
    words = [*parts, *(content for content in contents if isinstance(content, str))]
    most = sum(len(text.encode()) for text in words) + FRAME * len(contents)
    return {"prompt_tokens": math.ceil(most * chance.choice([0.1, 0.5, 1.0])),
            "completion_tokens": chance.choice([10, 50, MAX_TOKENS])}


def cost(used: dict[str, int]) -> float:
    return make_teacher("http://x", **TEACHER).cost(used["prompt_tokens"], used["completion_tokens"])


def most_usd() -> float:
    """What one request can cost at the most, an unusable answer shown again included."""
    teacher = make_teacher("http://x", **TEACHER)
    return worst_usd(teacher, render(TASK, None))(make_texts(1)[0].key) + again_usd(teacher, TASK)


def usable(a: Annotation) -> bool:
    return TASK.map_label(a.label) is not None


def last_words(rows: Sequence[Annotation]) -> dict[tuple[str, int], Annotation]:
    """The last annotation of each item and pass."""
    return {(a.item, a.pass_index): a for a in sorted(rows, key=lambda a: a.attempt)}


def at_an_end(rows: Sequence[Annotation], questions: int) -> bool:
    """Whether every question has its answer, or a failure with a name that is not for now alone."""
    last = last_words(rows)
    return len(last) == questions and all(usable(a) or (a.failure and not a.failure.transient) for a in last.values())


def claims(store: Store) -> list[Held]:
    with contextlib.closing(sqlite3.connect(store._shown)) as plain:
        return [Held(*row) for row in plain.execute(
            "SELECT item, pass_index, annotator, owner, worst_usd FROM claims")]


def check_books(ledger: Sequence[Entry], store: Store) -> list[Annotation]:
    """Each bill that was seen is booked as it was, each other one at its worst, no question has less than its bill in
    the books, and none was asked again once its answer was stored. Returns what is stored.

    Replies carry the number of their request as `id`. What is claimed counts as booked: it will be, if it is not given
    up.
    """
    entries = {entry.asked.place: entry for entry in ledger}
    rows, most = store.read(), most_usd()
    booked: dict[tuple[str, int], float] = defaultdict(float)
    stored_at: dict[tuple[str, str, int], int] = {}
    not_seen = 0
    for a in rows:
        reply: Any = None
        with contextlib.suppress(ValueError):
            reply = json.loads(a.reply)
        entry = entries[reply["id"]] if isinstance(reply, dict) and "id" in reply else None
        booked[a.item, a.pass_index] += a.cost_usd
        if entry and entry.seen:
            assert a.cost_usd == pytest.approx(entry.usd, abs=1e-12), entry.fate
        elif a.failure in (Failure.RATE_LIMIT, Failure.OVERLOADED, Failure.BAD_REQUEST):
            assert a.cost_usd == 0
        elif a.cost_usd:
            not_seen += 1
            assert 0 < a.cost_usd <= most + 1e-12
        if usable(a):
            question = (a.annotator, a.item, a.pass_index)
            assert entry and question not in stored_at, "two answers to one question"
            stored_at[question] = entry.asked.place
    annotators = {a.model: a.annotator for a in rows if usable(a)}
    for entry in ledger:
        question = (annotators.get(entry.asked.model, ""), entry.asked.item, int(entry.asked.question.split("-")[1]))
        assert entry.asked.place <= stored_at.get(question, math.inf), "asked again though its answer is stored"
    for held in claims(store):
        booked[held.item, held.pass_index] += held.worst_usd
    bills: dict[tuple[str, int], float] = defaultdict(float)
    for entry in ledger:
        bills[entry.asked.item, int(entry.asked.question.split("-")[1])] += entry.usd
    for asked, usd in bills.items():
        assert booked[asked] >= usd - 1e-9, f"{asked}: booked below its bill"
    bill = sum(bills.values())
    assert sum(a.cost_usd for a in rows) <= bill + not_seen * most + 1e-9
    cut_off = sum(a.failure in (Failure.LOST, Failure.TIMEOUT) for a in rows)
    assert not_seen <= sum(not entry.seen for entry in ledger) + cut_off
    return rows
