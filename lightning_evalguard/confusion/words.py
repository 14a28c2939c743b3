"""What a recorder reports of an evaluation: notes, warnings and findings of the `scores` check."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from lightning_evalguard.confusion.by_batch import Batches
from lightning_evalguard.confusion.layout import ROOM, Layout
from lightning_evalguard.confusion.loader import LoaderCount
from lightning_evalguard.confusion.result import ConfusionResult
from lightning_evalguard.confusion.score_keys import names_score
from lightning_evalguard.confusion.sources import Pair
from lightning_evalguard.confusion.stream import Stream
from lightning_evalguard.report import Finding

_RETURN = 'Return {"preds": ..., "target": ...}, or pass ConfusionMetrics(source=...)'
_STAGES = {"val": "validate", "test": "test"}


@dataclass
class Recorded:
    """What one evaluation gave.

    Attributes:
        results: By stage and loader: ``"val"``, ``"val/dataloader_idx_1"``, ...
        notes: Sentences for the report: what was inferred, or why there is no matrix.
        warnings: Sentences that the user should see.
        findings: Of the `scores` check.
        batches: What each batch of a result counted, on one process alone.
    """

    results: dict[str, ConfusionResult] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    batches: dict[str, Batches] = field(default_factory=dict)


# --- findings ------------------------------------------------------------------------------------


def sigmoid_twice(entry: LoaderCount, pair: Pair) -> Finding:
    """A loss that applies a sigmoid is given what came out of one."""
    return _finding(
        entry,
        "`binary_cross_entropy_with_logits` is given probabilities, expected logits: the sigmoid "
        "stands twice; predictions are counted as positive above a probability of 0.5",
        "Give it the logits, or call `F.binary_cross_entropy`.",
        location=pair.location,
        certain=True,
    )


def softmax_twice(entry: LoaderCount, pair: Pair) -> Finding:
    """A loss of logits, or of their logarithms, is given what came out of a softmax."""
    if "nll_loss" in pair.source:
        fact = "`nll_loss` is given probabilities, expected their logarithms"
        remedy = "Give it `F.log_softmax(logits, 1)`, or call `F.cross_entropy` with the logits."
    else:
        fact = "`cross_entropy` is given probabilities, expected logits: the softmax stands twice"
        remedy = "Give it the logits, or call `F.nll_loss` with the logarithms."
    return _finding(entry, fact, remedy, location=pair.location, certain=True)


def swapped_order(entry: LoaderCount, stream: Stream) -> Finding:
    """A metric is given ``(target, preds)``."""
    return _finding(
        entry,
        f"{stream.said} is given (target, preds), expected (preds, target); the confusion matrix "
        "counts them the right way round",
        "Swap the two arguments.",
        subject=next(iter(stream.names)) if stream.kind == "metric" else None,
        location=stream.location,
        certain=True,
    )


def changed_in_place(entry: LoaderCount, stream: Stream, earlier: Stream) -> Finding:
    """What a step returns is not what its loss or metric was given."""
    return _finding(
        entry,
        f"{stream.said} were changed in place after {earlier.said} was given them; counted is what "
        "that was given",
        "Return a copy that is made before the change: `.clone()`.",
        location=earlier.location,
    )


def overwritten(entry: LoaderCount, stream: Stream, which: str) -> Finding:
    """What a step returns was written over in the step."""
    what = "scores, the same for every class,"
    if which == "target":
        what = "the target of the batch"
    return _finding(
        entry,
        f"{stream.said} are counted, but {what} were written in place in the step: they may differ "
        "from what it answered",
        "Return a copy that is made before the change: `.clone()`.",
        subject=f"{entry.key} confusion matrix",
    )


def count_not_closed(entry: LoaderCount, given: int, left_out: int) -> Finding:
    """Samples that the loader gave are not in the matrix."""
    unit = "batches"
    if entry.samples:
        unit = "samples"
    first = "elsewhere"
    if entry.first is not None:
        first = f"batch {entry.first[0]}: {entry.first[1]}"
    return _finding(
        entry,
        f"counts {given - left_out:,} of the {given:,} {unit} that the loader gave; left out are "
        f"{left_out:,}, first in {first}",
        'Return {"preds": ..., "target": ...} from every step.',
        subject=f"{entry.key} confusion matrix",
    )


def _finding(
    entry: LoaderCount,
    fact: str,
    remedy: str,
    subject: str | None = None,
    location: str | None = None,
    certain: bool = False,
) -> Finding:
    return Finding(
        check="scores",
        stage=_STAGES.get(entry.key.split("/")[0], "validate"),
        fact=fact,
        remedy=remedy,
        subject=subject,
        location=location,
        leads="subject" if location is None else "location",
        certain=certain,
    )


def ambiguous(key: str, counted: str, others: Sequence[str]) -> str:
    """Several answers stand in a step, and nothing tells which one is meant."""
    rest = [other for other in dict.fromkeys(others) if not counted.endswith(other)]
    instead = ""
    if rest:
        instead = f", not {', '.join(rest)}"
    return (
        f"{key}: the step has several answers; {counted} is counted{instead}. "
        'Return {"preds": ..., "target": ...} of the one to count'
    )


def only_a_part(key: str, counted: Stream, whole: Stream) -> str:
    """What is scored is a part of what the loss is given, and nothing of the batch chose it."""
    return (
        f"{key}: {counted.said} is counted, with {counted.elements:,} of the "
        f"{whole.elements:,} answers that {whole.said} is given in the first batch. "
        'Return {"preds": ..., "target": ...} of the ones to count'
    )


# --- notes and warnings --------------------------------------------------------------------------


def report(entry: LoaderCount, result: ConfusionResult, recorded: Recorded) -> None:
    """Say what there is to say of a matrix, each thing once a run."""
    layout = entry.layout
    assert layout is not None
    recorded.warnings += entry.warnings
    recorded.findings += entry.found
    entry.warnings, entry.found = [], []
    if "source" not in entry.reported:
        entry.reported.add("source")
        recorded.notes.append(f"{entry.key}: {_inferred(result, layout)}")
    if layout.preds_are == "unknown" and result.total:
        entry.in_doubt = True
    elif entry.in_doubt and result.preds_are == "logits":
        entry.in_doubt = False
        recorded.warnings.append(
            f"{entry.key}: the outputs are logits, for some lie outside [0, 1]; until now none "
            "did, so earlier scores took them for probabilities. "
            'Pass ConfusionMetrics(preds_are="logits")'
        )
    if entry.left_out and _first(entry, "count"):
        recorded.findings.append(count_not_closed(entry, entry.given, entry.left_out))
    elif not result.total and _first(entry, "empty"):
        recorded.warnings.append(
            f"{entry.key}: no sample was counted, so every score is NaN"
        )
    if (problems := result.problems()) and _first(entry, "left out"):
        recorded.warnings.append(_left_out(entry, layout, result, problems))
    if entry.dropped and _first(entry, "dropped"):
        recorded.notes.append(
            f"{entry.key}: left out of each evaluation are {entry.dropped}"
        )
    if entry.partly and _first(entry, "partly"):
        recorded.notes.append(
            f"{entry.key}: {entry.partly:,} of {entry.given:,} samples are in no score, because "
            f"the step selects before {result.source}"
        )
    if entry.untrimmed and _first(entry, "untrimmed"):
        recorded.notes.append(
            f"{entry.key}: {entry.untrimmed:,} of the samples counted are DistributedSampler's "
            "repetitions, because dim 0 of the target is not the batch"
        )


def _first(entry: LoaderCount, what: str) -> bool:
    """Whether this is said for the first time."""
    if what in entry.reported:
        return False
    entry.reported.add(what)
    return True


def _left_out(
    entry: LoaderCount, layout: Layout, result: ConfusionResult, problems: Sequence[str]
) -> str:
    text = f"{entry.key}: left out of the confusion matrix: {'; '.join(problems)}"
    if not layout.exact and (result.out_of_range or result.unusable_preds):
        text += f". Labels tell up to {ROOM} classes: pass ConfusionMetrics(num_classes=...)"
    return text


def report_nothing(
    entry: LoaderCount,
    recorded: Recorded,
    explicit: bool,
    logged: Callable[[], Mapping[str, float]],
) -> None:
    """Say once why there is no matrix, and what to write; to the report alone where none is due."""
    if not entry.batches or not _first(entry, "nothing"):
        return
    why = entry.failed or entry.trouble
    why = why or f"the step returned {entry.saw or 'nothing that is asked for'}"
    seen = ""
    if entry.refused:
        seen = f" and called {'; '.join(dict.fromkeys(entry.refused))}"
    text = f"{entry.key}: no confusion matrix, because {why}{seen}. {_RETURN}"
    scored = entry.labelled and any(names_score(key) for key in logged())
    scored |= entry.uses_labels and not entry.kinds
    is_due = explicit or (scored and not entry.refused and not entry.failed)
    (recorded.warnings if is_due else recorded.notes).append(text)


def _inferred(result: ConfusionResult, layout: Layout) -> str:
    what = "classes"
    if result.task == "multilabel":
        what = "labels"
    said = [f"{result.task}, {result.num_classes:,} {what}, from {result.source}"]
    if result.task != "multiclass" and result.preds_are != "labels":
        said.append(f"{result.preds_are} cut at probability {layout.threshold:g}")
    if result.ignored:
        said.append(f"targets of {layout.ignore_index} ignored")
    return "; ".join(said)
