"""Losses of torch's, seen where their functions enter C++: however the function is held."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

from lightning_evalguard.confusion.labels import are_smoothed_classes
from lightning_evalguard.confusion.sources import Pair
from lightning_evalguard.instruments.source import user_site
from lightning_evalguard.paths import shown_path

Make = Callable[[str], Pair]
See = Callable[[str, str, Pair, Any], None]
"""Is told of each call: ``metric``, ``loss`` or ``other``; which one; its pair; what it gave."""

AtOnce = Callable[[str, str, Tensor, Tensor, Callable[[], Pair]], bool]
"""Whether a call needs no closer look: its kind, which one, both tensors, and what describes it."""


def never(
    kind: str, name: str, preds: Tensor, target: Tensor, pair: Callable[[], Pair]
) -> bool:
    """Every call is looked at."""
    return False


class _Loss(NamedTuple):
    """One loss of torch's: the function that people call, and what it calls in C++."""

    name: str
    home: Any
    entry: str
    task: str | None
    preds_are: str
    ignore_place: int | None  # of ``ignore_index`` among the arguments, if there is one


_LOSSES = (
    _Loss(
        "cross_entropy", torch._C._nn, "cross_entropy_loss", "multiclass", "logits", 4
    ),
    _Loss("nll_loss", torch._C._nn, "nll_loss_nd", "multiclass", "logits", 4),
    _Loss(
        "multi_margin_loss",
        torch._C._nn,
        "multi_margin_loss",
        "multiclass",
        "logits",
        None,
    ),
    _Loss(
        "binary_cross_entropy",
        torch._C._nn,
        "binary_cross_entropy",
        None,
        "probs",
        None,
    ),
    _Loss(
        "binary_cross_entropy_with_logits",
        torch,
        "binary_cross_entropy_with_logits",
        None,
        "logits",
        None,
    ),
    _Loss("soft_margin_loss", torch._C._nn, "soft_margin_loss", None, "logits", None),
)
_SIGNED = ("soft_margin_loss",)  # their targets are -1 and 1
_DIVERGENCE = _Loss("kl_div", torch, "kl_div", "multiclass", "logits", None)
# A step that calls one of these has a task of another kind.
_OTHERS = (
    *(
        (torch._C._nn, name)
        for name in ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")
    ),
    *(
        (torch, name)
        for name in (
            "poisson_nll_loss",
            "triplet_margin_loss",
            "margin_ranking_loss",
            "cosine_embedding_loss",
            "cosine_similarity",
            "ctc_loss",
        )
    ),
)


class LossTap:
    """Sees what cross entropy, NLL, BCE and others are called with, however they are held.

    Args:
        see: Is told of each call, after it.
        at_once: Is asked first, where the line of the call is not.

    Attributes:
        locates: Whether the line of a call is looked up, which takes longer than the call.
        hears: Whether it is told of calls now.
        diverged: How many divergences the step computed so far.
        of_labels: Which of them were divergences from labels.
    """

    def __init__(self, see: See, at_once: AtOnce | None = None) -> None:
        self.see = see
        self.at_once = at_once or never
        self.locates = True
        self.hears = False
        self.diverged = 0
        self.of_labels: set[int] = set()

    def open(self) -> None:
        """Tap the losses from now on."""
        self.hears = True
        self.diverged = 0
        _losses.add(self)

    def pause(self) -> None:
        """Report no calls until `open`: thirty names take longer to give back than a step."""
        self.hears = False

    def close(self) -> None:
        """Be told no more; the last one gives the losses their names back."""
        self.hears = False
        _losses.remove(self)


