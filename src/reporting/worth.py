"""What the student is worth before its LLM, by the newest replay: how right both are together, and what that costs."""

import math
from collections.abc import Mapping
from typing import Any

from src.metrics import Interval
from src.reporting.findings import Findings, interval
from src.reporting.plot import accuracy_for_cost
from src.reporting.wording import dollar

MARKS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
MILLION = 1_000_000
VOLUMES = (10_000, 100_000, MILLION, 10 * MILLION)  # items a month
PAYS = {"pays": "it pays", "unsure": "it is not certain whether it pays", "does not pay": "it does not pay"}


def cascades(found: Findings) -> dict[str, Any] | None:
    """The newest replay of student → LLM → person; None where none was made."""
    if not found.replays:
        return None
    newest = found.replays[0]
    rows = [_answerer(mark, row) for mark, row in zip(MARKS, newest.rows.to_dict("records"), strict=False)]
    # Where nothing is certified the first one leaves everything to the LLM, and says nothing about the student.
    used = next((row for row in rows if row["kind"] == "cascade" and row["escalated"] and row["escalated"].value < 1),
                None)
    llm = next((row for row in rows if row["kind"] == "llm"), None)
    return {"run": newest.run, "when": newest.when, "rows": rows, "earlier": len(found.replays) - 1,
            "n": int(newest.rows.n.iloc[0]), "plot": accuracy_for_cost(rows), "used": used, "llm": llm,
            "saved": _saved(used, llm)}


def money(found: Findings, replayed: Mapping[str, Any] | None) -> dict[str, Any]:
    """What the labels cost, and what the student takes off the LLM's bill, by the replay of `cascades`."""
    figures, accepted = found.figures, int((found.labels.accepted == "true").sum())
    total = figures.get("label/cost_usd", 0.0)
    saved = replayed["saved"] if replayed else None
    llm = replayed["llm"]["usd"] if replayed and replayed["llm"] else None
    # A month's items, the LLM's bill alone and with the student, what is left, and the items for people.
    months = [(volume, volume * llm / MILLION, _times(saved, -volume * llm / MILLION, volume * llm / MILLION),
               _times(saved, volume * llm / MILLION), _times(replayed["used"]["people"], volume))
              for volume in VOLUMES] if replayed and saved and llm else []
    # Fewest and most items after which the labels have come back; the most where a saving is not sure is none.
    back = [total * MILLION / (llm * share) if share > 0 else None for share in (saved.high, saved.low)] \
        if saved and llm and total and saved.value > 0 else None
    return {"total": total, "accepted": accepted, "per_thousand": 1000 * total / accepted if accepted else None,
            "this_run": figures.get("label/cost_usd_this_run", 0.0), "requests": int(figures.get("label/requests", 0)),
            "reused": int(figures.get("label/reused", 0)), "price": found.config["teacher"].get("price"),
            "model": found.config["teacher"]["model"], "llm_per_million": llm,
            "llm_n": replayed["n"] if replayed else 0, "months": months, "back": back, "cost": _reckoned(found.cost)}


def together(cascades: Mapping[str, Any]) -> list[str]:
    """What the cascade in use is worth beside the LLM alone, what it saves, and what it leaves to people."""
    used, llm, saved = cascades["used"], cascades["llm"], cascades["saved"]
    told = []
    if used["accuracy"]:
        way = "With the LLM for the rest" if used["certified"] else \
            "With a usual threshold, which promises nothing, and the LLM for the rest"
        told.append(f"{way}, {used['accuracy'].value:.0%} of the answers are right")
        if llm and llm["accuracy"]:
            told[0] += f"; the LLM alone gets {llm['accuracy'].value:.0%}"
            if used["accuracy"].low <= llm["accuracy"].high and llm["accuracy"].low <= used["accuracy"].high:
                told[0] += " (their intervals overlap: take them for about the same)"
        told[0] += "."
    if saved:
        told.append(f"The LLM is asked about {used['escalated'].value:.0%} of the items, and its bill for a million "
                    "items " + (f"falls from {dollar(llm['usd'])} to {dollar(used['usd'])}." if saved.value > 0 else
                       f"does not fall: {dollar(used['usd'])} instead of {dollar(llm['usd'])}."))
    if used["people"]:
        told.append(f"People decide {used['people'].value:.1%} of the items." if used["people"].value else
                    f"None of the {cascades['n']:,} items had to be decided by a person.")
    return told


def _answerer(mark: str, row: Mapping[Any, Any]) -> dict[str, Any]:
    known = {name: value for name, value in row.items() if not (isinstance(value, float) and math.isnan(value))}
    # Of how many answers these are shares is known where every case has a truth.
    complete = known["judged"] == known["n"]
    known["own"] = round(known["coverage"] * known["n"]) if complete else 0
    known["automatic"] = round((1 - known.get("human_rate", 0.0)) * known["n"]) if complete else 0
    return {"mark": mark, "what": row["what"], "kind": row["kind"], "best_cheap": bool(row.get("best_cheap")),
            "certified": "certified at" in row["what"], "accuracy": interval(known, "accuracy", "automatic"),
            "student": interval(known, "student_accuracy", "own"),
            "escalated": interval(known, "escalation_rate", "n"), "people": interval(known, "human_rate", "n"),
            "usd": known.get("llm_usd_per_million"), "mean_ms": known.get("latency_mean_ms"),
            "p95_ms": known.get("latency_p95_ms")}


def _saved(used: Mapping[str, Any] | None, llm: Mapping[str, Any] | None) -> Interval | None:
    """The share of the LLM's bill that a cascade saves, with the interval of the share that it escalates; None without
    a price."""
    if not used or not llm or not llm["usd"] or used["usd"] is None:
        return None
    asked = used["escalated"]
    each = used["usd"] / asked.value if asked.value else llm["usd"]
    value, low, high = (1 - rate * each / llm["usd"] for rate in (asked.value, asked.high, asked.low))
    return Interval(value, low, high, asked.n)


def _times(share: Interval | None, factor: float, plus: float = 0.0) -> Interval | None:
    """The interval of `plus + factor × share`."""
    if share is None:
        return None
    low, high = sorted((plus + factor * share.low, plus + factor * share.high))
    return Interval(plus + factor * share.value, low, high, share.n)


def _reckoned(cost: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What `src.cost` said last about this run."""
    if cost is None:
        return None
    return {"verdict": PAYS.get(cost["verdict"], cost["verdict"]), "statement": cost["statement"],
            "volume": float(cost["inputs"]["volume"]), "escalated": float(cost["inputs"]["escalation_rate"])}
