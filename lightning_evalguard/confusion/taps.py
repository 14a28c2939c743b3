"""Predictions and targets as a step hands them to its metrics and losses, without changing either.

A metric is tapped through its instance's ``update``, which torchmetrics leaves out of pickles and
copies. A loss is tapped through the name ``torch.nn.functional`` knows it by, for the length of a
step: loss modules, focal losses and models that return their loss all call it. Neither a function
mode nor a forward hook is on while a step runs that counts: those change what it computes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric

from lightning_evalguard.confusion.sources import PREDS, TARGET, Pair
from lightning_evalguard.data.batches import tensors
from lightning_evalguard.instruments.patch import Wrap
from lightning_evalguard.instruments.source import owner_of, user_site
from lightning_evalguard.report import shown_path

See = Callable[[str, str, Pair], None]
"""Is told of each call: ``metric`` or ``loss``, which one, and what it was called with."""

# Their children see resampled or partial predictions.
_PARTIAL = ("BootStrapper", "MultioutputWrapper")


class _Loss(NamedTuple):
    task: str | None
    preds_are: str
    ignore_place: int | None  # of ``ignore_index`` among the arguments, if there is one


# By the functions themselves, taken here: while a tap is open their names stand for others.
_LOSSES: dict[Any, _Loss] = {
    F.cross_entropy: _Loss("multiclass", "logits", 4),
    F.nll_loss: _Loss("multiclass", "logits", 4),
    F.binary_cross_entropy: _Loss(None, "probs", None),
    F.binary_cross_entropy_with_logits: _Loss(None, "logits", None),
}


class MetricTap:
    """Sees what the torchmetrics objects of a module are updated with.

    Args:
        see: Is told of each update, before it happens.
        only: Qualified name of the one metric to tap, or its last part.
    """

    def __init__(self, see: See, only: str | None = None) -> None:
        self._see, self._only = see, only
        self._wraps: list[Wrap] = []

    def open(self, module: nn.Module) -> None:
        """Tap every metric that `module` holds now.

        Raises:
            ValueError: If the one that is asked for is not there.
        """
        self.close()
        held = list(metrics_of(module))
        for name, metric in held:
            if self._only in (None, name, name.rpartition(".")[2]):
                self._wraps.append(Wrap(metric, "update", self._around(name, metric)))
        if self._only is not None and not self._wraps:
            there = ", ".join(name for name, _ in held) or "no classification metric"
            raise ValueError(f"source='metric:{self._only}': the module has {there}")

    def close(self) -> None:
        """Leave the metrics as they were."""
        for wrap in self._wraps:
            wrap.remove()
        self._wraps.clear()

    def _around(self, name: str, metric: Metric) -> Callable[..., Any]:
        names = list(metric._update_signature.parameters)[:2]

        def update(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            if torch.compiler.is_compiling():
                return original(*args, **kwargs)
            given = dict(zip(names, args, strict=False)) | kwargs
            preds = next((given[k] for k in PREDS if k in given), None)
            target = next((given[k] for k in TARGET if k in given), None)
            if isinstance(preds, Tensor) and isinstance(target, Tensor):
                self._see("metric", name, _of_metric(name, metric, preds, target))
            return original(*args, **kwargs)

        return update


def metrics_of(module: nn.Module) -> Iterator[tuple[str, Metric]]:
    """The classification metrics of a module, also those in its plain lists and dicts."""
    seen: set[int] = set()
    partial: tuple[str, ...] = ()
    for prefix, owner in module.named_modules():
        if type(owner).__name__ in _PARTIAL:
            partial += (prefix + ".",)
        held = [(prefix, owner)]
        for attribute, value in list(vars(owner).items()):
            if attribute.startswith("_") or not isinstance(value, (Metric, list, tuple, dict)):
                continue
            name = f"{prefix}.{attribute}".lstrip(".")
            values = value if isinstance(value, (list, tuple)) else [value]
            values = list(value.values()) if isinstance(value, dict) else values
            held += [(name, inner) for v in values if isinstance(v, nn.Module)
                     for inner in v.modules()]  # fmt: skip
        for name, metric in held:
            if (
                isinstance(metric, Metric)
                and id(metric) not in seen
                and not name.startswith(partial or ("\0",))
                and _classifies(metric)
            ):
                seen.add(id(metric))
                yield name, metric


def _classifies(metric: Metric) -> bool:
    home = type(metric).__module__
    if home.startswith("torchmetrics."):
        return home.startswith("torchmetrics.classification.")
    names = list(metric._update_signature.parameters)[:2]
    return any(n in PREDS for n in names) and any(n in TARGET for n in names)


def _of_metric(name: str, metric: Any, preds: Tensor, target: Tensor) -> Pair:
    kind = type(metric).__name__
    tasks = ("binary", "multiclass", "multilabel")
    task = next((t for t in tasks if kind.lower().startswith(t)), None)
    top_k = getattr(metric, "top_k", None)
    return Pair(
        preds,
        target,
        f"`{name}` ({kind})",
        task=task,
        num_classes=getattr(metric, "num_classes", None) or getattr(metric, "num_labels", None),
        threshold=getattr(metric, "threshold", None),
        ignore_index=getattr(metric, "ignore_index", None),
        top_k=(top_k,) if isinstance(top_k, int) and top_k > 1 else (),
        classification=task is not None,
    )


class LossTap:
    """Sees what cross entropy, NLL and BCE are called with, however they are called.

    Args:
        see: Is told of each call, after it.

    Attributes:
        listens: Whether anyone wants to know. A tap that nobody listens to stays open all the
            same, or frames that were compiled with it would be compiled again.
    """

    def __init__(self, see: See) -> None:
        self._see = see
        self.listens = True
        # Made once: a compiled frame that calls a loss would be compiled again for each new one.
        self._taps = {loss: self._tap(loss, kind) for loss, kind in _LOSSES.items()}
        self._places: list[tuple[dict[str, Any], str, Any]] = []
        self._is_open = False

    def find(self, module: nn.Module) -> None:
        """Look up the names under which user code and `module`'s classes know the losses."""
        homes = {c.__module__ for m in module.modules() for c in type(m).__mro__}
        self._places = [(vars(F), loss.__name__, loss) for loss in _LOSSES]
        for name, home in list(sys.modules.items()):
            path = getattr(home, "__file__", None)
            if name in homes or name == "__main__" or (path and owner_of(path) == "user"):
                self._places += [
                    (vars(home), bound, value)
                    for bound, value in list(vars(home).items())
                    if home is not F and callable(value) and _is_loss(value)
                ]

    def open(self) -> None:
        """Tap the losses from now on."""
        if not self._is_open:
            self._is_open = True
            for names, bound, loss in self._places:
                names[bound] = self._taps[loss]

    def close(self) -> None:
        """Give the losses their names back."""
        if self._is_open:
            self._is_open = False
            for names, bound, loss in self._places:
                if names.get(bound) is self._taps[loss]:
                    names[bound] = loss

    def _tap(self, loss: Any, kind: _Loss) -> Any:
        place = kind.ignore_place

        def tapped(*args: Any, **kwargs: Any) -> Any:
            value = loss(*args, **kwargs)
            if torch.compiler.is_compiling() or not self.listens:
                return value
            preds = args[0] if args else kwargs.get("input")
            target = args[1] if len(args) > 1 else kwargs.get("target")
            if isinstance(preds, Tensor) and isinstance(target, Tensor):
                ignore = kwargs.get("ignore_index", -100)
                if place is not None and len(args) > place:
                    ignore = args[place]
                site = user_site(2)
                where = shown_path(site.location) if site is not None else "an unknown place"
                said = f"`{loss.__name__}` at {where}"
                # Two losses may stand on one line, of two heads; one may stand in a loop.
                name = f"{said} {site and site.expression} {preds.shape[1:2]}"
                self._see("loss", name, _of_loss(kind, preds, target, ignore, said))
            return value

        tapped.__name__ = tapped.__qualname__ = loss.__name__
        tapped.__doc__ = loss.__doc__
        return tapped


def _is_loss(value: Any) -> bool:
    try:
        return value in _LOSSES
    except TypeError:  # unhashable
        return False


def _of_loss(kind: _Loss, preds: Tensor, target: Tensor, ignore: int, said: str) -> Pair:
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
    )


def refusal(pair: Pair, batch: Any) -> str:
    """Why a loss that a step calls judges no classification of its samples; else empty.

    Looks at the values, which makes the host wait: for the first call at each place only.
    """
    preds, target = pair.preds, pair.target
    if pair.task == "multiclass":
        square = preds.ndim == 2 and preds.shape[0] == preds.shape[1] == target.numel()
        if square and torch.equal(target, torch.arange(len(target), device=target.device)):
            return "its classes are the samples of the batch"
        return ""
    if not bool(((target == 0) | (target == 1)).all()):
        return "its targets are not only 0 and 1"
    first = next(iter(tensors(batch)), None)
    if first is None or not first.is_floating_point() or first.numel() != target.numel():
        return ""
    return "its target is the input" if first.data_ptr() == target.data_ptr() else ""
