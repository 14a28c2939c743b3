"""Thresholds that a module speaks of: is a logged score that of answers which one of them cuts?"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from lightning_evalguard.confusion.differences import OR, Misread
from lightning_evalguard.confusion.layout import Layout
from lightning_evalguard.instruments.source import owner_of

_NAMED = re.compile(r"thr|cut_?off|^cut$|^tau$", re.IGNORECASE)
_JUDGING = (
    "validation_step",
    "test_step",
    "on_validation_epoch_end",
    "on_test_epoch_end",
)
_MANY = 32  # thresholds that are tried


def names_thresholds(module: nn.Module) -> bool:
    """Whether a module, or the code of its evaluation, names any; no value is read."""
    return any(True for _ in _spoken_of(module))


def thresholds_of(module: nn.Module) -> dict[str, float]:
    """The thresholds between 0 and 1, by what they are called."""
    known: dict[str, float] = {}
    for name, value in _spoken_of(module):
        number = value
        if isinstance(value, Tensor):
            number = None
            if value.numel() == 1:
                number = float(value)
        if isinstance(number, float) and 0 < number < 1 and len(known) < _MANY:
            known.setdefault(name, number)
    return known


def _spoken_of(module: nn.Module) -> Iterator[tuple[str, Any]]:
    for prefix, part in module.named_modules():
        own = vars(part)
        held = {**own, **own.get("_buffers", {}), **own.get("_parameters", {})}
        settings = own.get("_hparams")
        if isinstance(settings, Mapping):
            held |= {str(key): value for key, value in settings.items()}
        for name, value in held.items():
            if _NAMED.search(name) and isinstance(value, (float, Tensor)):
                yield f"`{prefix}.{name}`".replace("`.", "`"), value
    for code in _codes_of(type(module)):
        for value in code.co_consts:
            if isinstance(value, float) and 0 < value < 1 and value != 0.5:
                yield f"in `{code.co_name}`", value


def _codes_of(kind: type) -> Iterator[CodeType]:
    """The code of the user's steps and of what ends an evaluation, and the methods they call."""
    waiting = list(_JUDGING)
    reached = set(_JUDGING)
    while waiting:
        name = waiting.pop()
        held = [vars(c)[name] for c in kind.__mro__ if name in vars(c)]
        function = None
        if held:
            function = held[0]
        if not isinstance(function, FunctionType):
            continue
        code = function.__code__
        if owner_of(code.co_filename) != "user":
            continue
        yield code
        called = [name for name in code.co_names if name not in reached]
        reached.update(called)
        waiting += called


def cuts_of(
    scored: Sequence[tuple[Tensor, Tensor]],
    layout: Layout,
    preds_are: str,
    module: nn.Module,
) -> tuple[Misread, ...]:
    """What is counted where the module's own thresholds cut the scores of an evaluation.

    Args:
        scored: Scores and targets of its batches.
        layout: How they are counted.
        preds_are: ``logits`` or ``probs``.
        module: What may name a threshold.
    """
    named = {n: t for n, t in thresholds_of(module).items() if t != layout.threshold}
    if not named or not scored:
        return ()
    preds = torch.cat([p for p, _ in scored]).cpu()
    target = torch.cat([t for _, t in scored]).cpu()
    probs = preds
    if preds_are == "logits":
        probs = preds.float().sigmoid()
    cuts = []
    for name, threshold in named.items():
        where = name
        if not name.startswith("in "):
            where = f"the module's {name}"
        how = f"it is cut at a probability of {threshold:.6g}, {where}"
        remedy = f"Pass ConfusionMetrics(threshold={threshold:.6g}), {OR}"
        cuts.append(
            Misread(_matrix(probs > threshold, target, layout), how, remedy=remedy)
        )
    return tuple(cuts)


def _matrix(answers: Tensor, target: Tensor, layout: Layout) -> Tensor:
    """``(2, 2)``, or ``(L, 2, 2)`` of a multilabel task."""
    if layout.task == "multilabel":
        one = Layout(task="binary", num_classes=2, ignore_index=layout.ignore_index)
        each = range(answers.shape[1])
        return torch.stack([_matrix(answers[:, i], target[:, i], one) for i in each])
    kept = ((target == 0) | (target == 1)) & (target != layout.ignore_index)
    cells = target[kept].long() * 2 + answers[kept].long()
    return torch.bincount(cells, minlength=4).view(2, 2)
