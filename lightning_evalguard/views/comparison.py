"""Do two runs on the same samples differ by more than chance?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from lightning_evalguard.confusion.result import ConfusionResult
from lightning_evalguard.record.outcomes import paired

_LEVEL = 0.05
_COMPARED = ("accuracy", "hamming_accuracy", "f1_macro")


def differences(
    first: Mapping[str, Any], second: Mapping[str, Any], names: tuple[str, str]
) -> Iterator[str]:
    """One sentence for each set on which both records hold scores.

    Args:
        first: A record.
        second: Another one.
        names: What they are called.
    """
    ours = _last(first)
    theirs = _last(second)
    for key in ours:
        if key in theirs:
            yield from _difference(key, ours[key], theirs[key], names)


def _last(record: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The last run that was scored on each set, by the set's key."""
    return {key: run for run in record["runs"] for key in run.get("confusion", {})}


def _difference(
    key: str, ours: Mapping[str, Any], theirs: Mapping[str, Any], names: tuple[str, str]
) -> Iterator[str]:
    a, b = (ConfusionResult.from_dict(run["confusion"][key]) for run in (ours, theirs))
    name = next((k for k in _COMPARED if k in a.scores and k in b.scores), None)
    if name is None or not a.total or not b.total:
        return
    said = f"{key}: {name} {a.scores[name]:.4f} and {b.scores[name]:.4f}"
    pair = paired(*(run.get("outcomes", {}).get(key) for run in (ours, theirs)))
    if pair is not None:
        p = pair.p_value
        yield (
            f"{said} differ by {_words(p < _LEVEL)}: of {pair.samples:,} samples "
            f"{pair.only_first:,} are right in {names[0]} alone and {pair.only_second:,} in "
            f"{names[1]} alone (McNemar's exact test, p = {p:.2g})"
        )
        return
    if not _are_of_one_set(key, ours, theirs):
        return
    low, high = _of_difference(a, b, name)
    yield (
        f"{said} differ by {_words(low > 0 or high < 0)}: {b.scores[name] - a.scores[name]:+.4f}, "
        f"{low:+.4f} to {high:+.4f} by their 95 % intervals (EvalGuard(outcomes=True) in both runs "
        "compares them sample by sample, which tells smaller differences)"
    )


def _of_difference(
    a: ConfusionResult, b: ConfusionResult, name: str
) -> tuple[float, float]:
    """The 95 % interval of how much higher `b` is, as if the samples were others (Newcombe 1998).

    Example:
        >>> from lightning_evalguard.confusion.matrix import ConfusionMatrix
        >>> confmat = ConfusionMatrix(2)
        >>> low, high = _of_difference(*[confmat.result()] * 2, "accuracy")
        >>> low != low
        True
    """
    (a_low, a_high), (b_low, b_high) = a.interval(name), b.interval(name)
    ours = a.scores[name]
    theirs = b.scores[name]
    difference = theirs - ours
    below = math.hypot(theirs - b_low, a_high - ours)
    above = math.hypot(b_high - theirs, ours - a_low)
    return difference - below, difference + above


def _words(more: bool) -> str:
    if more:
        return "more than chance"
    return "no more than chance"


def _are_of_one_set(
    key: str, ours: Mapping[str, Any], theirs: Mapping[str, Any]
) -> bool:
    """Whether both were scored on the same samples, as their hashes tell."""
    hashes = [
        run.get("evaluated_on", {}).get(key, {}).get("hash") for run in (ours, theirs)
    ]
    return hashes[0] is not None and hashes[0] == hashes[1]
