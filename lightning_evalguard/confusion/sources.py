"""Where predictions and targets come from, and what they say about the task."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_evalguard.confusion.config import ConfusionMetrics
from lightning_evalguard.confusion.layout import ROOM, Layout, highest_not_above

# The names under which people return and pass predictions and targets, the likeliest first.
PREDS = (
    "preds", "logits", "probs", "predictions", "y_hat", "y_pred", "pred", "prediction", "logit",
    "prob", "probabilities", "probability", "y_preds", "y_prob", "y_probs", "y_logits", "y_score",
    "y_scores", "yhat", "y_hats", "predicted", "scores", "score", "outputs", "output", "out",
    "pred_logits", "pred_probs", "pred_labels", "hypotheses", "hypothesis",
)  # fmt: skip
TARGET = (
    "target", "targets", "labels", "label", "y", "y_true", "true", "trues", "truth", "truths",
    "ground_truth", "ground_truths", "groundtruth", "gt", "gts", "y_target", "y_label", "y_labels",
    "y_trues", "gold", "golds", "references", "reference", "expected", "actual", "actuals",
    "true_labels", "true_label",
)  # fmt: skip
_KINDS = {
    "logits": {"logits", "logit", "y_logits", "pred_logits"},
    "probs": {
        "probs",
        "prob",
        "probabilities",
        "probability",
        "y_prob",
        "y_probs",
        "pred_probs",
    },
}
_SCORES = (*_KINDS["logits"], *_KINDS["probs"])
# Names that only a classification uses; `preds` and `target` are a regression's as well.
_CLASSIFIES = {*_SCORES, "scores", "score", "labels", "label"}
_CLASSIFIES |= {"true_labels", "true_label"}
_STAGE = re.compile(r"^(val|valid|validation|test|eval|dev)_+")


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
        axis: Where the classes of scores ``(N, ..., C, ...)`` stand, 1 or -1, where the source
            says so: 1 in torch's losses and torchmetrics.
        shares: Whether rows of the target are shares of the classes that sum to one, so that the
            largest is the class: one-hot or soft targets.
        judges: Whether a score is computed of it, and no loss.
        cuts: Whether it is said which scores mean yes; a curve only ranks them.
        is_array: Whether all that is known is that both became arrays.
        is_ordered: Whether it is said which of both the targets are.
        location: ``file:line`` of the call.
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
    axis: int | None = None
    shares: bool = False
    judges: bool = False
    cuts: bool = True
    is_array: bool = False
    is_ordered: bool = True
    location: str | None = None


def turned(pair: Pair) -> Pair:
    """The pair with its predictions as targets, and the reverse."""
    return replace(pair, preds=pair.target, target=pair.preds)


def from_outputs(outputs: Any) -> Pair | None:
    """Predictions and targets in what a step returned: a dict, named tuple, tuple or list."""
    if isinstance(outputs, Mapping):
        return _from_mapping(outputs)
    named = getattr(type(outputs), "_fields", None)
    if isinstance(outputs, tuple) and isinstance(named, tuple):
        pair = _from_mapping(dict(zip(named, outputs, strict=True)))
        if pair is not None:
            return pair
    if isinstance(outputs, (list, tuple)) and len(outputs) <= _ITEMS:
        return _from_sequence(outputs)
    return None


_ITEMS = 8  # of a sequence that is returned; a longer one is no tuple of results


def _from_mapping(outputs: Mapping[Any, Any]) -> Pair | None:
    tensors: dict[str, tuple[str, Tensor]] = {}
    for key, value in outputs.items():
        tensor = _tensor(value)
        if isinstance(key, str) and tensor is not None:
            tensors.setdefault(_STAGE.sub("", key.lower()), (key, tensor))
    target = next((k for k in TARGET if k in tensors), None)
    preds = next((k for k in PREDS if k in tensors), None)
    if target is None or preds is None:
        return None
    pair = Pair(
        tensors[preds][1],
        tensors[target][1],
        f"`{tensors[preds][0]}` and `{tensors[target][0]}` of the returned dict",
        preds_are=_kind_of(preds),
        classification=preds in _SCORES
        or (preds in _CLASSIFIES and target in _CLASSIFIES),
    )
    # labels: their number stands in the scores beside them
    if not pair.preds.is_floating_point():
        for key in _SCORES:
            scores = None
            if key in tensors:
                scores = tensors[key][1]
            if (
                scores is not None
                and scores.ndim == pair.target.ndim + 1
                and scores.shape[1] > 1
            ):
                pair.num_classes = scores.shape[1]
    return pair


def _kind_of(name: str) -> str | None:
    return next((kind for kind, names in _KINDS.items() if name in names), None)


_CURVES = re.compile(
    r"auroc|log_?auc|averageprecision|average_precision|roc$|recall_?curve|at_?fixed|eer$|"
    r"calibration|hinge",
    re.IGNORECASE,
)


def cuts(name: str, task: Any) -> bool:
    """Whether a metric of that name and task says of each answer whether it is right."""
    return task == "multiclass" or not _CURVES.search(name)


def _tensor(value: Any) -> Tensor | None:
    """A tensor, an array or a list of numbers as a tensor; the scores of a nested output."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, np.ndarray) and value.dtype.kind in "bif":
        return torch.as_tensor(value)
    if isinstance(value, Mapping):  # what a Hugging Face model returned
        return next((v for k in _SCORES if isinstance(v := value.get(k), Tensor)), None)
    if (
        isinstance(value, list)
        and value
        and all(isinstance(x, (bool, int, float)) for x in value)
    ):
        return torch.tensor(value)
    return None


