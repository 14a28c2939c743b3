"""Predictions and targets as a step hands them to its metrics and losses, without changing either.

A metric is tapped through its instance's ``update``, which torchmetrics leaves out of pickles and
copies, and below it where a subclass hands on what it selected. A loss of torch's is tapped where
its function enters C++, for the length of a step: however the function is held, and whichever loss
module, focal loss or model calls it. Neither a function mode nor a forward hook is on while a step
runs that counts: those change what it computes.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_evalguard.confusion.sources import PREDS, TARGET, Pair
from lightning_evalguard.instruments.patch import Wrap
from lightning_evalguard.instruments.source import owner_of, user_site
from lightning_evalguard.report import shown_path

See = Callable[[str, str, Pair, Any], None]
"""Is told of each call: ``metric``, ``loss`` or ``other``; which one; its pair; what it gave."""

AtOnce = Callable[[str, str, Tensor, Tensor, Callable[[], Pair]], bool]
"""Whether a call needs no closer look: its kind, which one, both tensors, and what describes it."""


def _never(kind: str, name: str, preds: Tensor, target: Tensor, pair: Callable[[], Pair]) -> bool:
    return False


# Their children see resampled or partial predictions.
_PARTIAL = ("BootStrapper", "MultioutputWrapper")
_IGNORED = -100
_DEEP = 3  # objects in objects in which metrics are looked for
_ITEMS = 64  # of a list or dict in which they are looked for


class MetricTap:
    """Sees what the torchmetrics objects of a module are updated with.

    A metric whose ``update`` updates another one, a parent's or that of a metric it holds, is seen
    through that one: what it left out on the way was not counted.

    Args:
        see: Is told of each update, after it.
        at_once: Is asked first.
        only: Qualified name of the one metric to tap, or its last part.
    """

    def __init__(self, see: See, only: str | None = None, at_once: AtOnce | None = None) -> None:
        self._see, self._only = see, only
        self._at_once = at_once or _never
        self._wraps: list[Wrap] = []
        self._classes: dict[type, Wrap] = {}
        self._names: dict[int, str] = {}
        # Of each update that runs now: whether a deeper one was seen.
        self._deeper: list[bool] = []

    def open(self, module: nn.Module) -> None:
        """Tap every metric that `module` holds now.

        Raises:
            ValueError: If the one that is asked for is not there.
        """
        self.close()
        metrics = list(metrics_of(module))
        for name, metric in metrics:
            if self._only in (None, name, name.rpartition(".")[2]):
                self._names[id(metric)] = name
                self._wraps.append(Wrap(metric, "update", self._around(name, metric)))
                self._tap_parent(type(metric))
        if self._only is not None and not self._wraps:
            there = ", ".join(name for name, _ in metrics) or "no classification metric"
            raise ValueError(f"source='metric:{self._only}': the module has {there}")

    def close(self) -> None:
        """Leave the metrics as they were."""
        for wrap in (*self._wraps, *self._classes.values()):
            wrap.remove()
        self._wraps.clear()
        self._classes.clear()
        self._names.clear()
        self._deeper.clear()

    def _around(self, name: str, metric: Metric) -> Callable[..., Any]:
        called = _Called.of(name, metric, list(metric._update_signature.parameters))

        def update(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            if torch.compiler.is_compiling():
                return original(*args, **kwargs)
            return self._updated(called, original, args, args, kwargs)

        return update

    def _tap_parent(self, kind: type) -> None:
        """Tap torchmetrics' own ``update``, which a subclass may call with what it selected."""
        levels = [c for c in kind.__mro__ if "update" in vars(c)]
        if not levels or _is_torchmetrics(levels[0]):
            return
        parent = next((c for c in levels if _is_torchmetrics(c) and c is not Metric), None)
        if parent is None or parent in self._classes:
            return

        def update(original: Any, metric: Metric, *args: Any, **kwargs: Any) -> Any:
            name = self._names.get(id(metric))
            if name is None or torch.compiler.is_compiling():
                return original(metric, *args, **kwargs)
            called = _Called.of(name, metric, ["preds", "target"])
            return self._updated(called, original, (metric, *args), args, kwargs)

        self._classes[parent] = Wrap(parent, "update", update)

    def _updated(
        self,
        called: _Called,
        original: Callable[..., Any],
        args: tuple[Any, ...],
        given: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Run ``original(*args, **kwargs)``, and say what it was given by place."""
        self._deeper.append(False)
        try:
            value = original(*args, **kwargs)
        finally:
            deeper = self._deeper.pop() if self._deeper else False
        if self._deeper:
            self._deeper[-1] = True
        if not deeper:
            self._report(called, given, kwargs)
        return value

    def _report(self, called: _Called, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        preds, target = called.tensors(args, kwargs)
        if not (isinstance(preds, Tensor) and isinstance(target, Tensor)):
            return
        if called.is_own:
            pair = called.described(preds, target)
            rest = called.others(args, kwargs, preds, target)
            pair.target = _masked(target, rest, pair)
            self._see("metric", called.name, pair, None)
            return
        if self._at_once(
            "metric", called.name, preds, target, partial(called.described, preds, target)
        ):
            return
        self._see("metric", called.name, called.described(preds, target), None)


@dataclass
class _Called:
    """A metric whose updates are seen.

    Attributes:
        name: Its qualified name.
        metric: The object.
        names: Of what its update takes.
        preds: Where predictions stand among them; -1 where no name says so.
        target: Where targets stand.
        source: The metric in words.
        task: What its class classifies.
        is_own: Whether its class is the user's own.
    """

    name: str
    metric: Metric
    names: list[str]
    preds: int
    target: int
    source: str
    task: str | None
    is_own: bool

    @classmethod
    def of(cls, name: str, metric: Metric, names: list[str]) -> _Called:
        """A metric, by the names of what its update takes."""
        preds = next((names.index(n) for n in PREDS if n in names), -1)
        target = next((names.index(n) for n in TARGET if n in names), -1)
        kinds = (c.__name__ for c in type(metric).__mro__ if _is_torchmetrics(c))
        kind = next(kinds, "").lower()
        task = next((t for t in _TASKS if kind.startswith(t)), None)
        source = f"`{name}` ({type(metric).__name__})"
        own = not _is_torchmetrics(type(metric))
        return cls(name, metric, names, preds, target, source, task, own)

    def tensors(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """The predictions and the target that an update was given."""
        if not kwargs and 0 <= self.preds < len(args) and 0 <= self.target < len(args):
            return args[self.preds], args[self.target]
        given = self._given(args, kwargs)
        preds = next((given[k] for k in PREDS if k in given), None)
        target = next((given[k] for k in TARGET if k in given), None)
        return preds, target

    def others(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], preds: Tensor, target: Tensor
    ) -> list[Any]:
        """What else it was given."""
        given = self._given(args, kwargs).values()
        return [v for v in given if v is not preds and v is not target]

    def _given(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        return dict(zip(self.names, args, strict=False)) | kwargs

    def described(self, preds: Tensor, target: Tensor) -> Pair:
        """The pair, with what the metric says about it."""
        settings = vars(self.metric)
        top_k = settings.get("top_k")
        return Pair(
            preds,
            target,
            self.source,
            task=self.task,
            num_classes=settings.get("num_classes") or settings.get("num_labels"),
            threshold=settings.get("threshold"),
            ignore_index=settings.get("ignore_index"),
            top_k=(top_k,) if isinstance(top_k, int) and top_k > 1 else (),
            classification=self.task is not None,
            axis=1,
        )


_TASKS = ("binary", "multiclass", "multilabel")


def _is_torchmetrics(kind: type) -> bool:
    return kind.__module__.startswith("torchmetrics.")


def _masked(target: Tensor, others: list[Any], pair: Pair) -> Tensor:
    """The target with what a mask leaves out ignored: a metric of the user's own is given one."""
    for mask in others:
        is_mask = isinstance(mask, Tensor) and mask.dtype == torch.bool
        if is_mask and mask.shape == target.shape[: mask.ndim]:
            ignored = _IGNORED if pair.ignore_index is None else pair.ignore_index
            mask = mask.reshape(mask.shape + (1,) * (target.ndim - mask.ndim))
            kept = target if target.is_floating_point() else target.long()
            return torch.where(mask, kept, ignored)
    return target


def metrics_of(module: nn.Module) -> Iterator[tuple[str, Metric]]:
    """The classification metrics of a module, also those that its plain attributes hold."""
    seen: set[int] = set()
    partial: tuple[str, ...] = ()
    for prefix, owner in module.named_modules():
        if type(owner).__name__ in _PARTIAL:
            partial += (prefix + ".",)
        held = [(prefix, owner)]
        for attribute, value in list(vars(owner).items()):
            if not attribute.startswith("_"):
                name = f"{prefix}.{attribute}".lstrip(".")
                held += _held_by(name, value, _DEEP)
        for name, metric in held:
            if (
                isinstance(metric, Metric)
                and id(metric) not in seen
                and not name.startswith(partial or ("\0",))
                and _classifies(metric)
            ):
                seen.add(id(metric))
                yield name, metric


def _held_by(name: str, value: Any, deep: int) -> Iterator[tuple[str, nn.Module]]:
    """The modules that a plain attribute holds: a list, a dict, an object of the user's."""
    if isinstance(value, nn.Module):
        yield from ((name, inner) for inner in value.modules())
    elif isinstance(value, (list, tuple, dict)) and deep and len(value) <= _ITEMS:
        for one in value.values() if isinstance(value, dict) else value:
            yield from _held_by(name, one, deep - 1)
    elif deep and _is_users(type(value)):
        try:  # past any `__getattr__` and `__getattribute__` of the user's
            inside = dict(object.__getattribute__(value, "__dict__"))
        except AttributeError:  # it has slots
            return
        for attribute, one in list(inside.items())[:_ITEMS]:
            yield from _held_by(f"{name}.{attribute}", one, deep - 1)


def _is_users(kind: type) -> bool:
    """Whether a class stands in code of the user's."""
    if kind.__module__ in ("builtins", "__main__"):
        return kind.__module__ == "__main__"
    path = getattr(sys.modules.get(kind.__module__), "__file__", None)
    return isinstance(path, str) and owner_of(path) == "user"


def _classifies(metric: Metric) -> bool:
    home = type(metric).__module__
    if home.startswith("torchmetrics."):
        return home.startswith("torchmetrics.classification.")
    names = list(metric._update_signature.parameters)[:2]
    return any(n in PREDS for n in names) and any(n in TARGET for n in names)


# --- losses --------------------------------------------------------------------------------------


class _Loss(NamedTuple):
    """One loss of torch's: the function that people call, and what it calls in C++."""

    name: str
    home: Any
    entry: str
    task: str | None
    preds_are: str
    ignore_place: int | None  # of ``ignore_index`` among the arguments, if there is one


_LOSSES = (
    _Loss("cross_entropy", torch._C._nn, "cross_entropy_loss", "multiclass", "logits", 4),
    _Loss("nll_loss", torch._C._nn, "nll_loss_nd", "multiclass", "logits", 4),
    _Loss("multi_margin_loss", torch._C._nn, "multi_margin_loss", "multiclass", "logits", None),
    _Loss("binary_cross_entropy", torch._C._nn, "binary_cross_entropy", None, "probs", None),
    _Loss(
        "binary_cross_entropy_with_logits", torch, "binary_cross_entropy_with_logits", None,
        "logits", None,
    ),
)  # fmt: skip
# A step that calls one of these has a task of another kind.
_OTHERS = (
    *((torch._C._nn, name) for name in ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")),
    *((torch, name) for name in (
        "poisson_nll_loss", "kl_div", "triplet_margin_loss", "margin_ranking_loss",
        "cosine_embedding_loss", "cosine_similarity", "ctc_loss",
    )),
)  # fmt: skip


class LossTap:
    """Sees what cross entropy, NLL, BCE and others are called with, however they are held.

    Args:
        see: Is told of each call, after it.
        at_once: Is asked first, where the line of the call is not.

    Attributes:
        locates: Whether the line of a call is looked up, which takes longer than the call.
        hears: Whether it is told of calls now.
    """

    def __init__(self, see: See, at_once: AtOnce | None = None) -> None:
        self.see = see
        self.at_once = at_once or _never
        self.locates = True
        self.hears = False

    def open(self) -> None:
        """Tap the losses from now on."""
        self.hears = True
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
        before, self._taps = self._taps, tuple(one for one in self._taps if one is not tap)
        if before and not self._taps:
            self._stop()

    def _start(self) -> None:
        if not self._places:
            for kind in _LOSSES:
                if (original := getattr(kind.home, kind.entry, None)) is not None:
                    place = (kind.home, kind.entry, original, self._tap(original, kind))
                    self._places.append(place)
            for home, name in _OTHERS:
                if (original := getattr(home, name, None)) is not None:
                    self._places.append((home, name, original, self._note(original, name)))
        for home, name, original, tapped in self._places:
            if getattr(home, name) is original:
                setattr(home, name, tapped)

    def _stop(self) -> None:
        for home, name, original, tapped in self._places:
            if getattr(home, name) is tapped:
                setattr(home, name, original)

    def _tap(self, original: Any, kind: _Loss) -> Any:
        place = kind.ignore_place

        @functools.wraps(original)
        def tapped(*args: Any, **kwargs: Any) -> Any:
            value = original(*args, **kwargs)
            taps = [tap for tap in self._taps if tap.hears]
            if not taps or torch.compiler.is_compiling():
                return value
            preds, target = plain(*args[:2]) if len(args) > 1 else (None, None)
            if preds is not None and target is not None:
                ignore = args[place] if place is not None and len(args) > place else None
                located = any(tap.locates for tap in taps)
                if not located:
                    make = partial(_of_loss, kind, preds, target, ignore, kind.name)
                    given = ("loss", kind.name, preds, target, make)
                    taps = [tap for tap in taps if not tap.at_once(*given)]
                    if not taps:
                        return value
                site = user_site(2) if located else None
                where = shown_path(site.location) if site is not None else "an unknown place"
                said = f"`{kind.name}` at {where}" if located else kind.name
                pair = _of_loss(kind, preds, target, ignore, said)
                pair.location = site.location if site is not None else None
                for tap in taps:
                    tap.see("loss", kind.name, pair, value)
            return value

        return tapped

    def _note(self, original: Any, name: str) -> Any:
        @functools.wraps(original)
        def noted(*args: Any, **kwargs: Any) -> Any:
            if not torch.compiler.is_compiling():
                for tap in self._taps:
                    if tap.hears and tap.locates:
                        nothing = torch.empty(0)
                        tap.see("other", name, Pair(nothing, nothing, name), None)
            return original(*args, **kwargs)

        return noted


_losses = _Losses()


def plain(preds: Any, target: Any) -> tuple[Tensor | None, Tensor | None]:
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
        preds, target = preds.flatten(0, last), target.flatten(0, last)
    return preds, target


def _unwrapped(tensor: Tensor) -> tuple[Tensor, int]:
    """What lies below `vmap` and `grad`, and in how many first dimensions there are samples."""
    functorch, levels = torch._C._functorch, 0
    while functorch.is_functorch_wrapped_tensor(tensor):
        if functorch.is_batchedtensor(tensor):
            where = functorch.maybe_get_bdim(tensor)
            tensor = functorch.get_unwrapped(tensor).movedim(where, 0)
            levels += 1
        else:
            tensor = functorch.get_unwrapped(tensor)
    return tensor, levels


def _of_loss(kind: _Loss, preds: Tensor, target: Tensor, ignore: Any, said: str) -> Pair:
    if kind.task is not None:
        if target.is_floating_point():  # probabilities of the classes
            target = target.argmax(min(1, target.ndim - 1))
        if preds.ndim == 1:
            preds, target = preds.unsqueeze(0), target.unsqueeze(0)
    return Pair(
        preds,
        target,
        said,
        task=kind.task,
        preds_are=kind.preds_are,
        ignore_index=ignore,
        classification=True,
        axis=1,
    )
