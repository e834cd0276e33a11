"""Numbers and names as the report writes them. Knows nothing about runs."""

from markupsafe import Markup, escape

from src.cost_model.words import dollars


def percent(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{value:.{digits}%}"


def exact(share: float) -> str:
    """A share that was asked for or promised, with all its digits: rounding up would promise more."""
    return f"{100 * share:.10g}%"


def dollar(value: float | None) -> str:
    """A sum, or a dash where it is not known."""
    return "–" if value is None else dollars(value)


def whole_dollars(value: float) -> str:
    """A sum of a month: cents matter below a hundred."""
    sign, size = "-" if value < -0.005 else "", abs(value)
    return f"{sign}${size:,.0f}" if size >= 100 else f"{sign}${size:,.2f}"


def plain_name(annotator: str) -> str:
    """An annotator's name without its sampling settings and its hash."""
    name = annotator.split("?")[0].split("#")[0]
    return f"{name.removeprefix('rehearsal:')} (stand-in)" if name.startswith("rehearsal:") else name


def breakable(name: str) -> Markup:
    """A class's name that a narrow line may break at its underscores."""
    return escape(name).replace("_", Markup("_<wbr>"))


def about(n: float) -> str:
    """Two digits of a number of items: more would claim to know them."""
    return f"{float(f'{n:.2g}'):,.0f}"


def count(n: int) -> str:
    return f"{n:,}"
