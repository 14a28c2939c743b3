"""Which sets the fits under a guard trained and validated with; keeps none of them alive."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from lightning_evalguard.checks.data.appearance import Appearance
from lightning_evalguard.checks.data.loader_facts import workers
from lightning_evalguard.data import loaders as _loaders
from lightning_evalguard.data.loaders import Part
from lightning_evalguard.data.samples import Portrait, portrait, rows

Kind = Literal["train", "val"]
_SETS = 16  # of earlier fits that are remembered


class Side(NamedTuple):
    """A set that the evaluated one should be apart from.

    Attributes:
        key: Which; equal for one set.
        words: As a sentence has it.
        parts: Its samples, as far as they still live.
        dataset: What its loader reads; None where that is gone.
        workers: How many processes read it.
        portraits: Hashes of its rows, where they lay in memory.
    """

    key: int
    words: str
    parts: list[Part]
    dataset: Any
    workers: int
    portraits: list[Portrait]


@dataclass
class _Seen:
    """One loader that a fit trained or validated with."""

    kind: Kind
    fit: int
    loader: Any  # weak references, from here on
    dataset: Any
    roots: list[Any]
    places: list[tuple[Tensor, Tensor]]
    workers: int
    portraits: list[Portrait] = field(default_factory=list)

    def side(self, key: int, running: bool) -> Side:
        """What is known of it now."""
        parts = []
        for reference, (indices, at) in zip(self.roots, self.places, strict=True):
            root = reference()
            if root is not None:
                parts.append(Part(root, indices, at))
        words = "the training set" if self.kind == "train" else "the validation set"
        words = words if running else f"{words} of an earlier fit"
        return Side(key, words, parts, self.dataset(), self.workers, self.portraits)


class History:
    """The sets of all fits under one guard."""

    def __init__(self) -> None:
        self._sets: list[_Seen] = []
        self._fits: list[Any] = []  # of which module, weakly
        self.appearance = Appearance()  # of the last fit's training batches

    def begin(self, module: nn.Module | None) -> None:
        """A fit of `module` begins."""
        self._fits.append(_weak(module))
        self.appearance = Appearance()

    def add(self, kind: Kind, loader: Any) -> None:
        """The running fit trains or validates with `loader`."""
        fit = len(self._fits)
        if any(s.loader() is loader and s.kind == kind and s.fit == fit for s in self._sets):
            return
        parts = _loaders.parts(loader)
        seen = _Seen(
            kind,
            fit,
            _weak(loader),
            _weak(getattr(loader, "dataset", None)),
            [_weak(part.root) for part in parts],
            [(part.indices, part.at) for part in parts],
            workers(loader),
        )
        seen.portraits = [p for part in parts if (p := portrait(rows(part.root, part.indices)))]
        self._sets = [*self._sets, seen][-_SETS:]

    def sides(self, kind: Kind, module: nn.Module | None, fitting: bool) -> list[Side]:
        """The sets of the fits that made `module` what it is: its own, else the last one."""
        fits = [i for i, one in enumerate(self._fits, 1) if one() is module]
        if fitting or not fits:
            fits = [len(self._fits)]
        return [
            seen.side(key, fitting)
            for key, seen in enumerate(self._sets)
            if seen.kind == kind and seen.fit in fits
        ]


def _weak(thing: Any) -> Any:
    try:
        return weakref.ref(thing)
    except TypeError:  # a list, a tuple
        return _nothing


def _nothing() -> None:
    return None
