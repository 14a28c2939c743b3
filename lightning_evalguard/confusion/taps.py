"""Predictions and targets as a step hands them to its metrics and losses, without changing either.

A metric is tapped through its instance's ``update``, which torchmetrics leaves out of pickles and
copies, and below it where a subclass hands on what it selected. A loss of torch's is tapped where
its function enters C++, for the length of a step: however the function is held, and whichever loss
module, focal loss or model calls it. Neither a function mode nor a forward hook is on while a step
runs that counts: those change what it computes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_evalguard.confusion.losses import AtOnce, See, never
from lightning_evalguard.confusion.sources import PREDS, TARGET, Pair, cuts
from lightning_evalguard.instruments.patch import Inlay, Layer, Wrap
from lightning_evalguard.instruments.source import owner_of

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

    def __init__(
        self, see: See, only: str | None = None, at_once: AtOnce | None = None
    ) -> None:
        self._see, self._only = see, only
        self._at_once = at_once or never
        self._wraps: list[Layer] = []
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
        metrics = list(classification_metrics_of(module))
        for name, metric in metrics:
            if self._only in (None, name, name.rpartition(".")[2]):
                self._names[id(metric)] = name
                tapped = partial(self._tapped, name, metric)
                self._wraps.append(Inlay(metric, "update", tapped))
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

    def _tapped(
        self,
        name: str,
        metric: Metric,
        original: Callable[..., Any],
        layer: Layer,
    ) -> Callable[..., Any]:
        called = _Called.of(name, metric, list(metric._update_signature.parameters))
        takes = len(called.names)
        is_compiling = torch.compiler.is_compiling

        def update(*args: Any, **kwargs: Any) -> Any:
            if not layer.active:
                return original(*args, **kwargs)
            # torchmetrics' own update no other metric
            nests = called.is_own or self._classes or self._deeper
            if nests or kwargs or len(args) != takes or is_compiling():
                return self._updated(called, original, *args, **kwargs)
            value = original(*args)
            preds, target = called.by_place(args)
            if isinstance(preds, Tensor) and isinstance(target, Tensor):
                pair = partial(called.described, preds, target)
                if not self._at_once("metric", name, preds, target, pair):
                    self._see("metric", name, pair(), None)
            return value

        return update

    def _tap_parent(self, kind: type) -> None:
        """Tap torchmetrics' own ``update``, which a subclass may call with what it selected."""
        levels = [c for c in kind.__mro__ if "update" in vars(c)]
        if not levels or _is_torchmetrics(levels[0]):
            return
        parent = next(
            (c for c in levels if _is_torchmetrics(c) and c is not Metric), None
        )
        if parent is None or parent in self._classes:
            return

        def update(original: Any, metric: Metric, *args: Any, **kwargs: Any) -> Any:
            name = self._names.get(id(metric))
            if name is None:
                return original(metric, *args, **kwargs)
            called = _Called.of(name, metric, ["preds", "target"])
            return self._updated(called, partial(original, metric), *args, **kwargs)

        self._classes[parent] = Wrap(parent, "update", update)

    def _updated(
        self,
        called: _Called,
        original: Callable[..., Any],
        /,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Run ``original(*args, **kwargs)``, and say what it was given by place."""
        if torch.compiler.is_compiling():
            return original(*args, **kwargs)
        self._deeper.append(False)
        try:
            value = original(*args, **kwargs)
        finally:
            deeper = False
            if self._deeper:
                deeper = self._deeper.pop()
        if self._deeper:
            self._deeper[-1] = True
        if not deeper:
            self._report(called, args, kwargs)
        return value

    def _report(
        self, called: _Called, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        preds, target = called.tensors(args, kwargs)
        if not (isinstance(preds, Tensor) and isinstance(target, Tensor)):
            return
        pair = called.described(preds, target)
        if called.is_own:
            rest = called.others(args, kwargs, preds, target)
            pair.target = _masked(target, rest, pair)
        elif self._at_once("metric", called.name, preds, target, lambda: pair):
            return
        self._see("metric", called.name, pair, None)


@dataclass
class _Called:
    """A metric whose updates are seen.

    Attributes:
        name: Its qualified name.
        metric: The object.
        names: Of what its update takes.
        by_place: Takes predictions and targets out of all that it takes.
        source: The metric in words.
        task: What its class classifies.
        is_own: Whether its class is the user's own.
    """

    name: str
    metric: Metric
    names: list[str]
    by_place: Callable[[Any], tuple[Any, Any]]
    source: str
    task: str | None
    is_own: bool

    @classmethod
    def of(cls, name: str, metric: Metric, names: list[str]) -> _Called:
        """A metric, by the names of what its update takes."""
        preds = next((names.index(n) for n in PREDS if n in names), None)
        target = next((names.index(n) for n in TARGET if n in names), None)
        by_place: Callable[[Any], tuple[Any, Any]] = _neither
        if preds is not None and target is not None:
            by_place = itemgetter(preds, target)
        kinds = (c.__name__ for c in type(metric).__mro__ if _is_torchmetrics(c))
        kind = next(kinds, "").lower()
        task = next((t for t in _TASKS if kind.startswith(t)), None)
        source = f"`{name}` ({type(metric).__name__})"
        own = not _is_torchmetrics(type(metric))
        return cls(name, metric, names, by_place, source, task, own)

    def tensors(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """The predictions and the target that an update was given."""
        given = self._given(args, kwargs)
        preds = next((given[k] for k in PREDS if k in given), None)
        target = next((given[k] for k in TARGET if k in given), None)
        return preds, target

    def others(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        preds: Tensor,
        target: Tensor,
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
            judges=True,
            cuts=cuts(type(self.metric).__name__, self.task),
        )


def _neither(args: Any) -> tuple[None, None]:
    """No name of what it takes says which are predictions and which targets."""
    return None, None


_TASKS = ("binary", "multiclass", "multilabel")


def _is_torchmetrics(kind: type) -> bool:
    return kind.__module__.startswith("torchmetrics.")


def _masked(target: Tensor, others: list[Any], pair: Pair) -> Tensor:
    """The target with what a mask leaves out ignored: a metric of the user's own is given one."""
    for mask in others:
        is_mask = isinstance(mask, Tensor) and mask.dtype == torch.bool
        if is_mask and mask.shape == target.shape[: mask.ndim]:
            ignored = _IGNORED
            if pair.ignore_index is not None:
                ignored = pair.ignore_index
            mask = mask.reshape(mask.shape + (1,) * (target.ndim - mask.ndim))
            kept = target
            if not target.is_floating_point():
                kept = target.long()
            return torch.where(mask, kept, ignored)
    return target


def classification_metrics_of(module: nn.Module) -> Iterator[tuple[str, Metric]]:
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
    """Whether it is one, or hands on to torchmetrics' own what it selects."""
    homes = [c.__module__ for c in type(metric).__mro__]
    home = homes[0]
    is_one = any(h.startswith("torchmetrics.classification.") for h in homes)
    if is_one or home.startswith("torchmetrics."):
        return is_one
    names = list(metric._update_signature.parameters)[:2]
    return any(n in PREDS for n in names) and any(n in TARGET for n in names)
