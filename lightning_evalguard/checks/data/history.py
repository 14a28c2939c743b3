"""Which sets the fits under a guard trained and validated with; keeps none of them alive."""

from __future__ import annotations

import itertools
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from lightning_evalguard.checks.data.appearance import Appearance
from lightning_evalguard.checks.data.loader_facts import workers
from lightning_evalguard.data import loaders as _loaders
from lightning_evalguard.data.fingerprint import sample_hashes
from lightning_evalguard.data.loaders import Part
from lightning_evalguard.data.portraits import Portrait, of_hashes, portrait
from lightning_evalguard.data.samples import rows

SplitKind = Literal["train", "val"]
TRAINING = "the training set"
_SETS = 16  # of earlier fits that are remembered
_BATCHES = 16  # of a fit whose samples are hashed
_FEWEST = 16  # samples that tell a set
_PARAMETERS, _VALUES = 8, 16  # by which weights are recognised


class Side(NamedTuple):
    """A set that the evaluated one should be apart from.

    Attributes:
        key: Which; equal for one set.
        words: As a sentence has it.
        parts: Its samples, as far as they still live.
        dataset: What its loader reads; None where that is gone.
        workers: How many processes read it.
        portraits: Hashes of its rows, where they lay in memory.
        batches: Hashes of some of its samples, as training steps got them.
        own: Whether a fit under this guard was given it.
    """

    key: int
    words: str
    parts: list[Part]
    dataset: Any
    workers: int
    portraits: list[Portrait]
    batches: Portrait | None = None
    own: bool = True


_numbers = itertools.count()


@dataclass
class _Seen:
    """One loader that a fit trained or validated with."""

    kind: SplitKind
    fit: int
    loader: Any  # weak references, from here on
    dataset: Any
    roots: list[Any]
    places: list[tuple[Tensor, Tensor]]
    workers: int
    number: int = field(default_factory=_numbers.__next__)
    portraits: list[Portrait] = field(default_factory=list)
    # of samples of its first batches
    hashes: list[Tensor] = field(default_factory=list)
    _batches: tuple[int, Portrait | None] = (0, None)  # of so many of them

    def batches(self) -> Portrait | None:
        """Its samples as training steps got them; waits for the device."""
        n = len(self.hashes)
        if n != self._batches[0]:
            found = None
            if sum(map(len, self.hashes)) >= _FEWEST:
                found = of_hashes(torch.cat([hashes.cpu() for hashes in self.hashes]))
            self._batches = n, found
        return self._batches[1]

    def side(self, running: bool, continued: bool = False, own: bool = True) -> Side:
        """What is known of it now."""
        parts = []
        for reference, (indices, at) in zip(self.roots, self.places, strict=True):
            root = reference()
            if root is not None:
                parts.append(Part(root, indices, at))
        words = "the validation set"
        if self.kind == "train":
            words = TRAINING
        words = words if running else f"{words} of an earlier fit"
        words += " of these weights" * continued
        return Side(
            self.number,
            words,
            parts,
            self.dataset(),
            self.workers,
            self.portraits,
            self.batches(),
            own,
        )


Weights = list[tuple[float, ...]]
"""Some values of some parameters."""


@dataclass
class _Fit:
    """A fit of this process, under whatever guard.

    Attributes:
        module: The one that was fitted, weakly.
        began: Its weights as the fit began.
        sets: What those weights have been trained with, by this fit and those before it.
        gave: The weights at its validations, and at its end.
    """

    module: Any
    began: Weights
    sets: list[_Seen]
    gave: list[Weights] = field(default_factory=list)

    def made(self, weights: Weights) -> bool:
        """Whether some of a module's weights are those that this fit gave."""
        return any(
            len(weights) == len(given) == len(self.began)
            and any(
                now == then != before
                for now, then, before in zip(weights, given, self.began, strict=True)
            )
            for given in self.gave
        )


_fits_of_the_process: deque[_Fit] = deque(maxlen=_SETS)


