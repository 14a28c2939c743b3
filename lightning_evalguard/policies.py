"""What users may pass for policies and allow lists."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, get_args

from lightning_evalguard.allow import CONSEQUENCES
from lightning_evalguard.checks.registry import CHECKS, RULES
from lightning_evalguard.hints import did_you_mean
from lightning_evalguard.report import Finding, FixPolicy, Policy

Allow = Mapping[str, Sequence[str]]


class Allowed:
    """The findings that are meant, by what a user passed as ``allow=``.

    Args:
        patterns: Per check, glob patterns of qualified names, source files or functions.
    """

    def __init__(self, patterns: Allow) -> None:
        self._patterns = {check: list(each) for check, each in patterns.items()}

    def __contains__(self, finding: Finding) -> bool:
        where = (finding.location or "").rpartition(":")[0]
        if self._match(finding.check, [finding.subject, where, finding.function]):
            return True
        # a module that may be in train mode may do what it does in train mode
        return finding.check in CONSEQUENCES and self._match("modes", [finding.subject])

    def _match(self, check: str, names: Iterable[str | None]) -> bool:
        given = [name for name in names if name is not None]
        for pattern in self._patterns.get(check, ()):
            if any(name == pattern or fnmatchcase(name, pattern) for name in given):
                return True
        return False


def check_policy(name: str, policy: str, allowed: Any) -> None:
    """Refuse a policy that `allowed` (a ``Literal``) does not list.

    Raises:
        ValueError: Naming the keyword and what it takes.
    """
    if policy not in get_args(allowed):
        choices = ", ".join(repr(p) for p in get_args(allowed))
        hint = did_you_mean(str(policy), get_args(allowed))
        raise ValueError(f"{name}={policy!r}: expected one of {choices}{hint}")


def check_allow(allowed: Allow | None) -> None:
    """Refuse an `allow` argument that names no check or holds no patterns.

    Raises:
        ValueError: Naming the entry.
    """
    if not (allowed is None or isinstance(allowed, Mapping)):
        raise ValueError(f"allow={allowed!r}: expected a dict of lists of patterns")
    for check, patterns in (allowed or {}).items():
        if check not in CHECKS:
            listed = ", ".join(sorted(CHECKS))
            hint = did_you_mean(str(check), CHECKS)
            raise ValueError(
                f"allow={{{check!r}: ...}}: expected one of {listed}{hint}"
            )
        is_list = isinstance(patterns, Iterable) and not isinstance(
            patterns, (str, bytes, Mapping)
        )
        if not is_list or not all(isinstance(p, str) for p in patterns):
            raise ValueError(
                f"allow={{{check!r}: {patterns!r}}}: expected a list of patterns"
            )


def check_policies(**policies: str) -> dict[str, str]:
    """Refuse an unknown policy; only `modes` and `rng` can be repaired.

    Raises:
        ValueError: Naming the keyword and what it takes.
    """
    for name, policy in policies.items():
        if name not in CHECKS:
            listed = ", ".join(sorted(CHECKS))
            hint = did_you_mean(name, CHECKS)
            raise ValueError(f"{name}={policy!r}: expected one of {listed}{hint}")
        check_policy(name, policy, FixPolicy if RULES[name].fixable else Policy)
    return policies
