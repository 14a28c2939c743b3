"""What the loaders of an evaluation say of themselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from lightning_evalguard.checks.data.appearance import (
    Appearance,
    difference_in_looks,
    difference_in_numbers,
)
from lightning_evalguard.checks.data.shifted import is_trend
from lightning_evalguard.data import loaders as _loaders
from lightning_evalguard.data.loaders import Evaluated, Fact
from lightning_evalguard.data.samples import Sketch, spread

_READS = 16  # samples read twice
RENUMBER = "Give both sets one numbering of the classes, made from the training set."


@dataclass
class EvaluatedSet:
    """One loader of one stage, over all evaluations of a run."""

    loader: Any
    name: str
    order: _loaders.Order
    location: str | None
    kind: str
    places: list[int] = field(default_factory=list)  # samples to read twice
    varies: bool = False  # already reported: other samples or another order each time
    known: list[Sketch] = field(default_factory=list)
    sketches: list[Sketch] = field(default_factory=list)
    batches: int = 0
    gave: int = 0  # batches, at most, in one evaluation
    appearance: Appearance = field(default_factory=Appearance)
    reads: int | None = None  # samples that could be read at first
    hashes: Tensor | None = None  # of its samples, as steps got them, on the host
    index: int = 0  # among the loaders of its stage

    def fact(self, fact: str, remedy: str, certain: bool = True) -> Fact:
        """A fact about this set."""
        return Fact(fact, remedy, self.name, self.kind, self.location, certain)


def set_of(loader: Any, stage: str, i: int, n: int) -> EvaluatedSet:
    """The `i`-th of `n` loaders of a stage, before its first evaluation."""
    dataset = getattr(loader, "dataset", loader)
    order = _loaders.order(loader)
    one = EvaluatedSet(
        loader,
        f"{stage}_dataloader[{i}]" if n > 1 else f"{stage}_dataloader",
        order,
        _loaders.dataset_source(dataset),
        type(dataset).__name__,
        index=i,
    )
    length = _loaders.length(dataset) or 0
    if length and not workers(loader) and order in ("fixed", "shuffled"):
        # First the ends and the middle: pop() takes from the end.
        inner = [spread(k, length) for k in range(min(_READS, length))]
        one.places = [*reversed(inner), length - 1, 0]
        sampler = _loaders.sampler_of(loader)
        if hasattr(sampler, "indices"):
            picked = list(sampler.indices)
            one.places = [int(picked[p % len(picked)]) for p in one.places if picked]
    return one


def workers(loader: Any) -> int:
    """How many processes read its samples; 0 for this one."""
    return int(getattr(loader, "num_workers", 0) or 0)


def plain_facts(one: EvaluatedSet, evaluated: Evaluated) -> Iterator[Fact]:
    """What a loader says of itself."""
    lost, of = _loaders.dropped(one.loader)
    batches = _loaders.length(one.loader)
    keyword, value = evaluated.setting or ("", 1.0)
    taken = value
    if not isinstance(value, int):
        taken = int(value * (batches or 0))
    cut = bool(keyword and batches and taken < batches and not evaluated.debugging)
    sampler = type(_loaders.sampler_of(one.loader)).__name__
    if one.order == "drawn":
        yield one.fact(
            f"{sampler} draws other samples for each evaluation, expected the same each time",
            "Evaluate all samples in order: leave out the sampler.",
        )
    elif one.order == "shuffled" and (cut or lost):
        why = "drop_last=True"
        if not lost:
            why = f"{keyword}={value:g}"
        yield one.fact(
            f"{sampler} with {why} leaves out other samples in each evaluation, expected the same "
            "each time",
            "Pass shuffle=False, or `Subset(dataset, indices)` instead of a sampler.",
        )
    elif (
        one.order == "shuffled"
        and evaluated.order_matters
        and sampler != "SeedableRandomSampler"
    ):
        # accelerate's has a generator of its own, and gives each sample once
        yield one.fact(
            f"{sampler} gives the samples in another order each time, and draws from the "
            "generators that training draws from",
            "Pass shuffle=False, or `Subset(dataset, indices)` instead of a sampler.",
            certain=False,
        )
    if lost and one.order not in ("drawn", "shuffled"):
        yield one.fact(
            f"drop_last=True leaves out the last {lost} of {of} samples, expected all of them",
            "Pass drop_last=False.",
        )
    if cut and isinstance(value, float) and one.order != "shuffled":
        yield one.fact(
            f"{keyword}={value:g} evaluates {taken} of {batches} batches, expected all of them",
            f"Pass {keyword}=1.0.",
            certain=False,
        )
    twice, of, ranks = _loaders.repeated(one.loader)
    if twice * 1000 >= of > 0:
        yield one.fact(
            f"DistributedSampler repeats {twice} of {of} samples so that each of {ranks} ranks has "
            "as many: means of self.log count them twice",
            "Take the scores of the confusion matrix, which counts each once, or evaluate on one "
            "device.",
            certain=False,
        )


def looks_other(
    one: EvaluatedSet, training: Appearance, parts: Sequence[_loaders.Part]
) -> list[Fact]:
    """How the batches of a set look otherwise than training's, of which `parts` are known."""
    numbers = difference_in_numbers(one.appearance, training)
    if numbers:
        return [one.fact(numbers, RENUMBER, certain=False)]
    said = difference_in_looks(one.appearance, training)
    if said and is_trend(_loaders.parts(one.loader), parts):
        said = difference_in_looks(one.appearance, training, values=False)
    if not said:
        return []
    remedy = "Give both sets the same preprocessing, except for training's random augmentation."
    return [one.fact(said, remedy, certain=False)]


def combined(evaluated: Evaluated, name: str) -> Iterator[Fact]:
    """Several loaders that run side by side."""
    batches = [_loaders.length(loader) for loader in evaluated.loaders]
    known = [b for b in batches if b is not None]
    if len(known) < 2 or evaluated.mode not in ("min_size", "max_size_cycle"):
        return
    least, most = min(known), max(known)
    if least == most or evaluated.debugging:
        return
    if evaluated.mode == "min_size":
        fact = f"mode 'min_size' stops after {least} batches and leaves out the rest of {most}"
    else:
        fact = f"mode 'max_size_cycle' repeats a loader of {least} batches until {most} are done"
    yield Fact(
        f"{fact}, expected each sample once",
        "Pass the loaders as a list, or mode='max_size'.",
        name,
        "CombinedLoader",
    )


def broken_off(ended_at: int, evaluated: Evaluated | None, where: str | None) -> Fact:
    """A step raised what its loop takes for the end of the data.

    Args:
        ended_at: How many batches ran.
        evaluated: What was to be evaluated.
        where: The line.
    """
    expected = ""
    if evaluated is not None and (total := sum(evaluated.limits)) < float("inf"):
        expected = f" of {int(total)}"
    return Fact(
        f"the step raised StopIteration, which ended the evaluation after {ended_at}{expected} "
        "batches without a word",
        "Catch it in the step: give `next()` a default, or loop over `itertools.cycle`.",
        location=where,
    )


def listed_places(places: Sequence[int]) -> str:
    """``samples 1, 2, 3, ...`` for the first few of some places."""
    few = ", ".join(map(str, places[:3])) + (", ..." if len(places) > 3 else "")
    if len(places) == 1:
        return f"sample {few}"
    return f"samples {few}"
