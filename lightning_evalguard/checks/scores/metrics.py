"""The torchmetrics objects of a module in one evaluation: whose updates does a value hold?"""

from __future__ import annotations

import math
import re
import sys
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn

from lightning_evalguard.data.loaders import Fact, Logged
from lightning_evalguard.instruments.patch import Inlay, Layer
from lightning_evalguard.model.tensors import is_metric

# of which the value over all samples is not the mean of the values of their batches
_NO_MEAN = re.compile(
    r"AUROC|AveragePrecision|F1Score|FBeta|CohenKappa|MatthewsCorrCoef|JaccardIndex|R2Score|"
    r"Pearson|Spearman|Kendall|Concordance|ExplainedVariance|Perplexity|ROC|PrecisionAt|RecallAt|"
    r"MeanAveragePrecision|Frechet|InceptionScore|KernelInception|CalibrationError|Cramers|"
    r"MutualInfo|RandScore|BLEU|WordErrorRate|CharErrorRate"
)


_BATCHES = 10_000  # values of batches that are kept


class UpdateCount(NamedTuple):
    """How often a metric was updated since its last reset, and which tensors hold its state."""

    updates: int
    states: tuple[int, ...]


@dataclass
class Followed:
    """One metric object in the running evaluation.

    Attributes:
        name: Its qualified name.
        metric: The object.
        before: Updates that it held when the evaluation began.
        now: Its count after the last step.
        state: One of its states that is a tensor, which a reset makes anew; None where all are
            lists.
        updated: Updates in the steps of this evaluation.
        by_loader: The same for each loader.
        was_reset: Whether it was reset since the evaluation began.
        lost: Updates of this evaluation that a reset erased before anybody asked for the value.
        asked: Updates of this evaluation that it held when it was last asked for its value.
        values: What it was computed to.
        by_batch: What its `forward` gave for each batch.
        stale: Updates of before the evaluation that stood in a value.
        missing: Updates of the evaluation that a value did not hold, and how many it held.
    """

    name: str
    metric: Any
    before: int
    now: UpdateCount
    state: str | None = None
    updated: int = 0
    by_loader: dict[int, int] = field(default_factory=dict)
    was_reset: bool = False
    lost: int = 0
    asked: int = 0
    values: list[Any] = field(default_factory=list)
    by_batch: list[Any] = field(default_factory=list)
    stale: int = 0
    missing: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        self._held = self._holder()

    def _holder(self) -> Callable[[], Any]:
        """Gives the tensor that a reset replaces, as long as it lives.

        Its address says nothing: the next one may lie where it lay.
        """
        value = self.metric.__dict__.get(self.state)
        if isinstance(value, Tensor):
            return weakref.ref(value)
        return _nothing

    def step_over(self, loader: int) -> int:
        """How many updates a step of one loader made, which is over."""
        if self.state is None:
            count = updates_of(self.metric)
            is_same = count == self.now
        else:
            # every step comes here
            held = self.metric.__dict__
            count = UpdateCount(held["_update_count"], ())
            stays = held.get(self.state) is self._held()
            is_same = stays and count.updates == self.now.updates
        if is_same:
            return 0
        came = count.updates - self.now.updates
        if came <= 0:
            came = count.updates
            own = self.now.updates - (0 if self.was_reset else self.before)
            self.lost += max(0, min(own, self.updated) - self.asked)
            self.was_reset, self.asked = True, 0
        self.updated += came
        self.by_loader[loader] = self.by_loader.get(loader, 0) + came
        self.now = count
        self._held = self._holder()
        return came

    def gave(self, value: Any) -> None:
        """Its `forward` gives the value of one batch."""
        if (
            isinstance(value, Tensor)
            and value.numel() == 1
            and len(self.by_batch) < _BATCHES
        ):
            self.by_batch.append(value.detach().reshape(()))

    def computed(self, value: Any) -> None:
        """Somebody asked for its value."""
        held = int(self.metric._update_count)
        if held < self.now.updates:
            self.was_reset, self.asked = True, 0
        if self.before and not self.was_reset and self.updated:
            self.stale = self.before
        if self.lost and held:
            self.missing = self.lost, held
        self.lost = 0
        self.asked = max(0, held - (0 if self.was_reset else self.before))
        if isinstance(value, Tensor) and value.numel() == 1:
            self.values.append(value.detach().reshape(()))


def _nothing() -> None:
    """No tensor is held."""