def _from_sequence(outputs: Sequence[Any]) -> Pair | None:
    """The one pair of scores and class indices, in either order; or two tensors of labels."""
    tensors = [(i, t) for i, v in enumerate(outputs) if (t := _tensor(v)) is not None]
    scores = [(i, t) for i, t in tensors if t.is_floating_point()]
    labels = [(i, t) for i, t in tensors if not t.is_floating_point()]
    scored = [
        (score, label)
        for score, label in itertools.product(scores, labels)
        if _are_scores_of(score[1], label[1])
    ]
    if len(scored) == 1:
        (i, preds), (j, target) = scored[0]
    elif not scored and len(labels) == 2 and labels[0][1].shape == labels[1][1].shape:
        (i, preds), (j, target) = labels
    else:
        return None
    said = f"items {i} and {j} of the returned {type(outputs).__name__}"
    return Pair(preds, target, said, classification=True)


def _are_scores_of(preds: Tensor, target: Tensor) -> bool:
    if preds.shape == target.shape:
        return True
    if preds.ndim != target.ndim + 1:
        return False
    return (
        preds.shape[:1] + preds.shape[2:] == target.shape
        or preds.shape[:-1] == target.shape
    )


def from_source(source: Any, outputs: Any, batch: Any) -> Pair:
    """Predictions and targets as the user's `source` gives them.

    Raises:
        ValueError: Naming ``source`` and what came instead.
    """
    if isinstance(source, str):
        names = [name.strip() for name in source.partition(":")[2].split(",")]
        preds, target = (_item(outputs, name, source) for name in names)
        named, said = (
            names[0],
            f"`{names[0]}` and `{names[1]}` of what the step returned",
        )
    else:
        got = source(outputs, batch)
        if not isinstance(got, (tuple, list)) or len(got) != 2:
            many = (
                f"{len(got)} values"
                if isinstance(got, (tuple, list))
                else type(got).__name__
            )
            raise ValueError(f"source returned {many}, expected (preds, target)")
        preds, target = got
        named = ""
        said = f"source `{getattr(source, '__qualname__', source)}`"
    try:
        preds = torch.as_tensor(preds)
        target = torch.as_tensor(target)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"source gave {type(preds).__name__} and {type(target).__name__}, expected tensors"
        ) from error
    return Pair(preds, target, said, preds_are=_kind_of(named), classification=True)


