"""Where predictions and targets come from, and what they say about the task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_evalguard.confusion.matrix import ROOM, ConfusionMetrics, Layout

PREDS = ("preds", "logits", "probs", "predictions", "y_hat", "y_pred")
TARGET = ("target", "targets", "labels", "label", "y", "y_true")
_SCORES = ("logits", "probs")


@dataclass
class Pair:
    """Predictions and targets of one call, and what is known about them from where they came.

    Attributes:
        preds: Scores or labels.
        target: Class indices, or 0 and 1.
        source: Where they came from, in words.
        task: ``binary``, ``multiclass``, ``multilabel``, or None.
        preds_are: ``logits`` or ``probs``, or None where only the values could tell.
        num_classes: Number of classes, where the source knows it.
        threshold: Of a binary or multilabel metric.
        ignore_index: Of a metric or loss.
        top_k: Of a metric that judges by the k best.
        classification: Whether the source itself says that this is a classification; a pair of
            floating-point tensors under ``preds`` and ``target`` is as likely a regression.
    """

    preds: Tensor
    target: Tensor
    source: str
    task: Any = None
    preds_are: str | None = None
    num_classes: int | None = None
    threshold: float | None = None
    ignore_index: int | None = None
    top_k: tuple[int, ...] = ()
    classification: bool = False


def from_outputs(outputs: Any) -> Pair | None:
    """Predictions and targets under their usual keys in what a step returned."""
    if not isinstance(outputs, Mapping):
        return None
    tensors = {k: v for k, v in outputs.items() if isinstance(v, Tensor) and v.ndim}
    target = next((k for k in TARGET if k in tensors), None)
    preds = next((k for k in PREDS if k in tensors), None)
    if target is None or preds is None:
        return None
    pair = Pair(
        tensors[preds],
        tensors[target],
        f"`{preds}` and `{target}` of the returned dict",
        preds_are=preds if preds in _SCORES else None,
        classification=preds in _SCORES,
    )
    if not pair.preds.is_floating_point():  # labels: their number stands in the scores beside them
        for key in _SCORES:
            scores = tensors.get(key)
            if scores is not None and scores.ndim == pair.target.ndim + 1 and scores.shape[1] > 1:
                pair.num_classes = scores.shape[1]
    return pair


def from_source(source: Any, outputs: Any, batch: Any) -> Pair:
    """Predictions and targets as the user's `source` gives them.

    Raises:
        ValueError: Naming ``source`` and what came instead.
    """
    if isinstance(source, str):
        names = [name.strip() for name in source.partition(":")[2].split(",")]
        preds, target = (_item(outputs, name, source) for name in names)
        named, said = names[0], f"`{names[0]}` and `{names[1]}` of what the step returned"
    else:
        got = source(outputs, batch)
        if not isinstance(got, (tuple, list)) or len(got) != 2:
            many = f"{len(got)} values" if isinstance(got, (tuple, list)) else type(got).__name__
            raise ValueError(f"source returned {many}, expected (preds, target)")
        preds, target = got
        named, said = "", f"source `{getattr(source, '__qualname__', source)}`"
    try:
        preds, target = torch.as_tensor(preds), torch.as_tensor(target)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"source gave {type(preds).__name__} and {type(target).__name__}, expected tensors"
        ) from error
    return Pair(
        preds, target, said, preds_are=named if named in _SCORES else None, classification=True
    )


def _item(outputs: Any, name: str, source: str) -> Any:
    try:
        return outputs[int(name)] if name.lstrip("-").isdigit() else outputs[name]
    except (KeyError, IndexError, TypeError):
        raise ValueError(f"source={source!r}: the step returned {shown(outputs)}") from None


def shown(outputs: Any) -> str:
    """What a step returned, in a few words."""
    if isinstance(outputs, Mapping):
        keys = ", ".join(f"`{k}` {_shape(v)}".strip() for k, v in list(outputs.items())[:8])
        return f"a dict with {keys}" if keys else "an empty dict"
    if isinstance(outputs, (tuple, list)):
        items = ", ".join(_shape(v) or type(v).__name__ for v in outputs[:8])
        return f"a {type(outputs).__name__} of {items}" if items else "nothing in it"
    if isinstance(outputs, Tensor):
        return f"a tensor {_shape(outputs)}"
    return "nothing" if outputs is None else f"a {type(outputs).__name__}"


def _shape(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else ""


def arrange(pair: Pair, config: ConfusionMetrics) -> Pair | None:
    """`pair` in the shapes that the state counts, its task named; None for no classification.

    Scores are ``(N, C, ...)``; classes in the last dimension, as transformers has them, are moved.
    Floating-point tensors of one shape are binary where they are ``(N,)``, ``(N, 1, ...)`` or
    ``(N, H, W)``, else multilabel. Two classes are one question where a threshold asks it.
    """
    p, t = pair.preds, pair.target
    task = config.task or pair.task
    if not p.ndim and not t.ndim:
        p, t = p.unsqueeze(0), t.unsqueeze(0)
    if p.is_complex() or t.is_complex():
        return None
    if p.ndim == t.ndim + 1 and p.shape[:1] == t.shape[:1]:
        if p.shape[1] == 1 and p.shape[2:] == t.shape[1:]:
            p = p.squeeze(1)
        elif t.is_floating_point() and not pair.classification:
            return None
        elif p.shape[2:] == t.shape[1:] or p.shape[:-1] == t.shape:
            p = p if p.shape[2:] == t.shape[1:] else p.movedim(-1, 1)
            if p.shape[1] == 2 and (task == "binary" or config.threshold != 0.5):
                return _margin(pair, p, t, config)
            return _as(pair, p, t, "multiclass")
    if p.shape != t.shape:
        if p.numel() != t.numel() or task == "multilabel":
            return None
        p, t = p.reshape(-1), t.reshape(-1)
    if p.is_floating_point():
        if t.is_floating_point() and not pair.classification and task is None:
            return None
        if task is None:
            many = t.ndim in (2, 4) and t.shape[1] > 1
            task = "multilabel" if many else "binary"
        return _as(pair, p, t, task)
    if t.is_floating_point() and task is None and not pair.classification:
        return None
    if task is None:
        task = "binary" if p.dtype == torch.bool else "multiclass"
    return _as(pair, p, t, task)


def _margin(pair: Pair, p: Tensor, t: Tensor, config: ConfusionMetrics) -> Pair:
    if "probs" in (config.preds_are, pair.preds_are):
        return _as(pair, p[:, 1], t, "binary")
    return replace(_as(pair, p[:, 1] - p[:, 0], t, "binary"), preds_are="logits")


def _as(pair: Pair, preds: Tensor, target: Tensor, task: Any) -> Pair:
    preds_are = pair.preds_are if preds.is_floating_point() else "labels"
    return replace(pair, preds=preds, target=target, task=task, preds_are=preds_are)


def layout_of(pair: Pair, config: ConfusionMetrics, known: int | None = None) -> Layout:
    """How to count an arranged `pair`.

    Args:
        pair: As `arrange` returns it.
        config: What the user asked for.
        known: Number of classes that the dataset or the module names.

    Raises:
        ValueError: If the user's ``num_classes`` or ``task`` do not fit the tensors.
    """
    scored = pair.task == "multiclass" and pair.preds.ndim == pair.target.ndim + 1
    said = pair.preds.shape[1] if scored or pair.task == "multilabel" else None
    if pair.task == "binary":
        said = 2
    asked = config.num_classes
    if asked is not None and said is not None and asked != said:
        raise ValueError(f"num_classes={asked}: {pair.source} has {said} classes")
    if config.task not in (None, pair.task):
        raise ValueError(f"task={config.task!r}: {pair.source} is {pair.task}")
    number = asked or said or pair.num_classes or known
    kind = _kind(pair, config, scored)
    threshold = config.threshold if config.threshold != 0.5 else pair.threshold or 0.5
    halves = pair.preds.dtype in (torch.float16, torch.bfloat16)
    sigmoids = halves and pair.task != "multiclass" and kind in ("logits", "unknown")
    ignore = config.ignore_index if config.ignore_index is not None else pair.ignore_index
    return Layout(
        task=pair.task,
        num_classes=number or ROOM,
        preds_are=kind,
        threshold=threshold,
        ignore_index=-100 if ignore is None else ignore,
        top_k=(config.top_k or pair.top_k) if scored else (),
        full=(number or ROOM) <= config.max_full_classes or pair.task != "multiclass",
        exact=number is not None,
        rounded=_highest_not_above(threshold, pair.preds.dtype) if sigmoids else None,
    )


def _highest_not_above(threshold: float, dtype: torch.dtype) -> float:
    """The highest of all numbers in 16 bits whose sigmoid, in 16 bits too, is not above."""
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    every = every[every.isfinite()]
    return float(every[~(every.sigmoid() > threshold)].max())


def _kind(pair: Pair, config: ConfusionMetrics, scored: bool) -> str:
    if not pair.preds.is_floating_point():
        return "labels"
    if scored:
        return pair.preds_are or "logits"  # the largest is the prediction either way
    return config.preds_are or pair.preds_are or "unknown"


def names_of(loader: Any, module: Any, datamodule: Any = None) -> tuple[str, ...] | None:
    """Class names under ``classes`` or ``class_names`` of the dataset, datamodule or module."""
    dataset = getattr(loader, "dataset", None)
    for _ in range(8):  # a Subset of a Subset, a ConcatDataset of them
        if dataset is None:
            break
        if (names := _names(dataset)) is not None:
            return names
        inner = getattr(dataset, "datasets", None)
        dataset = (
            inner[0] if isinstance(inner, list) and inner else getattr(dataset, "dataset", None)
        )
    for owner in (datamodule, module):
        if (names := _names(owner)) is not None:
            return names
    return None


def _names(owner: Any) -> tuple[str, ...] | None:
    for attribute in ("classes", "class_names"):
        names = getattr(owner, attribute, None)
        if (
            isinstance(names, Sequence)
            and not isinstance(names, str)
            and len(names) > 1
            and all(isinstance(name, str) for name in names)
            and len(set(names)) == len(names)
        ):
            return tuple(names)
    return None


def classes_of(module: nn.Module) -> int | None:
    """``num_classes`` of the module, or of its hyperparameters."""
    hparams = getattr(module, "hparams", None)
    inside = hparams.get("num_classes") if isinstance(hparams, Mapping) else None
    for value in (getattr(module, "num_classes", None), inside):
        if isinstance(value, int) and not isinstance(value, bool) and value > 1:
            return value
    return None