def _is_no_mean(metric: Any) -> bool:
    """Whether its value over all samples is not the mean of those of their batches."""
    if vars(metric).get("average") == "micro":  # a share of all answers
        return False
    return _NO_MEAN.search(type(metric).__name__) is not None


def mean_of_batches(
    followed: Iterable[Followed], key: str, value: float, weights: Sequence[float]
) -> Fact | None:
    """Whether a logged value is the mean of what a metric gave for each batch, and is no mean.

    Args:
        followed: The metrics of the evaluation.
        key: Of the value.
        value: What the trainer holds.
        weights: By which the loop weighs each batch.
    """
    for one in followed:
        kind = type(one.metric).__name__
        if not _is_no_mean(one.metric):
            continue
        if len(one.by_batch) != len(weights) or len(weights) < 2:
            continue
        values = [float(v) for v in one.by_batch]
        total = sum(weights)
        mean = None
        if total:
            mean = sum(v * w for v, w in zip(values, weights, strict=True)) / total
        apart = len(set(values)) > 1
        if apart and mean is not None and math.isclose(mean, value, rel_tol=1e-5):
            return Fact(
                f"is the mean of {len(values)} batches' {kind} (`{one.name}`), not that of all "
                "samples",
                f"Log the metric object itself: `self.log({key!r}, self.{one.name})`.",
                key,
                certain=False,
            )
    return None


class Metrics:
    """Follows the metric objects of one evaluation at a time.

    A metric is asked for its value through the instance's ``compute``, which torchmetrics leaves
    out of pickles and copies.
    """

    def __init__(self) -> None:
        self.followed: list[Followed] = []
        self.wrong: list[Followed] = []  # of which `facts` told something
        self._updates = 0  # in the running evaluation
        self._wraps: list[Layer] = []
        self._left: dict[str, str] = {}  # which evaluation left updates in a metric
        self._robbed: dict[str, tuple[Followed, Layer]] = {}
        self._facts_of_training: list[Fact] = []

    def begin(self, root: nn.Module | None) -> None:
        """The first step of an evaluation of `root` is about to run."""
        self.end()
        self._forget_robbed()
        self.followed, self.wrong = [], []
        self._updates = 0
        for name, metric in metrics_of(root):
            count = updates_of(metric)
            one = Followed(name, metric, count.updates, count, _tensor_state(metric))
            self.followed.append(one)
            gave = None
            if _is_no_mean(metric):
                gave = one.gave
            asked = partial(_asked, one.computed, gave)
            self._wraps.append(Inlay(metric, "compute", asked))

    def end(self) -> None:
        """Leave the metrics as they were."""
        for wrap in self._wraps:
            wrap.remove()
        self._wraps.clear()

    def close(self) -> None:
        """The run is over."""
        self.end()
        self._forget_robbed()

    def step_over(self, loader: int) -> int:
        """A step of one loader is over; how many updates there were so far."""
        for one in self.followed:
            self._updates += one.step_over(loader)
        return self._updates

    def facts(self, records: Sequence[Logged], stage: str, steps: int) -> list[Fact]:
        """What is wrong with the values that somebody asked for.

        Args:
            records: What the steps logged.
            stage: What to call this evaluation when the next one still holds its updates.
            steps: How many steps there were.
        """
        found: list[Fact] = []
        for one in self.followed:
            fact = (
                self._stale(one)
                or _missing(one, steps)
                or _of_two_loaders(one, records)
            )
            if fact is not None:
                self.wrong.append(one)
                found.append(fact)
            if updates_of(one.metric).updates and one.updated:
                self._left.setdefault(one.name, stage)
            else:
                self._left.pop(one.name, None)
        return _by_collection(found)

    def watch_training(self) -> None:
        """The evaluation is over: which metrics of training did it empty?"""
        for one in self.followed:
            emptied = one.before and updates_of(one.metric).updates < one.before
            if emptied and not one.updated and not one.values:
                asked = partial(_asked, partial(self._robbing, one), None)
                self._robbed[one.name] = one, Inlay(one.metric, "compute", asked)

    def facts_of_training(self) -> list[Fact]:
        """What came to light since the last evaluation, once."""
        found = self._facts_of_training
        self._facts_of_training = []
        return found

    def _robbing(self, one: Followed, value: Any) -> None:
        self._facts_of_training.append(
            Fact(
                f"was reset by an evaluation within the training epoch: {one.before} of its "
                "updates are in no score of training",
                f"Call `self.{one.name}.reset()` when the training epoch ends, not in an "
                "evaluation.",
                one.name,
                type(one.metric).__name__,
            )
        )
        self._forget_robbed(one.name)

    def _forget_robbed(self, name: str | None = None) -> None:
        for known in [name] if name is not None else list(self._robbed):
            self._robbed.pop(known)[1].remove()

    def _stale(self, one: Followed) -> Fact | None:
        if not one.stale:
            return None
        since = self._left.get(one.name)
        where = "from training"
        if since:
            where = f"from {since}"
        return Fact(
            f"is not reset: it still held {one.stale} updates {where} when this evaluation began",
            f"Call `self.{one.name}.reset()` in `on_validation_epoch_start`, or log the metric "
            "object itself; train and validation need one each.",
            one.name,
            type(one.metric).__name__,
        )


