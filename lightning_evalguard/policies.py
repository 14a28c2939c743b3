"""What users may pass for policies and allow lists."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from lightning_evalguard.checks.registry import CHECKS, RULES
from lightning_evalguard.report import FixPolicy, Policy, check_policy

Allow = Mapping[str, Sequence[str]]


def check_allow(allowed: Allow | None) -> None:
    """Refuse an `allow` argument that names no check or holds no patterns.

    Raises:
        ValueError: Naming the entry.
    """
    if not (allowed is None or isinstance(allowed, Mapping)):
        raise ValueError(f"allow={allowed!r}: expected a dict of lists of patterns")
    for check, patterns in (allowed or {}).items():
        if check not in CHECKS:
            raise ValueError(
                f"allow={{{check!r}: ...}}: expected one of {', '.join(sorted(CHECKS))}"
            )
        listed = isinstance(patterns, Iterable) and not isinstance(patterns, (str, bytes, Mapping))
        if not listed or not all(isinstance(p, str) for p in patterns):
            raise ValueError(f"allow={{{check!r}: {patterns!r}}}: expected a list of patterns")


def check_policies(**policies: str) -> dict[str, str]:
    """Refuse an unknown policy; only `modes` and `rng` can be repaired.

    Raises:
        ValueError: Naming the keyword and what it takes.
    """
    for name, policy in policies.items():
        check_policy(name, policy, FixPolicy if RULES[name].fixable else Policy)
    return policies
