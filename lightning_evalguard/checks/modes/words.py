"""The words in which the `modes` check reports, and its one maker of findings."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from fnmatch import fnmatchcase

from torch import nn

from lightning_evalguard.checks.check import Moment
from lightning_evalguard.instruments.source import Site
from lightning_evalguard.paths import file_pattern
from lightning_evalguard.report import Finding

_FEW = 4  # names that a pattern list writes out


def word(mode: bool) -> str:
    """How PyTorch calls a mode."""
    if mode:
        return "train"
    return "eval"


def with_others(n: int) -> str:
    """`` with 3 submodules``, or nothing."""
    if n <= 0:
        return ""
    return f" with {n} submodule{'s' if n > 1 else ''}"


def with_siblings(names: Sequence[str]) -> str:
    """``, as are `drop2` and 2 more``: those that the same line set; or nothing."""
    if not names:
        return ""
    listed = [f"`{name}`" for name in names[:_FEW]]
    if len(names) > _FEW:
        listed.append(f"{len(names) - _FEW} more")
    said = " and ".join(
        [", ".join(listed[:-1]), listed[-1]] if len(listed) > 1 else listed
    )
    return f", as {'are' if len(names) > 1 else 'is'} {said}"


def kinds_of(modules: Iterable[nn.Module]) -> str:
    """``2 BatchNorm1d, 1 Dropout``: the most frequent classes first, three of them."""
    kinds = Counter(type(m).__name__ for m in modules)
    listed = ", ".join(f"{n} {kind}" for kind, n in kinds.most_common(3))
    if len(kinds) > 3:
        return f"{listed}, ..."
    return listed


def common(names: Sequence[str]) -> str:
    """The qualified name under which all of `names` stand."""
    split = [name.split(".") for name in names]
    shared = []
    for parts in zip(*split, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)


def patterns(names: Sequence[str], others: Collection[str], tops: Sequence[str]) -> str:
    """A list of glob patterns, as Python writes it, that match `names` and none of `others`.

    Args:
        names: Qualified names to be matched.
        others: Those that must not be.
        tops: The parts that `names` lie in.
    """
    by_part: list[str] = []
    for top in tops:
        if top in names:
            by_part.append(f"{top}*")
        else:
            by_part += [top, f"{top}.*"]
    by_kind = sorted({re.sub(r"\d+", "*", name) for name in names})
    for choice in (by_part, by_kind):
        if choice and len(choice) <= _FEW and _match(choice, names, others):
            return _listed(choice)
    return _listed(names)


def _match(choice: Sequence[str], names: Iterable[str], others: Iterable[str]) -> bool:
    def is_matched(name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in choice)

    return all(map(is_matched, names)) and not any(map(is_matched, others))


def _listed(names: Iterable[str]) -> str:
    return "[" + ", ".join(f'"{name}"' for name in names) + "]"


def mode_finding(
    now: Moment,
    name: str,
    module: nn.Module,
    fact: str,
    remedy: str,
    site: Site | None,
    certain: bool = True,
    siblings: Sequence[str] = (),
    why: str = "",
) -> Finding:
    """A finding of the `modes` check on `module`, which `named_modules()` calls `name`.

    Where it speaks of several modules, its switch is the file of the line that set them.
    """
    one_for_all = ""
    if siblings and site is not None:
        one_for_all = file_pattern(site.location)
    return Finding(
        pattern=one_for_all,
        check="modes",
        stage=now.stage,
        fact=fact,
        remedy=remedy,
        subject=name,
        subject_type=type(module).__name__,
        location=site.location if site is not None else None,
        expression=site.expression if site is not None else None,
        function=site.function if site is not None else None,
        leads="subject",
        epoch=now.epoch,
        step=now.step,
        rank=now.rank,
        certain=certain,
        why=why,
    )