def _by_collection(facts: Sequence[Fact]) -> list[Fact]:
    """What is so of several members of one collection is one fact, of the collection."""
    groups: dict[tuple[str, str], list[Fact]] = {}
    for fact in facts:
        parent = (fact.subject or "").rpartition(".")[0]
        groups.setdefault((parent or str(fact.subject), fact.fact), []).append(fact)
    merged = []
    for (parent, _), same in groups.items():
        first = same[0]
        if len(same) > 1:
            remedy = first.remedy.replace(f"self.{first.subject}.", f"self.{parent}.")
            first = first._replace(
                subject=parent, subject_type="MetricCollection", remedy=remedy
            )
        merged.append(first)
    return merged


def _missing(one: Followed, steps: int) -> Fact | None:
    if one.missing is None:
        return None
    lost, held = one.missing
    kind = type(one.metric).__name__
    if held == 1 and lost >= steps - 1:
        fact = f"is reset in every step: its value is the last batch's, of {steps}"
    else:
        fact = (
            f"is reset within the evaluation: {lost} of {one.updated} "
            f"updates are not in its value"
        )
    return Fact(
        fact,
        f"Call `self.{one.name}.reset()` once, when the epoch begins.",
        one.name,
        kind,
    )


def _of_two_loaders(one: Followed, records: Sequence[Logged]) -> Fact | None:
    keys = [r for r in records if r.metric is one.metric and r.dataloader is not None]
    loaders = sorted({r.dataloader for r in keys if r.dataloader is not None})
    if len(loaders) < 2 or one.was_reset:
        return None
    return Fact(
        f"is one metric for {len(loaders)} loaders: `{keys[-1].name}` of loader {loaders[-1]} "
        "holds the samples of those before it",
        "Hold one metric for each loader, in an nn.ModuleList.",
        one.name,
        type(one.metric).__name__,
    )


def _asked(
    ask: Callable[[Any], None],
    of_batch: Callable[[Any], None] | None,
    original: Callable[..., Any],
    layer: Layer,
) -> Callable[..., Any]:
    """A `compute` that hands on the value that it gives."""

    def compute(*args: Any, **kwargs: Any) -> Any:
        value = original(*args, **kwargs)
        if not layer.active:
            return value
        # `forward` computes the value of its batch, on a state that it puts back
        if not sys._getframe(1).f_code.co_name.startswith("_forward"):
            ask(value)
        elif of_batch is not None:
            of_batch(value)
        return value

    return compute


def _tensor_state(metric: Any) -> str | None:
    return next((k for k, v in metric._defaults.items() if isinstance(v, Tensor)), None)


def updates_of(metric: Any) -> UpdateCount:
    """Of a metric that `metrics_of` gave."""
    held = vars(metric)
    states = tuple(id(held.get(name)) for name in metric._defaults)
    return UpdateCount(int(metric._update_count), states)


def metrics_of(root: nn.Module | None) -> Iterable[tuple[str, Any]]:
    """The torchmetrics objects of a module, but for wrappers and what they wrap."""
    if root is None:
        return
    wrapped: tuple[str, ...] = ()
    for name, module in root.named_modules():
        if not is_metric(module) or (wrapped and name.startswith(wrapped)):
            continue
        if type(module).__module__.startswith("torchmetrics.wrappers"):
            wrapped += (name + ".",)
        elif (
            "_update_count" in vars(module)
            and "_defaults" in vars(module)
            and not _hands_on(module)
        ):
            yield name, module


def _hands_on(metric: Any) -> bool:
    """Whether a metric keeps nothing itself and hands its reset on: of two metrics a mean, say."""
    own = next((c for c in type(metric).__mro__ if "reset" in vars(c)), object)
    return not metric._defaults and own.__name__ != "Metric"
