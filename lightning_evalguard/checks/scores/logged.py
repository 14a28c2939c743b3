"""What the steps of one evaluation logged, counted and kept: are the scores what they claim?"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_evalguard.data.loaders import Fact, Logged
from lightning_evalguard.model.tensors import is_metric

# Scores of which the mean over batches is not the score. By name, so never certain. Retrieval's
# ``recall@10`` is a mean over queries, and Dice and IoU are by custom a mean over images.
_NOT_A_MEAN = re.compile(
    r"(?:^|[_/.\- ])(f1|f_?beta|f1_?score|auroc|roc_?auc|auc|average_?precision|auprc|pr_?auc|mcc|"
    r"matthews\w*|kappa|cohen_?kappa|precision|recall|balanced_?acc\w*|r2|r2_?score|rmse|pearson\w*|"
    r"spearman\w*|kendall\w*|perplexity|ppl)(?:_?(?:macro|micro|weighted|score|epoch))*$",
    re.IGNORECASE,
)
_UNEVEN = 0.01  # of the weight must lie on the wrong samples before it is worth a line
_SCALARS = 4  # numbers of a step's outputs that are followed


class _Count(NamedTuple):
    updates: int
    states: tuple[int, ...]


@dataclass
class _Scalar:
    """One number that every step returns: what of it could be logged when the epoch ends."""

    first: Tensor
    last: Tensor
    total: Tensor
    weighted: Tensor
    steps: int = 0


@dataclass
class _Metric:
    """The updates of one torchmetrics object in the running evaluation."""

    name: str
    metric: Any
    before: int
    first: int = 0
    now: _Count = field(default_factory=lambda: _Count(0, ()))
    restarts: bool = False  # the last step reset and updated it


class Tally:
    """Follows the scores of one evaluation at a time."""

    def __init__(self) -> None:
        self._left: dict[str, str] = {}  # what an evaluation left in a list or metric, by stage
        self.begin(None)

    def begin(self, root: nn.Module | None) -> None:
        """The first step of an evaluation of `root` is about to run."""
        self._root = root
        self._metrics = [_Metric(n, m, _count(m).updates) for n, m in _metrics_of(root)]
        self._lists = {} if root is None else {k: len(v) for k, v in _lists_of(root)}
        self._scalars: dict[str, _Scalar] = {}
        self._sizes: list[int | None] = []
        self._inferred: list[int | None] = []
        self._skipped: list[int] = []
        self._active = 0
        self._activity: tuple[int, ...] = self._pulse(0)
        self._records: list[Logged] = []
        self._told: dict[str, str] = {}

    def after_step(self, outputs: Any, size: int | None, calls: int, inferred: int | None) -> None:
        """A step returned.

        Args:
            outputs: What it returned; only its plain numbers are followed.
            size: How many samples its batch had, where the loader says.
            calls: Values logged so far.
            inferred: The batch size that `self.log` took from the batch, where it asked.
        """
        step = len(self._sizes)
        self._sizes.append(size)
        self._inferred.append(inferred)
        for one in self._metrics:
            count = _count(one.metric)
            if step:
                one.restarts = 0 < count.updates <= one.now.updates and count != one.now
            else:
                one.first = count.updates
            one.now = count
        activity = self._pulse(calls)
        if outputs is None and activity == self._activity:
            self._skipped.append(step)
        else:
            self._active += 1
        self._activity = activity
        self._follow(outputs, size or 0)

    def ended(self, records: Sequence[Logged]) -> None:
        """The last step is over, and nothing is reset yet."""
        self._records = list(records)
        for record in records:
            fact = self._of_record(record)
            if fact is not None:
                self._told.setdefault(record.name, fact.fact)

    def reason(self, key: str) -> str:
        """Why a logged score is not what its name says, where that is known."""
        record = next((r for r in self._records if r.name == key), None)
        if record is None:
            return ""
        if record.metric is not None:
            held = next((m for m in self._metrics if m.metric is record.metric), None)
            if held is not None and held.first > held.before > 0:
                return f"its metric still holds {held.before} updates from before this evaluation"
            return ""
        if record.averaged and record.updates > 1:
            kind = _uneven(self._weights(record), self._sizes)
            return f"it is the mean of {record.updates} batches' values" + (
                ", which weigh other than their samples do" if kind is not None else ""
            )
        return ""

    def facts(self, stage: str, values: Mapping[str, Any], module_step: str | None) -> list[Fact]:
        """What is wrong, once the evaluation is over.

        Args:
            stage: What to call this evaluation when the next one still holds its values.
            values: The scores that the trainer holds now.
            module_step: ``file:line`` of the step.
        """
        found = [fact for r in self._records if (fact := self._of_record(r)) is not None]
        found += self._of_metrics()
        found += self._of_lists()
        found += self._of_values(values)
        n = len(self._sizes)
        if self._skipped and self._active > len(self._skipped):
            which = ", ".join(map(str, self._skipped[:3]))
            found.append(
                Fact(
                    f"returned None and logged nothing for {len(self._skipped)} of {n} batches "
                    f"({which}{', ...' if len(self._skipped) > 3 else ''}), whose samples are in "
                    "no score",
                    "Mend or leave out those samples in the dataset.",
                    location=module_step,
                    certain=False,
                )
            )
        for one in self._metrics:
            if _count(one.metric).updates:
                self._left.setdefault(one.name, stage)
            else:
                self._left.pop(one.name, None)
        for name, value in _lists_of(self._root):
            if value:
                self._left.setdefault(name, stage)
            else:
                self._left.pop(name, None)
        return found

    def _pulse(self, calls: int) -> tuple[int, ...]:
        """Grows when a step logs, updates a metric or keeps something in a list."""
        own = {} if self._root is None else vars(self._root)
        held = sum(len(own.get(name, ())) for name in self._lists)
        return calls, sum(_count(one.metric).updates for one in self._metrics), held

    def _follow(self, outputs: Any, size: int) -> None:
        for name, value in _scalars_of(outputs):
            number = value.detach().float()
            one = self._scalars.get(name)
            if one is None:
                zero = torch.zeros_like(number)
                one = self._scalars[name] = _Scalar(number, number, zero, zero)
            one.last = number
            one.total = one.total + number
            one.weighted = one.weighted + number * size
            one.steps += 1

    def _weights(self, record: Logged) -> list[float] | None:
        """What each batch weighs in a mean, where that can be told from its sum."""
        sizes, n = self._sizes, len(self._sizes)
        if record.weight is None or record.updates != n or None in sizes:
            return None
        inferred = [i for i in self._inferred if i is not None]
        if len(inferred) == n and sum(inferred) == record.weight:
            return [float(i) for i in inferred]
        constant = record.weight / n
        return [constant] * n if constant in (1, max(s or 0 for s in sizes)) else None

    def _of_record(self, record: Logged) -> Fact | None:
        if record.metric is not None or not record.averaged or record.updates < 2:
            return None
        if _NOT_A_MEAN.search(record.name):
            return Fact(
                f"is the mean of {record.updates} batches' values, and that score is not a mean",
                "Log a torchmetrics object, or compute it once when the epoch ends.",
                record.name,
                certain=False,
            )
        weights = self._weights(record)
        share = _uneven(weights, self._sizes)
        if share is None or weights is None:
            return None
        first = self._sizes[0]
        if weights[0] != first and weights[0] != 1:
            fact = (
                f"batches of {first} samples are weighed as {weights[0]:.0f}, the length of dim 0 "
                "of the batch's first tensor"
            )
        else:
            last = self._sizes[-1]
            fact = (
                f"is the mean of {record.updates} batches' means as if all had as many samples, "
                f"and they have {first} to {last}"
            )
        return Fact(fact, "Pass batch_size=<number of samples> to self.log.", record.name)

    def _of_metrics(self) -> list[Fact]:
        found = []
        logged = {id(r.metric) for r in self._records if r.metric is not None}
        for one in self._metrics:
            if id(one.metric) not in logged and getattr(one.metric, "_computed", None) is None:
                continue  # nobody asked for its value
            kind = type(one.metric).__name__
            if one.first > one.before > 0:
                since = self._left.get(one.name)
                where = f"from {since}" if since else "from training"
                found.append(
                    Fact(
                        f"is not reset: it still held {one.before} updates {where} when this "
                        "evaluation began",
                        f"Call `self.{one.name}.reset()` in `on_validation_epoch_start`, or log "
                        "the metric object itself; train and validation need one each.",
                        one.name,
                        kind,
                    )
                )
            elif one.restarts and one.now.updates < len(self._sizes):
                found.append(
                    Fact(
                        f"is reset in every step: its value is the last batch's, of "
                        f"{len(self._sizes)}",
                        f"Call `self.{one.name}.reset()` once, when the epoch begins.",
                        one.name,
                        kind,
                    )
                )
        return found

    def _of_lists(self) -> list[Fact]:
        steps = len(self._sizes)
        return [
            Fact(
                f"is never cleared: it still held {held} items from {self._left[name]} when this "
                "evaluation began",
                f"Call `self.{name}.clear()` when the epoch ends.",
                name,
                "list",
                certain=False,
            )
            for name, value in _lists_of(self._root)
            if (held := self._lists.get(name, 0)) and name in self._left
            if steps and len(value) >= held + steps
        ]

    def _of_values(self, values: Mapping[str, Any]) -> list[Fact]:
        """Numbers logged when the epoch ended that are a bad summary of what the steps returned."""
        steps, stepwise = len(self._sizes), {r.name for r in self._records}
        followed = [s for s in self._scalars.values() if s.steps == steps]
        if steps < 2 or not followed:
            return []
        total = sum(s or 0 for s in self._sizes)
        known = None not in self._sizes and total > 0
        uneven = known and _uneven([1.0] * steps, self._sizes) is not None
        found = []
        for one in followed:
            first, last = float(one.first), float(one.last)
            plain = float(one.total) / steps
            honest = float(one.weighted) / total if known else plain
            for name, value in values.items():
                if name in stepwise or not isinstance(value, (float, Tensor)):
                    continue
                number = float(value)
                if _is_ratio(number) or _equal(number, honest):
                    continue
                if _equal(number, last) and not _equal(number, plain) and not _equal(number, first):
                    found.append(
                        Fact(
                            f"is the last batch's value, expected the mean of {steps} batches",
                            "Log it in the step, with self.log.",
                            name,
                            certain=False,
                        )
                    )
                elif uneven and _equal(number, plain) and abs(plain - honest) > 1e-3 * abs(honest):
                    found.append(
                        Fact(
                            f"is the mean of {steps} batches' means as if all had as many samples, "
                            f"and they have {self._sizes[0]} to {self._sizes[-1]}",
                            "Log it in the step, with self.log.",
                            name,
                            certain=False,
                        )
                    )
        return found


def _metrics_of(root: nn.Module | None) -> Iterable[tuple[str, Any]]:
    """The torchmetrics objects of a module, but for wrappers and what they wrap."""
    if root is None:
        return
    wrapped: tuple[str, ...] = ()
    for name, module in root.named_modules():
        if not is_metric(module) or (wrapped and name.startswith(wrapped)):
            continue
        if type(module).__module__.startswith("torchmetrics.wrappers"):
            wrapped += (name + ".",)
        elif hasattr(module, "_update_count") and hasattr(module, "_defaults"):
            yield name, module


def _count(metric: Any) -> _Count:
    states = tuple(id(getattr(metric, name, None)) for name in metric._defaults)
    return _Count(int(metric._update_count), states)


def _lists_of(root: nn.Module | None) -> list[tuple[str, list[Any]]]:
    if root is None:
        return []
    return [(k, v) for k, v in vars(root).items() if type(v) is list and not k.startswith("_")]


def _scalars_of(outputs: Any) -> list[tuple[str, Tensor]]:
    held = outputs if isinstance(outputs, dict) else {"": outputs}
    numbers = [
        (str(name), value)
        for name, value in held.items()
        if isinstance(value, Tensor) and value.numel() == 1 and value.is_floating_point()
    ]
    return [(name, value.reshape(())) for name, value in numbers[:_SCALARS]]


def _uneven(weights: Sequence[float] | None, sizes: Sequence[int | None]) -> float | None:
    """The share of the weight that lies on the wrong samples; None where it is negligible."""
    if weights is None or None in sizes or not sizes:
        return None
    total, samples = sum(weights), sum(s or 0 for s in sizes)
    if not total or not samples:
        return None
    pairs = zip(weights, sizes, strict=True)
    share = sum(abs(w / total - (s or 0) / samples) for w, s in pairs) / 2
    return share if share >= _UNEVEN else None


def _equal(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=2e-6)


def _is_ratio(number: float) -> bool:
    """Whether a number is one that many scores may have by chance: 0, 1, 3/4."""
    if not math.isfinite(number):
        return True
    return abs(number * 5040 - round(number * 5040)) < 1e-3 * max(1.0, abs(number))
