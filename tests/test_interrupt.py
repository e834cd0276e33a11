"""Ctrl-C in a real labelling process: what is paid for is kept, and the same command goes on."""

import signal
from pathlib import Path

from labelling_process import labelling, question


def test_ctrl_c_keeps_what_is_in_flight_and_the_same_command_goes_on(tmp_path: Path) -> None:
    with labelling(tmp_path, "labeler.max_items=80", latency_ms_median=150, latency_sigma=0.2) as label:
        process = label.start()
        label.wait_for_answers(process, 25)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 130, said
        assert "Interrupted. What was answered is kept; the same command goes on from here." in said
        assert "Traceback" not in said
        answered = [record["question"] for record in label.ledger()]
        assert sorted(answered) == sorted(question(a) for a in label.stored()), "all that the server answered"
        first = len(answered)
        assert 25 < first < 190

        process = label.start()
        said, _ = process.communicate(timeout=120)
        assert process.returncode == 0, said
        answered = [record["question"] for record in label.ledger()]
        # Gold's choose part and the pool, twice each, and the preflight's blank; nothing twice.
        assert len(answered) == len(set(answered)) == len(label.stored()) == 2 * (20 + 80) + 1
        assert f"{201 - first} questions to ask" in said and f"{first - 1} answers re-used" in said
