"""What the keywords of `EvalGuard` and of the other hosts may be."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from lightning_evalguard.audit import Mode
from lightning_evalguard.checks.registry import RULES
from lightning_evalguard.checks.sync.check import check_steps
from lightning_evalguard.confusion.config import check_metrics
from lightning_evalguard.policies import check_allow, check_policies, check_policy


def check_keywords(given: Mapping[str, Any]) -> dict[str, str]:
    """Refuse what a host does not take, before anything begins.

    Args:
        given: The local variables of its `__init__`: keywords, and what else is looked past. Each
            host takes some of them.

    Returns:
        The policy of each check that it has.

    Raises:
        ValueError: Naming the keyword and what it takes.
    """
    policies = check_policies(**{n: given[n] for n in RULES if n in given})
    for name, check in _CHECKED.items():
        if name in given:
            check(given[name])
    return policies


def _check_groups(groups: Any) -> None:
    if not (groups is None or isinstance(groups, str) or callable(groups)):
        raise ValueError(f"groups={groups!r}: expected a name, a callable or None")


def _check_outcomes(outcomes: Any) -> None:
    if not isinstance(outcomes, bool):
        raise ValueError(f"outcomes={outcomes!r}: expected True or False")


def _check_budget(budget: Any) -> None:
    is_number = isinstance(budget, (int, float)) and not isinstance(budget, bool)
    if not is_number or not 0 < budget <= 1:
        raise ValueError(f"budget={budget!r}: expected a share above 0 and up to 1")


def _check_train_score(batches: Any) -> None:
    is_count = isinstance(batches, int) and not isinstance(batches, bool)
    if not is_count or batches < 0:
        raise ValueError(
            f"train_score={batches}: expected a number of batches, 0 for none"
        )


def _check_record(record: Any) -> None:
    if not (record is None or isinstance(record, (str, os.PathLike))):
        raise ValueError(f"record={record!r}: expected 'auto', a folder or None")


_CHECKED: dict[str, Callable[[Any], None]] = {
    "audit": lambda audit: check_policy("audit", audit, Mode),
    "allow": check_allow,
    "metrics": check_metrics,
    "groups": _check_groups,
    "outcomes": _check_outcomes,
    "budget": _check_budget,
    "train_score": _check_train_score,
    "sync_steps": check_steps,
    "record": _check_record,
}
