"""What each logged key claims, held against what was counted and against the steps' numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

from torch import Tensor

from lightning_evalguard.checks.scores.by_class import (
    Averaged,
    ClassWise,
    class_wise,
    is_a_score,
)
from lightning_evalguard.checks.scores.heard import LogCall
from lightning_evalguard.checks.scores.kept import on_host
from lightning_evalguard.checks.scores.logged import Tally
from lightning_evalguard.checks.scores.over_ranks import (
    OnRanks,
    mean_of_scores,
    of_one_rank,
)
from lightning_evalguard.checks.scores.summaries import (
    LOG_IT,
    WEIGH_IT,
    Numbers,
    by_chance,
    fact_of_summary,
    of_totals,
    over_all_samples,
    over_full_places,
    summary_of,
)
from lightning_evalguard.confusion.by_batch import (
    NO_MEANS,
    LoaderCounts,
    exactly,
    is_summary,
    mean_of,
    varies,
    ways_to_weigh,
)
from lightning_evalguard.confusion.differences import (
    CHECK_IT,
    OR,
    Claim,
    candidates,
    claim_of,
    close,
    fits,
    is_plainly,
    misread_as,
    shown_scores,
)
from lightning_evalguard.data.loaders import Fact
from lightning_evalguard.stages import spelling

# Scores of which the mean over batches is not the score, and that no matrix gives. By name, so
# never certain. Retrieval's ``recall@10`` is a mean over queries, Dice and IoU by custom one over
# images; of micro scores and weighted recall the mean by samples is exact.
NOT_A_MEAN = re.compile(
    r"(?:^|[_/.\- ])(f1|f_?beta|f1_?score|auroc|roc_?auc|auc|average_?precision|auprc|pr_?auc|mcc|"
    r"matthews\w*|kappa|cohen_?kappa|precision|recall(?!_?weighted)|balanced_?acc\w*|r2|r2_?score|"
    r"rmse|pearson\w*|spearman\w*|kendall\w*|perplexity|ppl)(?:_?(?:macro|weighted|score|epoch))*$",
    re.IGNORECASE,
)
_ACCURACY = Claim("accuracy", "", "")
_LOOKED_AT = 2  # evaluations in which every score is recomputed batch by batch
_LOG_EACH = "Log it in every step."
_REDUCED: dict[str, Callable[[list[float]], float]] = {
    "max": max,
    "min": min,
    "sum": math.fsum,
}
METRIC = "Log a torchmetrics object, or compute it once when the epoch ends."


class Claims:
    """Judges the logged values of one evaluation at a time."""

    def __init__(self) -> None:
        self.counted: dict[str, LoaderCounts] = {}
        # keys logged after the steps, made of nothing known
        self.unexplained: list[str] = []
        # lists of which the mean of all that they hold was logged
        self._stale: set[str] = set()
        self._tally = Tally()
        self._stage, self._ranks = "val", 1
        self._evaluations: dict[str, int] = {}
        # means that a first step took of its batch, and where such are kept
        self._means: list[float] = []
        self._of_means: set[str] = set()
        # means of evaluations before
        self._before: dict[str, dict[str, list[float]]] = {}

    def averaged(self, means: Sequence[Tensor]) -> None:
        """The first step of an evaluation took these means of its batch."""
        self._means = on_host(means)

    def begin(self, stage: str, tally: Tally, ranks: int = 1) -> None:
        """An evaluation by so many ranks begins; this one's numbers will stand in `tally`."""
        self._ranks = ranks
        self.counted, self.unexplained, self._stale = {}, [], set()
        self._tally, self._stage = tally, spelling(stage).key
        self._evaluations[stage] = self._evaluations.get(stage, 0) + 1
        self._closely = self._evaluations[stage] <= _LOOKED_AT

    def remember(self) -> None:
        """The evaluation is over: what would an old value look like in the next one?"""
        self._of_means |= {one.name for one in self._kept_means()}
        self._means = []
        known = self._before.setdefault(self._stage, {})
        for one in self._tally.numbers():
            if len(one.values) > 1 and not one.stale:
                ways = one.weights() or [[1.0] * len(one.values)]
                total = sum(ways[0])
                mean = sum(v * w for v, w in zip(one.values, ways[0], strict=True))
                if total:
                    known.setdefault(one.name, []).append(mean / total)

    def fact(self, heard: LogCall, value: float, in_steps: bool) -> Fact | None:
        """What is wrong with a logged value, if anything.

        Args:
            heard: How it was logged; of a value that the steps logged, the first time.
            value: What came of it.
            in_steps: Whether the steps logged it, and the loop averaged it.
        """
        own = value  # this rank's
        if heard.over_ranks and not in_steps:
            own = float(heard.value)
        verdict = self._of_name(heard, value, in_steps)
        if verdict == "right" and not in_steps:
            return None
        fact = None
        if isinstance(verdict, Fact):
            fact = verdict
        if fact is None and in_steps:
            fact = self._of_weights(heard)
        if fact is None and not in_steps:
            fact = self._of_numbers(heard, own)
        if fact is None and not heard.by_metric and claim_of(heard.name) is None:
            fact = self._of_no_name(heard, own) or self._of_ranks(
                heard, value, in_steps
            )
        if not fact:
            return None
        return fact._replace(location=fact.location or heard.location)

    def _of_ranks(self, heard: LogCall, value: float, in_steps: bool) -> Fact | None:
        counted = self._counted_of(heard)
        if in_steps or counted is None or not heard.over_ranks:
            return None
        return mean_of_scores(heard, value, counted, self._ranks)

    def is_right(self, heard: LogCall, value: float) -> bool:
        """Whether a value is a score of what was counted, as its key says."""
        claim = claim_of(heard.name)
        counted = self._counted_of(heard)
        if claim is None or counted is None or claim.stage not in ("", self._stage):
            return False
        if is_plainly(value, counted.result, claim):
            return True
        return bool(fits(value, candidates(counted.result, claim)))

    def is_mean_of_samples(self, heard: LogCall, value: float) -> bool:
        """Whether each rank logged the mean of its own samples, which the loop averaged then."""
        if not heard.over_ranks or self.is_right(heard, value):
            return False
        summary = summary_of(float(heard.value), heard.name, self._tally.numbers())
        return summary is not None and summary.kind == "honest"

    def class_wise(
        self, heard: LogCall, value: float, in_steps: bool
    ) -> ClassWise | None:
        """Whether a value is the mean of the batches' scores of one class, as none is."""
        if heard.by_metric or not self._closely:
            return None
        counted = self._counted_of(heard)
        steps, values, weights = (
            self._tally.calls_of(heard.key) if in_steps else ([], [], [])
        )
        if counted is None or in_steps != bool(values):
            return None
        logged = Averaged(heard.key, value, values, weights, steps, heard.location)
        samples = [size or 0 for size in self._tally.sizes_of(heard.loader)]
        return class_wise(logged, counted.batches, counted.result, samples)

    def may_hold(self, name: str) -> bool:
        """Whether what was logged may have been made of a list: of numbers, only where it was."""
        of_numbers = [n.name for n in self._tally.numbers() if n.name.startswith(name)]
        return not of_numbers or any(n in self._stale for n in of_numbers)

    def reason(
        self, heard: LogCall, key: str, score: str, theirs: float
    ) -> tuple[str, str]:
        """How a value came about that is logged under `score`, where that can be reproduced."""
        counted = self._counted_of(heard)
        claim = claim_of(score)
        if counted is None or claim is None or heard.by_metric:
            return "", ""
        series = counted.batches.series(claim)
        chosen = {n: v for n, v in series.items() if n == score} or series
        return self._how(heard, theirs, chosen, counted)

    # by the name

    def _of_name(
        self, heard: LogCall, value: float, in_steps: bool
    ) -> Fact | str | None:
        claim = claim_of(heard.name)
        if claim is not None and claim.stage not in ("", self._stage):
            return None
        counted = None
        if claim is not None:
            counted = self._counted_of(heard)
        if claim is None or counted is None:
            if not in_steps:
                return None
            return self._by_name_alone(heard)
        if is_plainly(value, counted.result, claim):
            return "right"
        return self._of_claim(heard, value, in_steps, claim, counted)

    def _of_claim(
        self,
        heard: LogCall,
        value: float,
        in_steps: bool,
        claim: Claim,
        counted: LoaderCounts,
    ) -> Fact | str | None:
        """What a value is that claims to be a score, where it is not the plainest."""
        result = counted.result
        named = candidates(result, claim)
        if not named or not result.total:
            return None
        if fits(value, named):
            return "right"
        how = misread_as(result.misread, named, value)
        if how is not None and (how.rounds or how.told):
            return "right"
        given = shown_scores(named, claim)
        said = f"is {value:.4f}; the {result.total:,} answers counted give {given}"
        if how is not None:
            fix = how.remedy or f"Give it `logits.sigmoid()`, {OR}"
            return Fact(f"{said}; {how.how}", fix, heard.key, certain=False)
        why, remedy = "", ""
        if in_steps:
            why, remedy = self._of_calls(heard, value, counted)
        if not why and self._ranks > 1:
            logged = OnRanks(heard, value, in_steps, self._ranks, result.total)
            why, remedy = of_one_rank(logged, claim, counted.batches, named)
        if not why and not heard.by_metric:
            why, remedy = self._how(
                heard, value, counted.batches.series(claim), counted
            )
        if why:
            return Fact(f"{said}; {why}", remedy, heard.key, certain=False)
        if result.task == "multilabel" or result.problems():
            # scores of whole samples, or of other samples, are not in the matrix
            return None
        if not in_steps:
            self.unexplained.append(heard.key)
        remedy = CHECK_IT
        if result.task == "binary":
            remedy = (
                "Pass ConfusionMetrics(threshold=...) where it is cut at a threshold of its own, "
                f"{OR}"
            )
        return Fact(said, remedy, heard.key, certain=False)

    def _counted_of(self, heard: LogCall) -> LoaderCounts | None:
        """What was counted of the samples that a key speaks of, where that is known."""
        if heard.loader is not None:
            suffix = ""
            if heard.loader:
                suffix = f"/dataloader_idx_{heard.loader}"
            if heard.key == heard.name:
                return None
            return self.counted.get(f"{self._stage}{suffix}")
        if len(self.counted) != 1 or self._tally.loaders > 1:
            return None
        return self.counted.get(self._stage)

    def _of_calls(
        self, heard: LogCall, value: float, counted: LoaderCounts
    ) -> tuple[str, str]:
        """Whether a value is no mean of every batch by the way in which it is logged."""
        values = self._tally.values_of(heard.key)
        n = len(counted.batches.totals())
        if not values:
            return "", ""
        if heard.reduction:
            made = _REDUCED[heard.reduction](values)
            if not exactly(value, made):
                return "", ""
            which = f'`reduce_fx="{heard.reduction}"` makes it the {heard.reduction}'
            return f"{which} of {len(values)} batches' values", METRIC
        weights = self._tally.weights_of(heard.key)
        if len(weights) != len(values) or len(values) >= n:
            return "", ""
        if not exactly(value, mean_of(values, weights)):
            return "", ""
        return f"it is logged in {len(values)} of {n} batches", _LOG_EACH

    def _how(
        self,
        heard: LogCall,
        value: float,
        series: dict[str, list[float]],
        counted: LoaderCounts,
    ) -> tuple[str, str]:
        """Which summary of the batches' scores a value is, in words, and the fix."""
        n = len(counted.batches.totals())
        sizes = [float(s) for s in self._tally.sizes_of(heard.loader) if s is not None]
        weighed = [float(s) for s in self._tally.weights_of(heard.key)]
        answers = [float(a) for a in counted.batches.totals()]
        name, kind = is_summary(
            value, series, ways_to_weigh(n, weighed, sizes, answers)
        )
        if kind == "mean":
            how = f"it is the mean of {n} batches' {name}"
            uneven = len(set(answers)) > 1
            if name in ("accuracy", "hamming_accuracy") and uneven:
                spread = f"{min(answers):.0f} to {max(answers):.0f}"
                return (
                    f"{how}, though batches have {spread} answers: small ones weigh too much",
                    WEIGH_IT,
                )
            return how, METRIC
        if kind:
            return f"it is the {kind} batch's {name}, of {n} batches", LOG_IT
        return "", ""

    def _by_name_alone(self, heard: LogCall) -> Fact | None:
        updates = len(self._tally.weights_of(heard.key))
        if heard.by_metric or heard.size is None or updates < 2:
            return None
        if not NOT_A_MEAN.search(heard.name) or self._tally.of_micro_metrics(
            heard.name
        ):
            return None
        return Fact(
            f"is the mean of {updates} batches' values, not the score of all samples",
            METRIC,
            heard.key,
            certain=False,
        )

    # by how it is weighed

    def _of_weights(self, heard: LogCall) -> Fact | None:
        if heard.by_metric or heard.size is None:
            return None
        if self._tally.weighs_by_samples(heard.key):
            return None
        counted = self._counted_of(heard)
        answers: Sequence[int] = counted.batches.totals() if counted is not None else ()
        return self._tally.of_weights(heard, answers)

    # by the steps' numbers

    def _of_numbers(self, heard: LogCall, value: float) -> Fact | None:
        if any(is_a_score(value, counted.result) for counted in self.counted.values()):
            return None  # of one class, say
        numbers = self._tally.numbers()
        known = {
            key: c
            for key, c in self.counted.items()
            if self._closely or claim_of(heard.name)
        }
        for counted in known.values():
            numbers += _by_batch(counted)
        summary = summary_of(value, heard.name, numbers) or of_totals(
            value, heard.name, self._tally.numbers()
        )
        if summary is None:
            fact = (
                over_all_samples(self._kept_means(), value, heard.key)
                or over_full_places(self._tally.numbers(), value, heard.key)
                or self._of_before(heard, value)
            )
            if fact is None and math.isfinite(value) and value != round(value):
                self.unexplained.append(heard.key)
            return fact
        if summary.kind == "stale mean":
            self.unexplained.append(heard.key)  # the list is what is reported
            self._stale.add(summary.of.name)
        if summary.kind == "honest":
            return None
        return fact_of_summary(summary, heard.key)

    def _kept_means(self) -> list[Numbers]:
        """Numbers of which each is, or adds, the mean of its batch."""
        kept = []
        for one in self._tally.numbers():
            first = one.values[0] if one.values else math.nan
            known = one.name in self._of_means
            if known or any(exactly(first, mean) for mean in self._means):
                kept.append(one)
        return kept

    def _of_before(self, heard: LogCall, value: float) -> Fact | None:
        """Whether a value is what the evaluation before would have given."""
        now = {one.name for one in self._tally.numbers()}
        for name, means in self._before.get(self._stage, {}).items():
            best = means and value in (max(means), min(means))
            if name in now and means and exactly(value, means[-1]) and not best:
                return Fact(
                    f"is the mean of what `{name}` held of the evaluation before, expected this "
                    "one's",
                    "Compute it after the last step, from what the steps of this evaluation kept.",
                    heard.key,
                    certain=False,
                )
        return None

    def _of_no_name(self, heard: LogCall, value: float) -> Fact | None:
        """Whether a value is a mean of a score that is not a mean, whatever its key says."""
        counted = self._counted_of(heard)
        if counted is None or not self._closely or by_chance(value):
            return None
        if not -1 <= value <= 1:
            return None  # as no mean of scores is
        if is_a_score(value, counted.result):
            return None
        answers = counted.batches.totals()
        n = len(answers)
        if n < 2 or by_chance(value, answers):
            return None
        for claim in NO_MEANS:
            named = candidates(counted.result, claim)
            if fits(value, named):
                return None
        accuracies = counted.batches.series(_ACCURACY)
        if self._how(heard, value, accuracies, counted)[0]:
            return None  # whose mean it is as well
        for claim in NO_MEANS:
            if claim.family == "accuracy":
                continue
            series = counted.batches.series(claim)
            apart = {k: v for k, v in series.items() if varies(v) and "micro" not in k}
            why, remedy = self._how(heard, value, apart, counted)
            name = why.rpartition("batches' ")[2]
            if why.startswith("it is the mean") and name in apart:
                right = candidates(counted.result, claim).get(name)
                if right is None or close(right, value):
                    continue
                return Fact(
                    f"is {value:.4f}, the mean of {n} batches' {name}; the "
                    f"{counted.result.total:,} answers counted give {right:.4f}",
                    remedy,
                    heard.key,
                    certain=False,
                )
        return None


def _by_batch(counted: LoaderCounts) -> list[Numbers]:
    """The plain scores of each batch, which the steps may have computed for themselves."""
    answers = counted.batches.totals()
    made = []
    for family in ("accuracy", "f1", "precision", "recall"):
        series = counted.batches.series(Claim(family, "", ""))
        chosen = [n for n in (family, f"{family}_macro") if n in series]
        made += [
            Numbers(f"batches' {n}", series[n], answers, answers, by_batch=True)
            for n in chosen
        ]
    return made