def _item(outputs: Any, name: str, source: str) -> Any:
    try:
        if name.lstrip("-").isdigit():
            return outputs[int(name)]
        return outputs[name]
    except (KeyError, IndexError, TypeError):
        raise ValueError(
            f"source={source!r}: the step returned {shown(outputs)}"
        ) from None


def shown(outputs: Any) -> str:
    """What a step returned, in a few words."""
    if isinstance(outputs, Mapping):
        keys = ", ".join(
            f"`{k}` {_shape(v)}".strip() for k, v in list(outputs.items())[:8]
        )
        if not keys:
            return "an empty dict"
        return f"a dict with {keys}"
    if isinstance(outputs, (tuple, list)):
        items = ", ".join(_shape(v) or type(v).__name__ for v in outputs[:8])
        if not items:
            return "nothing in it"
        return f"a {type(outputs).__name__} of {items}"
    if isinstance(outputs, Tensor):
        return f"a tensor {_shape(outputs)}"
    if outputs is None:
        return "nothing"
    return f"a {type(outputs).__name__}"


def _shape(value: Any) -> str:
    if not isinstance(value, Tensor):
        return ""
    return str(tuple(value.shape))


# --- the shapes that the state counts ------------------------------------------------------------


def arrange(
    pair: Pair, config: ConfusionMetrics, settled: Layout | None = None, axis: int = 1
) -> Pair | None:
    """`pair` in the shapes that the state counts, its task named; None for no classification.

    Scores are ``(N, C, ...)``; classes in the last dimension, as transformers has them, are moved.
    Floating-point tensors of one shape are binary where they are ``(N,)``, ``(N, 1, ...)`` or
    ``(N, H, W)``, else multilabel. Two classes are one question where a threshold asks it.

    Args:
        pair: As its source gave it.
        config: What the user asked for.
        settled: How the run counts, where that is settled: a batch of one whose dimension was
            squeezed away gets it back.
        axis: Where the classes stand if the shapes fit both: 1 or -1.
    """
    p, t = pair.preds, pair.target
    if p.is_complex() or t.is_complex():
        return None
    p, t = _unsqueezed(p, t, settled)
    task = config.task or pair.task or (settled.task if settled is not None else None)
    if p.ndim == t.ndim + 1 and p.shape[:1] == t.shape[:1]:
        where = _class_axis(p, t, pair.axis or axis)
        if where is not None and p.shape[where] == 1:
            p = p.squeeze(where)
        elif t.is_floating_point() and not pair.classification:
            return None
        elif where is not None:
            return _scored(pair, p if where == 1 else p.movedim(-1, 1), t, task, config)
    if pair.shares and p.shape == t.shape:
        return _scored(pair, p, t.argmax(1), "multiclass", config)
    if p.shape != t.shape:
        if p.numel() != t.numel() or task == "multilabel":
            return None
        p, t = p.reshape(-1), t.reshape(-1)
    return _alike(pair, p, t, task)


def _unsqueezed(p: Tensor, t: Tensor, settled: Layout | None) -> tuple[Tensor, Tensor]:
    """Both with the dimension of the batch that a squeeze took from a batch of one."""
    if not p.ndim and not t.ndim:
        return p.unsqueeze(0), t.unsqueeze(0)
    if settled is None or (t.ndim and p.ndim == t.ndim + 1 and len(p) == len(t)):
        return p, t
    c = settled.num_classes
    if settled.task == "multiclass" and p.numel() == c * t.numel() and p.shape[0] == c:
        if p.ndim == 1:
            return p.unsqueeze(0), t.reshape(1)
        if p.shape[1:] == t.shape:
            return p.unsqueeze(0), t.unsqueeze(0)
    if settled.task == "multilabel" and p.ndim == 1 and p.shape == t.shape == (c,):
        return p.unsqueeze(0), t.unsqueeze(0)
    return p, t


def _class_axis(p: Tensor, t: Tensor, axis: int) -> int | None:
    """Which dimension of scores holds the classes: the one that the target lacks."""
    first = p.shape[2:] == t.shape[1:]
    last = p.shape[:-1] == t.shape
    if first and last:
        if p.ndim > 2:
            return axis
        return 1
    if first:
        return 1
    if not last:
        return None
    return -1


