"""Numbers as people write them."""

import math

from src.cost_model.months import DAYS


def dollars(usd: float) -> str:
    """Cents below a thousand; two digits of what is less than ten of them."""
    if not math.isfinite(usd):
        return "–"
    sign, size = "-" if usd < 0 else "", abs(usd)
    return f"{sign}${size:,.0f}" if size >= 1000 else f"{sign}${size:,.2f}" if size >= 0.1 or not size else \
        f"{sign}${two_digits(size)}"


def two_digits(number: float) -> str:
    """Of a positive number, however small, without an exponent."""
    return f"{number:.{max(0, 1 - math.floor(math.log10(number)))}f}"


def round_up(volume: float) -> float:
    """To three digits, so that what is told is enough."""
    step = 10.0 ** max(0, math.floor(math.log10(volume)) - 2)
    return math.ceil(volume / step - 1e-6) * step


def duration(months: float) -> str:
    if months < 2:
        return f"{months * DAYS:.3g} days"
    return f"{months:.3g} months" if months < 36 else f"{months / 12:,.3g} years"
