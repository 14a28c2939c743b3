"""The numbers that the steps of one evaluation logged, returned and kept, and how they weigh."""

from __future__ import annotations

import dis
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from lightning_evalguard.checks.scores.heard import MOST_KEYS, LogCall
from lightning_evalguard.checks.scores.kept import KeptValues, Owner, Series, on_host
from lightning_evalguard.checks.scores.metrics import metrics_of
from lightning_evalguard.checks.scores.summaries import Numbers
from lightning_evalguard.confusion.by_batch import exactly
from lightning_evalguard.data.batches import tensors
from lightning_evalguard.data.loaders import Fact, Logged

_UNEVEN = 0.01  # of the weight must lie on the wrong samples before it is worth a line
_NONE: Iterator[int] = iter(())  # sizes where the loader says none
_SCALARS = 4  # numbers of a step's outputs that are followed
_OF_MEANS = {"f1": "F1Score", "precision": "Precision", "recall": "Recall"}


class Stale(NamedTuple):
    """A list that was not emptied: its name, how many items it held, and from which evaluation."""

    name: str
    held: int
    left: str


class Tally:
    """Follows one evaluation at a time."""

    def __init__(self) -> None:
        self._left: dict[str, str] = {}  # which evaluation left items in a list
        self.begin(())

    def begin(self, owners: Sequence[Owner]) -> None:
        """The first step of an evaluation is about to run.

        Args:
            owners: The module and the user's callbacks, see `Kept.begin`.
        """
        self._root = owners[0][1] if owners else None
        self._kept = KeptValues()
        self._kept.begin(owners)
        self._returned: dict[str, Series] = {}
        self._logged: dict[str, tuple[list[int], list[LogCall]]] = {}
        self.records: list[Logged] = []
        self.steps: list[int] = []  # the loader of each
        self._sizes: list[int | None] = []
        self._inferred: list[int | None] = []
        self._elements: list[int] = []  # of the first tensor of each batch
        self._skipped: list[int] = []
        self._active = 0
        self._activity: tuple[int, ...] = (0, 0, 0)
        self._numbers: list[Numbers] | None = None

    @property
    def loaders(self) -> int:
        """How many loaders gave a batch."""
        return len(set(self.steps))

    def before_step(self, batch: Any) -> None:
        """A step is about to run; hooks may have kept what belongs to the step before."""
        if self.steps and not self._kept.rests:
            self._kept.look(len(self.steps) - 1)
        first = None
        if type(batch) in (list, tuple) and batch:
            first = batch[0]
        if not isinstance(first, Tensor):
            first = next(iter(tensors(batch)), None)
        self._elements.append(first.numel() if first is not None else 0)

    def heard(self, heard: LogCall, step: int) -> None:
        """A step logged a value."""
        known = self._logged.get(heard.key)
        if known is None:
            if len(self._logged) == MOST_KEYS:
                return
            known = self._logged[heard.key] = [], []
        known[0].append(step)
        known[1].append(heard)

    def after_step(
        self,
        outputs: Any,
        loader: int,
        updates: int,
        calls: int,
        inferred: int | None,
    ) -> None:
        """A step returned.

        Args:
            outputs: What it returned; only its plain numbers are followed.
            loader: Whose batch it was.
            updates: Updates of metric objects so far.
            calls: Values logged so far.
            inferred: The batch size that `self.log` took from the batch, where it asked.
        """
        step, kept = len(self.steps), self._kept
        if not kept.rests:
            kept.look(step)
        self.steps.append(loader)
        self._inferred.append(inferred)
        activity = calls, updates, 0 if kept.rests else kept.came()
        if outputs is None and activity == self._activity:
            self._skipped.append(step)
        else:
            self._active += 1
        self._activity = activity
        if outputs is None:
            return
        for name, value in _scalars_of(outputs):
            series = self._returned.setdefault(name, Series(name))
            series.values.append(value.detach().clone())
            series.steps.append(step)

    def ended(
        self, records: Sequence[Logged], sizes: Mapping[int, Sequence[int]]
    ) -> None:
        """The last step is over, and nothing is reset yet.

        Args:
            records: What the steps logged.
            sizes: How many samples the batches of each loader have, where the loader says.
        """
        self.records = list(records)
        each = {loader: iter(of_loader) for loader, of_loader in sizes.items()}
        self._sizes = [next(each.get(of, _NONE), None) for of in self.steps]
        if self.steps:
            self._kept.look(len(self.steps) - 1, last=True)

    def leave(self, stage: str) -> None:
        """The evaluation is over: what still lies in lists was left by it."""
        for name, value in _lists_of(self._root):
            if value:
                self._left.setdefault(name, stage)
            else:
                self._left.pop(name, None)

    # what is asked for

    def numbers(self) -> list[Numbers]:
        """One number a step, from each place that gave one in each."""
        if self._numbers is None:
            logged = []
            for key, (steps, heard) in self._logged.items():
                values = [h.value for h in heard]
                if all(isinstance(value, Tensor) for value in values):
                    logged.append(Series(key, values, steps))
            known = [(s, True) for s in (*self._returned.values(), *logged)]
            known += [(s, self._is_by_batch(s)) for s in self._kept.series()]
            self._numbers = [n for s, by_batch in known for n in self._of(s, by_batch)]
        return list(self._numbers)

    def sizes_of(self, loader: int | None) -> list[int | None]:
        """How many samples each batch had, of one loader or of all."""
        pairs = zip(self._sizes, self.steps, strict=True)
        return [size for size, of in pairs if loader in (None, of)]

    def values_of(self, key: str) -> list[float]:
        """The numbers that the steps logged under a key; none where one was a metric object."""
        _, heard = self._logged.get(key, ([], []))
        if not all(isinstance(h.value, Tensor) for h in heard):
            return []
        return [float(value) for value in on_host([h.value for h in heard])]

    def keys_of(self, value: float, step: int) -> Iterator[tuple[str, int]]:
        """The keys under which a step logged a value, each with 1, or with -1 for its opposite."""
        if not math.isfinite(value) or abs(value) in (0.0, 0.5, 1.0):
            return
        for key, (steps, _) in self._logged.items():
            if steps.count(step) != 1:
                continue
            values = self.values_of(key)
            for sign in (1, -1):
                if values and exactly(values[steps.index(step)], sign * value):
                    yield key, sign

    def calls_of(self, key: str) -> tuple[list[int], list[float], list[int]]:
        """In which steps a key was logged, with which numbers, and how they were weighed."""
        steps, _ = self._logged.get(key, ([], []))
        return steps, self.values_of(key), self.weights_of(key)

    def weights_of(self, key: str) -> list[int]:
        """The batch sizes by which a key's values were weighed."""
        _, heard = self._logged.get(key, ([], []))
        return [h.size for h in heard if h.size is not None]

    def stale_lists(self) -> list[Stale]:
        """Lists that grew by what every step kept, and held items of before."""
        stale = []
        for name, (before, came) in self._kept.lists().items():
            grew = came >= len(self.steps)
            if grew and before and name in self._left:
                stale.append(Stale(name, before, self._left[name]))
        return stale

    def of_micro_metrics(self, name: str) -> bool:
        """Whether the module's metrics of that name average so that the mean by samples is exact.

        Micro averages of a multiclass metric are the accuracy, and so is the weighted recall.
        """
        kinds = [kind for word, kind in _OF_MEANS.items() if word in name.lower()]
        metrics = [
            m
            for _, m in metrics_of(self._root)
            if kinds and kinds[0] in type(m).__name__
        ]
        return bool(metrics) and all(_is_mean(m) for m in metrics)

    def weighs_by_samples(self, key: str) -> bool:
        """Whether the values of a key are weighed by the samples of their batches, one each."""
        steps, heard = self._logged.get(key, ([], []))
        return [h.size for h in heard] == [self._sizes[i] for i in steps]

    def of_weights(self, heard: LogCall, answers: Sequence[int]) -> Fact | None:
        """Whether the values of a key are weighed by something that is not their share.

        Args:
            heard: The key.
            answers: How many answers each batch counted, where that is known.
        """
        steps, _ = self._logged.get(heard.key, ([], []))
        weights = self.weights_of(heard.key)
        sizes = [self._sizes[i] for i in steps]
        if len(weights) < 2 or len(weights) != len(sizes) or None in sizes:
            return None
        samples = [s or 0 for s in sizes]
        inferred = [self._inferred[i] for i in steps] == weights
        constant = set(weights) in ({1}, {max(samples)})
        if not (inferred or constant) or _apart(weights, samples) < _UNEVEN:
            return None
        if len(set(steps)) < len(steps) and self._weighs_samples(steps, weights):
            return None  # one value a sample, in a loop over the batch
        counted = answers
        if len(answers) != len(weights):
            counted = ()
        if counted and _apart(weights, counted) < _UNEVEN:
            return None
        elements = [self._elements[i] for i in steps]
        by_sample = bool(counted) and _apart(counted, samples) < _UNEVEN
        if not by_sample and _apart(weights, elements) < _UNEVEN:
            # a mean over points, of which each batch has as many as it weighs
            return None
        if constant:
            fact = (
                f"is the plain mean of {len(weights)} batches' means, though batches have "
                f"{min(samples)} to {max(samples)} samples: small ones weigh too much"
            )
        else:
            fact = (
                f"self.log weighs a batch of {samples[0]} samples as {weights[0]}: it took dim 0 "
                "of the batch's first tensor for the samples"
            )
        return Fact(fact, "Pass batch_size=<number of samples> to self.log.", heard.key)

    def _weighs_samples(self, steps: Sequence[int], weights: Sequence[int]) -> bool:
        """Whether what a step logged of one key weighs as many as its batch has samples."""
        sums: dict[int, int] = {}
        for step, weight in zip(steps, weights, strict=True):
            sums[step] = sums.get(step, 0) + weight
        sizes = [self._sizes[step] or 0 for step in sums]
        return _apart(list(sums.values()), sizes) < _UNEVEN

    def facts(self, module_step: str | None) -> list[Fact]:
        """Batches that are in no score.

        Args:
            module_step: ``file:line`` of the step.
        """
        n = len(self.steps)
        if not self._skipped or self._active <= len(self._skipped):
            return []
        which = ", ".join(map(str, self._skipped[:3]))
        return [
            Fact(
                f"returned None and logged nothing for {len(self._skipped)} of {n} batches "
                f"(batch {which}{', ...' if len(self._skipped) > 3 else ''}), whose samples are "
                "in no score",
                "Fix or leave out those samples in the dataset.",
                location=module_step,
                certain=False,
            )
        ]

    def _of(self, series: Series, by_batch: bool) -> list[Numbers]:
        """A series as numbers: of all steps, or of those of one loader."""
        loaders = {self.steps[i] for i in series.steps if i < len(self.steps)}
        expected = [i for i, of in enumerate(self.steps) if of in loaders]
        if series.steps != expected:
            return []  # several numbers a step, or none in some
        sizes = [self._sizes[i] for i in expected]
        samples = [s or 0 for s in sizes] if None not in sizes else []
        values = on_host(series.values)
        stale = on_host(series.stale)
        return [Numbers(series.name, values, samples, (), stale, by_batch)]

    def _is_by_batch(self, series: Series) -> bool:
        """Whether each number that is kept is of its batch alone, not of all batches so far."""
        return series.grows or self._is_of_batch(series.name)

    def _is_of_batch(self, name: str) -> bool:
        """Whether the step's code writes an attribute from its batch alone."""
        if self._root is None or "." in name or "[" in name:
            return False
        kind = type(self._root)
        steps = [getattr(kind, step, None) for step in ("validation_step", "test_step")]
        read: set[str] = set()
        written: set[str] = set()
        for code in (getattr(step, "__code__", None) for step in steps):
            if code is None:
                continue
            read |= {const for const in code.co_consts if isinstance(const, str)}
            for at in dis.get_instructions(code):
                if at.opname in ("LOAD_ATTR", "LOAD_METHOD"):
                    read.add(str(at.argval))
                elif at.opname == "STORE_ATTR":
                    written.add(str(at.argval))
        moving = {
            s.name.partition("[")[0].partition(".")[0] for s in self._kept.series()
        }
        metrics = {metric.partition(".")[0] for metric, _ in metrics_of(self._root)}
        return name in written and name not in read and not read & (moving | metrics)


def _is_mean(metric: Any) -> bool:
    average = vars(metric).get("average")
    multiclass = type(metric).__name__.startswith("Multiclass")
    recall = "Recall" in type(metric).__name__
    return multiclass and (average == "micro" or (recall and average == "weighted"))


def _lists_of(root: nn.Module | None) -> list[tuple[str, list[Any]]]:
    if root is None:
        return []
    return [(k, v) for k, v in vars(root).items() if type(v) is list]


def _scalars_of(outputs: Any) -> Iterable[tuple[str, Tensor]]:
    held = outputs
    if not isinstance(outputs, dict):
        held = {"": outputs}
    numbers = [
        (str(name), value)
        for name, value in held.items()
        if isinstance(value, Tensor)
        and value.numel() == 1
        and value.is_floating_point()
    ]
    return numbers[:_SCALARS]


def _apart(weights: Sequence[int], others: Sequence[int]) -> float:
    """The share of the weight that lies elsewhere than by `others`."""
    total, of_others = sum(weights), sum(others)
    if not total or not of_others:
        return 1.0
    pairs = zip(weights, others, strict=True)
    return sum(abs(w / total - o / of_others) for w, o in pairs) / 2
