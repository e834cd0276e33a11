"""Usage and prices in; cost curve, savings and breakeven out. Pure: no files, no runs, no pictures.

Four ways to answer a stream of items are compared: the LLM for each of them, a cheaper LLM alone, the student alone,
and the cascade. Money is in US dollars, a month is a twelfth of 365.25 days. Building (labels, gold, training) is paid
once; hosting and relabelling by the month; the gate, the LLM, people and, where they have a price, mistakes by the
item. `horizon_months` is how long building may take to come back, and what its cost is spread over. Relabelling is
spread evenly over its months.

`inputs` is what is known, `worlds` what is uncertain about it, `months` what a month costs and when building is back,
`verdict` what speaks against it, `economics` all of that at once; `swings` says which key it hangs on, and `published`
checks the figures of the published recipe.
"""

from src.cost_model.economics import Curve, Economics, Option, curve, economics
from src.cost_model.inputs import MILLION, Inputs, Way
from src.cost_model.months import (
    DAYS,
    MONTH_S,
    Pays,
    all_in_usd,
    breakeven_months,
    build_usd,
    machines,
    month_usd,
    pays_from,
    relabel_usd,
    saving_usd,
)
from src.cost_model.published import Claim, claims
from src.cost_model.swings import Swing, sensitivity
from src.cost_model.verdict import Verdict, against, beware
from src.cost_model.words import dollars, round_up, two_digits
from src.cost_model.worlds import Range, World, as_expected, draw

__all__ = ["DAYS", "MILLION", "MONTH_S", "Claim", "Curve", "Economics", "Inputs", "Option", "Pays", "Range", "Swing",
           "Verdict", "Way", "World", "against", "all_in_usd", "as_expected", "beware", "breakeven_months", "build_usd",
           "claims", "curve", "dollars", "draw", "economics", "machines", "month_usd", "pays_from", "relabel_usd",
           "round_up", "saving_usd", "sensitivity", "two_digits"]
