"""Has this project recorded another score of the same weights on the same samples?"""

from __future__ import annotations

from collections.abc import Iterable

from lightning_evalguard.checks.check import Moment
from lightning_evalguard.checks.weights.words import weights_finding
from lightning_evalguard.record.agreement import Disagreement
from lightning_evalguard.report import Finding

_NAMED = 3


def contradicted(found: Iterable[Disagreement], now: Moment) -> list[Finding]:
    """One finding for all the scores of a run that an earlier record has otherwise."""
    each = list(found)
    if not each:
        return []
    first = each[0]
    more = ""
    if len(each) > 1:
        more = f", and so are {len(each) - 1} more scores"
    differences = first.differences
    if differences:
        others = len(differences) - _NAMED
        named = "; ".join(differences[:_NAMED]) + (
            f"; {others} more" if others > 0 else ""
        )
        why = f"what differs: {named}"
        remedy = "Evaluate with the settings of the record, or train and compare under these."
    else:
        why = "versions, precision, batch size, hyper-parameters and revision are the same"
        remedy = "Look for what the weights do not hold: an attribute, a global, an order, a clock."
    return [
        weights_finding(
            now,
            f"is {first.value:.6g}, and {first.recorded:.6g} in this project's record of "
            f"{first.when} for the same weights on the same samples{more}; {why}",
            remedy,
            subject=first.key,
        )
    ]