def is_ambiguous(p: Tensor, t: Tensor) -> bool:
    """Whether the classes of `p` may stand in its second dimension as well as in its last."""
    return (
        p.ndim == t.ndim + 1 > 2
        and p.shape[:-1] == t.shape
        and p.shape[2:] == t.shape[1:]
    )


def _scored(
    pair: Pair, p: Tensor, t: Tensor, task: Any, config: ConfusionMetrics
) -> Pair:
    if p.shape[1] == 2 and (task == "binary" or config.threshold != 0.5):
        return _margin(pair, p, t, config)
    return _as(pair, p, t, "multiclass")


def _alike(pair: Pair, p: Tensor, t: Tensor, task: Any) -> Pair | None:
    """A pair of one shape: answers of yes or no, or labels."""
    sure = pair.classification or task is not None
    if t.is_floating_point() and not sure:
        return None
    if task is None and p.is_floating_point():
        many = t.ndim in (2, 4) and t.shape[1] > 1
        task = "binary"
        if many:
            task = "multilabel"
    if task is None:
        task = "multiclass"
        if p.dtype == torch.bool:
            task = "binary"
    if task == "multiclass" and p.is_floating_point():
        return None  # scores of the target's own shape are none of several classes
    return _as(pair, p, t, task)


def _margin(pair: Pair, p: Tensor, t: Tensor, config: ConfusionMetrics) -> Pair:
    if "probs" in (config.preds_are, pair.preds_are):
        return _as(pair, p[:, 1], t, "binary")
    return replace(_as(pair, p[:, 1] - p[:, 0], t, "binary"), preds_are="logits")


def _as(pair: Pair, preds: Tensor, target: Tensor, task: Any) -> Pair:
    preds_are = pair.preds_are
    if not preds.is_floating_point():
        preds_are = "labels"
    return replace(pair, preds=preds, target=target, task=task, preds_are=preds_are)


def axis_of(
    module: nn.Module | None, pair: Pair, vouching: Sequence[tuple[int, int]] = ()
) -> int:
    """Where the classes of scores stand whose shapes fit both: decided once, for the run.

    A loss that is given the same scores says it by their strides: its classes stand in its second
    dimension. Else the last layer of that many outputs does: a linear one writes into the last
    dimension, a convolution into the second.

    Args:
        module: The model.
        pair: As it was returned.
        vouching: Of the scores that losses of the step were given: storage and stride of classes.
    """
    p = pair.preds
    for storage, stride in vouching:
        same = storage == p.untyped_storage().data_ptr()
        if (
            same
            and stride in (p.stride(1), p.stride(-1))
            and p.stride(1) != p.stride(-1)
        ):
            if stride == p.stride(1):
                return 1
            return -1
    for layer in reversed(list(module.modules()) if module is not None else []):
        if getattr(layer, "out_features", None) == p.shape[-1]:
            return -1
        if getattr(layer, "out_channels", None) == p.shape[1]:
            return 1
    return 1


# --- how it is counted ---------------------------------------------------------------------------


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
    said = None
    if scored or pair.task == "multilabel":
        said = pair.preds.shape[1]
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
    ignore = (
        config.ignore_index if config.ignore_index is not None else pair.ignore_index
    )
    return Layout(
        task=pair.task,
        num_classes=number or ROOM,
        preds_are=kind,
        threshold=threshold,
        ignore_index=-100 if ignore is None else ignore,
        top_k=(config.top_k or pair.top_k) if scored else (),
        full=(number or ROOM) <= config.max_full_classes or pair.task != "multiclass",
        exact=number is not None,
        rounded=highest_not_above(threshold, pair.preds.dtype) if sigmoids else None,
    )


def _kind(pair: Pair, config: ConfusionMetrics, scored: bool) -> str:
    if not pair.preds.is_floating_point():
        return "labels"
    if scored:
        return pair.preds_are or "logits"  # the largest is the prediction either way
    return config.preds_are or pair.preds_are or "unknown"