class History:
    """The sets of all fits under one guard, and by their weights those of earlier guards."""

    def __init__(self) -> None:
        self._sets: list[_Seen] = []
        self._fits: list[Any] = []  # of which module, weakly
        self.appearance = Appearance()  # of the last fit's training batches
        self._hashes = False  # whether training batches are hashed
        self._running: _Fit | None = None

    def begin(self, module: nn.Module | None) -> None:
        """A fit of `module` begins."""
        self._fits.append(_weak(module))
        weights = _weights(module)
        self._running = _Fit(_weak(module), weights, self._made(weights) or [])
        self.appearance = Appearance()
        self._hashes = True

    def add_batch(self, batch: Any) -> bool:
        """A step of the running fit, which has one loader, gets `batch`.

        Returns:
            Whether the next one should be added, too.
        """
        self.appearance.add(batch)
        return (self._hashes and self._hash(batch)) or not self.appearance.full

    def _hash(self, batch: Any) -> bool:
        """Keep hashes of a training batch, if it has any; of so many batches."""
        trained = self._trained()
        hashes = None
        if trained:
            hashes = _hashes(batch)
        if hashes is None:
            return False
        trained[-1].hashes.append(hashes)
        self._hashes = len(trained[-1].hashes) < _BATCHES
        return True

    def _trained(self) -> list[_Seen]:
        """What the last fit trains with."""
        return [s for s in self._sets if s.kind == "train" and s.fit == len(self._fits)]

    def hashes(self) -> Tensor | None:
        """Of samples of the last fit's first training batches; waits for the device."""
        each = [hashes for seen in self._trained() for hashes in seen.hashes]
        if not each:
            return None
        return torch.cat([hashes.cpu() for hashes in each])

    def trained_on(self) -> list[Portrait]:
        """What the last fit trained with, as later runs may recognise it; waits for the device."""
        found = []
        for seen in self._trained():
            of_batches = seen.batches()
            found += [
                *seen.portraits,
                *([of_batches] if of_batches is not None else []),
            ]
        return found

    def add(self, kind: SplitKind, loader: Any) -> None:
        """The running fit trains or validates with `loader`."""
        fit = len(self._fits)
        if any(
            s.loader() is loader and s.kind == kind and s.fit == fit for s in self._sets
        ):
            return
        parts = _loaders.parts(loader)
        seen = _Seen(
            kind,
            fit,
            _weak(loader),
            _weak_in(loader, getattr(loader, "dataset", None), _dataset_of),
            [
                _weak_in(loader, part.root, partial(_root_of, k))
                for k, part in enumerate(parts)
            ],
            [(part.indices, part.at) for part in parts],
            workers(loader),
        )
        seen.portraits = [
            p for part in parts if (p := portrait(rows(part.root, part.indices)))
        ]
        self._sets = [*self._sets, seen][-_SETS:]

    def validated(self, module: nn.Module | None) -> None:
        """A validation of the running fit is over."""
        if self._running is not None:
            self._running.gave = [*self._running.gave, _weights(module)][-_SETS:]

    def end(self, module: nn.Module | None) -> None:
        """The running fit is over."""
        fit, self._running = self._running, None
        if fit is not None:
            fit.gave.append(_weights(module))
            fit.sets = [*fit.sets, *self._trained()]
            _fits_of_the_process.append(fit)

    def sides(
        self, kind: SplitKind, module: nn.Module | None, fitting: bool
    ) -> list[Side]:
        """The sets of the fits that made `module` what it is.

        Those of the fits that gave its weights; else its own, else those of the last fit.
        """
        fits = [i for i, one in enumerate(self._fits, 1) if one() is module]
        if fitting or not fits:
            fits = [len(self._fits)]
        own = [seen for seen in self._sets if seen.kind == kind and seen.fit in fits]
        if kind != "train":
            return [seen.side(fitting) for seen in own]
        if fitting:
            earlier = self._running.sets if self._running is not None else []
            return [seen.side(True) for seen in own] + [
                seen.side(False, continued=True, own=False) for seen in earlier
            ]
        made = self._made(_weights(module))
        if made is None:
            return [seen.side(False) for seen in own]
        mine = {id(seen) for seen in self._sets}
        sides = [seen.side(False, own=id(seen) in mine) for seen in made]
        return sorted(sides, key=lambda side: not side.own)

    def _made(self, weights: Weights) -> list[_Seen] | None:
        """What the fits trained with that gave these weights; None where no fit of ours did."""
        fits = [fit for fit in _fits_of_the_process if fit.made(weights)]
        if not fits:
            return None
        return list({id(seen): seen for fit in fits for seen in fit.sets}.values())


def _weights(module: nn.Module | None) -> Weights:
    """A few values of a few parameters; waits for the device."""
    parameters = [] if module is None else list(module.parameters())
    step = max(1, -(-len(parameters) // _PARAMETERS))
    try:
        with torch.no_grad():
            each = [p.detach().reshape(-1) for p in parameters[::-step]]
            return [tuple(flat[:: max(1, len(flat) // _VALUES)][:_VALUES].tolist())
                    for flat in each]  # fmt: skip
    except (RuntimeError, NotImplementedError, TypeError, ValueError):
        return []


def _hashes(batch: Any) -> Tensor | None:
    try:
        return sample_hashes(batch)
    except (RuntimeError, NotImplementedError, TypeError, ValueError):
        return None


def _weak(thing: Any) -> Any:
    try:
        return weakref.ref(thing)
    except TypeError:  # a list, a tuple
        return _nothing


def _weak_in(loader: Any, thing: Any, find: Callable[[Any], Any]) -> Any:
    """A weak reference to a part of a loader, of a list by way of the loader."""
    if type(thing) not in (list, tuple):
        return _weak(thing)
    reference = _weak(loader)
    return lambda: find(reference())


def _dataset_of(loader: Any) -> Any:
    return getattr(loader, "dataset", None)


def _root_of(k: int, loader: Any) -> Any:
    if loader is None:
        return None
    return next((part.root for part in _loaders.parts(loader)[k:]), None)


def _nothing() -> None:
    return None
