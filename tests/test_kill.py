"""`kill -9` of a labelling process at any moment: what reached the disk is not asked again, and all is answered."""

import random
import sqlite3
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest
from labelling_process import Labelling, labelling, question

KILLS = 20
CONCURRENCY = 10
ITEMS = 400
DRAINED_S = 0.5  # more than any answer of the stand-in takes: after that its ledger stands still


def kill_while_starting(label: Labelling, process: "subprocess.Popen[str]", chance: random.Random) -> None:
    time.sleep(chance.uniform(0.0, 5.0))


def kill_in_flight(label: Labelling, process: "subprocess.Popen[str]", chance: random.Random) -> None:
    label.wait_for_answers(process, len(label.ledger()))
    time.sleep(chance.uniform(0.0, 0.4))


def kill_between_reply_and_commit(label: Labelling, process: "subprocess.Popen[str]", chance: random.Random) -> None:
    """Somebody else holds the database: the answers arrive, and none gets to the disk."""
    label.wait_for_answers(process, len(label.ledger()))
    holder = sqlite3.connect(label.store_file, isolation_level=None, timeout=5)
    holder.execute("BEGIN IMMEDIATE")
    try:
        time.sleep(DRAINED_S)
        process.kill()
        process.wait()
    finally:
        holder.close()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_at_twenty_moments_nothing_is_asked_twice_but_what_was_in_flight(tmp_path: Path) -> None:
    chance = random.Random(0)
    moments = [kill_while_starting] * 3 + [kill_between_reply_and_commit] * 4 + [kill_in_flight] * (KILLS - 7)
    chance.shuffle(moments)
    lost_times: Counter[str] = Counter()
    lost_at: dict[str, list[int]] = {moment.__name__: [] for moment in moments}
    teacher = {"latency_ms_median": 60.0, "latency_sigma": 0.4, "overloaded": 0.02}
    with labelling(tmp_path, f"labeler.max_items={ITEMS}", f"labeler.concurrency={CONCURRENCY}", **teacher) as label:
        # The question that every start must answer for: what may be asked, since no answer to it is on disk?
        on_disk: set[str] = set()
        seen = 0
        for moment in moments:
            process = label.start()
            moment(label, process, chance)
            assert process.poll() in (None, -9), f"it ended before it was killed: {process.communicate()[0]}"
            process.kill()
            process.communicate()
            time.sleep(DRAINED_S)

            ledger = label.ledger()
            answered = Counter(record["question"] for record in ledger[seen:] if record["kind"] == "label")
            seen = len(ledger)
            assert set(answered.values()) <= {1}, "no start asks anything twice"
            assert not on_disk & answered.keys(), "what is on disk is not asked again"
            stored = [question(a) for a in label.stored()]
            assert len(stored) == len(set(stored)) and on_disk <= set(stored), "nothing on disk is lost"
            assert set(stored) - on_disk <= answered.keys(), "nothing is on disk that was not answered"
            on_disk = set(stored)
            lost = answered.keys() - on_disk
            assert len(lost) <= CONCURRENCY, f"{moment.__name__}: more was lost than can be in flight"
            lost_times.update(lost)
            lost_at[moment.__name__].append(len(lost))

        process = label.start()
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said
        answered = Counter(record["question"] for record in label.ledger() if record["kind"] == "label")
        final = label.stored()

    # 20 of gold and the pool, two passes each; the stand-in is never wrong.
    assert len(answered) == 2 * (20 + ITEMS)
    assert sorted(question(a) for a in final) == sorted(answered)
    assert all(a.failure is None and a.attempt == 0 and a.label for a in final)
    assert {q: times - 1 for q, times in answered.items() if times > 1} == dict(lost_times)
    assert sum(answered.values()) - len(answered) <= KILLS * CONCURRENCY
    # The test has met what it is about.
    assert min(lost_at["kill_between_reply_and_commit"]) >= 1, lost_at
    assert sum(map(bool, lost_at["kill_in_flight"])) >= 3, lost_at