class _Losses:
    """The losses of torch's, tapped once in a process for everyone who is told of their calls."""

    def __init__(self) -> None:
        self._taps: tuple[LossTap, ...] = ()
        self._places: list[tuple[Any, str, Any, Any]] = []

    def add(self, tap: LossTap) -> None:
        """Tell one more of each call."""
        if any(one is tap for one in self._taps):
            return
        if not self._taps:
            self._start()
        self._taps = (*self._taps, tap)

    def remove(self, tap: LossTap) -> None:
        """Tell one less."""
        before, self._taps = (
            self._taps,
            tuple(one for one in self._taps if one is not tap),
        )
        if before and not self._taps:
            self._stop()

    def _start(self) -> None:
        if not self._places:
            for kind in _LOSSES:
                if (original := getattr(kind.home, kind.entry, None)) is not None:
                    place = (kind.home, kind.entry, original, self._tap(original, kind))
                    self._places.append(place)
            original = torch.kl_div
            self._places.append((torch, "kl_div", original, self._divergence(original)))
            for home, name in _OTHERS:
                if (original := getattr(home, name, None)) is not None:
                    self._places.append(
                        (home, name, original, self._note(original, name))
                    )
        for home, name, original, tapped in self._places:
            if getattr(home, name) is original:
                setattr(home, name, tapped)

    def _stop(self) -> None:
        for home, name, original, tapped in self._places:
            if getattr(home, name) is tapped:
                setattr(home, name, original)

    def _tap(self, original: Any, kind: _Loss) -> Any:
        place = kind.ignore_place
        is_compiling = torch.compiler.is_compiling
        peek = torch._C._functorch.peek_interpreter_stack

        @functools.wraps(original)
        def tapped(*args: Any, **kwargs: Any) -> Any:
            value = original(*args, **kwargs)
            taps = self._taps
            if len(taps) != 1:
                taps = tuple(tap for tap in taps if tap.hears)
            if not taps or not taps[0].hears or is_compiling() or len(args) < 2:
                return value
            ignore = None
            if place is not None and len(args) > place:
                ignore = args[place]
            if peek() is None:
                preds = args[0]
                target = args[1]
                if not (isinstance(preds, Tensor) and isinstance(target, Tensor)):
                    return value
                make = partial(_of_loss, kind, preds, target, ignore)
                if len(taps) > 1 or taps[0].locates:
                    _tell(taps, kind, preds, target, make, value)
                elif not taps[0].at_once("loss", kind.name, preds, target, make):
                    taps[0].see("loss", kind.name, make(), value)
                return value
            preds, target = without_vmap(args[0], args[1])
            if preds is not None and target is not None:
                make = partial(_of_loss, kind, preds, target, ignore)
                # what is computed of them is no part of what `vmap` or `grad` transforms
                given, _ = _unwrapped(value)
                with temporarily_clear_interpreter_stack():
                    _tell(taps, kind, preds, target, make, given)
            return value

        return tapped

    def _note(self, original: Any, name: str) -> Any:
        @functools.wraps(original)
        def noted(*args: Any, **kwargs: Any) -> Any:
            if not torch.compiler.is_compiling():
                self._tell_of_another(name)
            return original(*args, **kwargs)

        return noted

    def _tell_of_another(self, name: str) -> None:
        for tap in self._taps:
            if tap.hears and tap.locates:
                nothing = torch.empty(0)
                tap.see("other", name, Pair(nothing, nothing, name), None)

    def _divergence(self, original: Any) -> Any:
        """Of smoothed labels a divergence is a cross entropy; else it tells of another task."""

        @functools.wraps(original)
        def diverged(*args: Any, **kwargs: Any) -> Any:
            value = original(*args, **kwargs)
            taps = tuple(tap for tap in self._taps if tap.hears)
            if not taps or torch.compiler.is_compiling():
                return value
            if not self._is_of_labels(taps, args, kwargs):
                self._tell_of_another("kl_div")
                return value
            preds, target = args[:2]
            labels = target.argmax(1).masked_fill(target.sum(1) == 0, -100)
            make = partial(_of_loss, _DIVERGENCE, preds, labels, None)
            _tell(taps, _DIVERGENCE, preds, labels, make, value)
            return value

        return diverged

    @staticmethod
    def _is_of_labels(taps: tuple[LossTap, ...], args: Any, kwargs: Any) -> bool:
        """Whether the target of a divergence are labels; read in a first step alone."""
        given = [a for a in args[:2] if isinstance(a, Tensor)]
        plain = torch._C._functorch.peek_interpreter_stack() is None
        if len(given) < 2 or not plain or kwargs.get("log_target"):
            return False
        for tap in taps:
            tap.diverged += 1
            if tap.locates:
                tap.of_labels.discard(tap.diverged)
                # of a fake tensor, of a subclass without values nothing is known
                with contextlib.suppress(Exception):
                    if are_smoothed_classes(given[1]):
                        tap.of_labels.add(tap.diverged)
        return all(tap.diverged in tap.of_labels for tap in taps)


_losses = _Losses()


def _tell(
    taps: tuple[LossTap, ...],
    kind: _Loss,
    preds: Tensor,
    target: Tensor,
    make: Make,
    value: Any,
) -> None:
    """Hand on the pair that a loss is given, by the function that makes it of its description."""
    located = any(tap.locates for tap in taps)
    if not located:
        described = partial(make, kind.name)
        for tap in taps:
            if tap.at_once("loss", kind.name, preds, target, described):
                taps = tuple(one for one in taps if one is not tap)
        if not taps:
            return
    site = None
    if located:
        site = user_site(3)
    where = "an unknown place"
    if site is not None:
        where = shown_path(site.location)
    pair = make(f"`{kind.name}` at {where}" if located else kind.name)
    pair.location = site.location if site is not None else None
    for tap in taps:
        tap.see("loss", kind.name, pair, value)


def without_vmap(preds: Any, target: Any) -> tuple[Tensor | None, Tensor | None]:
    """Both as ordinary tensors: under `vmap` the samples are in a dimension that the loss lacks."""
    if not isinstance(preds, Tensor) or not isinstance(target, Tensor):
        return None, None
    if torch._C._functorch.peek_interpreter_stack() is None:
        return preds, target
    dims = preds.dim()
    preds, levels = _unwrapped(preds)
    target, others = _unwrapped(target)
    if levels != others:
        return None, None  # of several models on one batch, none is the answer
    last = levels if dims > 1 else levels - 1
    if last > 0:
        preds = preds.flatten(0, last)
        target = target.flatten(0, last)
    return preds, target


def _unwrapped(tensor: Tensor) -> tuple[Tensor, int]:
    """What lies below `vmap` and `grad`, and in how many first dimensions there are samples."""
    functorch = torch._C._functorch
    levels = 0
    while functorch.is_functorch_wrapped_tensor(tensor):
        if functorch.is_batchedtensor(tensor):
            where = functorch.maybe_get_bdim(tensor)
            tensor = functorch.get_unwrapped(tensor).movedim(where, 0)
            levels += 1
        else:
            tensor = functorch.get_unwrapped(tensor)
    return tensor, levels


def _of_loss(
    kind: _Loss, preds: Tensor, target: Tensor, ignore: Any, said: str | None = None
) -> Pair:
    if kind.name in _SIGNED:
        target = (target > 0).to(target.dtype)
    if kind.task == "multiclass":
        if target.is_floating_point():  # probabilities of the classes
            target = target.argmax(min(1, target.ndim - 1))
        if preds.ndim == 1:
            preds = preds.unsqueeze(0)
            target = target.unsqueeze(0)
    return Pair(
        preds,
        target,
        said or kind.name,
        task=kind.task,
        preds_are=kind.preds_are,
        ignore_index=ignore,
        classification=True,
        axis=1,
    )
