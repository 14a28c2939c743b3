"""The first step is over: one of its streams is taken, by the rules in `choice`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from lightning_evalguard.confusion.choice import (
    WEAK,
    Evidence,
    Question,
    Unread,
    certain_of,
    counted_of,
    is_cut_of,
    is_logged,
    is_stated,
    main_of,
    questions_of,
)
from lightning_evalguard.confusion.config import ConfusionMetrics
from lightning_evalguard.confusion.loader import LoaderCount
from lightning_evalguard.confusion.parts import (
    Choosers,
    is_all_that_counts,
    is_beaten,
    unexplained,
)
from lightning_evalguard.confusion.stream import Stream
from lightning_evalguard.confusion.words import ambiguous, only_a_part, swapped_order


def choose(
    entry: LoaderCount,
    config: ConfusionMetrics,
    logged: Callable[[], Mapping[str, float]],
) -> None:
    """The first batch is over: one of its streams counts from now on."""
    streams = [s for s in _the_right_way_round(entry) if not s.is_changed]
    stated = [s for s in streams if s.kind not in WEAK]
    evidence = Evidence(samples=entry.samples, top_k=bool(config.top_k))
    certain = certain_of(stated, evidence)
    if certain is not None:
        if len(stated) > 1:
            entry.others = Unread(stated, certain).others
        _take(entry, certain)
        return
    questions = questions_of(streams)
    if len(questions) > 1 or not stated:
        evidence.logged = logged()
    if stated:  # labels that were compared tell least
        shown = [question for question in questions if is_stated(question)]
        questions = [
            q for q in questions if q in shown or _is_the_score(q, shown, evidence)
        ]
    parts = unexplained(questions, entry.choosers)
    beaten = [part for part, whole in parts if is_beaten(part, whole)]
    main, is_clear = main_of([q for q in questions if q not in beaten], evidence)
    others = [question for question in questions if question is not main]
    chosen = counted_of(main, [q for q in others if q not in beaten])
    if chosen.kind != "outputs":
        entry.excluded |= {s.kind for s in streams if s.kind == "outputs"}
    said = [q.streams[-1].said for q in others if chosen not in q.streams]
    wholes = [w for part, w in parts if part is main and is_all_that_counts(w)]
    if wholes and not main.of("outputs"):
        entry.warnings.append(only_a_part(entry.key, chosen, wholes[0].streams[-1]))
    elif not (is_clear or chosen.is_array):
        counted = _numbered(chosen, main, questions)
        entry.warnings.append(ambiguous(entry.key, counted, said))
    elif said:
        chosen.said += _not_from(said)
    entry.unverified = chosen.is_array and not is_logged(main, evidence)
    _take(entry, chosen)


def _numbered(chosen: Stream, main: Question, questions: Sequence[Question]) -> str:
    """What is counted, in words; of several calls at one line, which one."""
    alike = [q for q in questions if any(s.said == chosen.said for s in q.streams)]
    if len(alike) < 2:
        return chosen.said
    return f"call {1 + alike.index(main)} of {len(alike)} of {chosen.said}"


def _is_the_score(
    compared: Question, others: Sequence[Question], evidence: Evidence
) -> bool:
    """Whether what is compared is what is logged as the score, and an answer of its own."""
    return bool(is_logged(compared, evidence)) and not is_cut_of(compared, others)


def name_others(entry: LoaderCount) -> None:
    """The evaluation is over, its counts are read anyway: say what else the step showed."""
    ask, entry.others = entry.others, None
    others = ask() if ask is not None else []
    if others and entry.chosen is not None:
        entry.chosen.said += _not_from(others)


def _take(entry: LoaderCount, chosen: Stream) -> None:
    """This stream counts from now on."""
    if entry.keeps_scores and chosen.cut is not None and chosen.target is not None:
        entry.keep_scores(chosen, chosen.cut, chosen.target)
    for stream in entry.streams:
        stream.forget_step()
    entry.chosen, entry.streams = chosen, []
    entry.strides.clear()
    entry.choosers = Choosers()
    entry.counted = bool(chosen.samples)


def _not_from(said: Sequence[str]) -> str:
    return f" (not from {', '.join(dict.fromkeys(said))})"


def _the_right_way_round(entry: LoaderCount) -> list[Stream]:
    """The streams of the first step without those that another one shows to be turned round."""
    turned = [
        s for s in entry.streams if any(_is_turned(s, other) for other in entry.streams)
    ]
    for stream in entry.streams:
        if stream.is_ordered and (stream.swapped or stream in turned):
            entry.reported.add("turned round")
            entry.found.append(swapped_order(entry, stream))
    return [s for s in entry.streams if s not in turned]


def _is_turned(one: Stream, other: Stream) -> bool:
    """Whether `one` takes for predictions what `other` takes for targets, and the reverse."""
    if one is other or one.from_batch:
        return False
    if not (other.from_batch or (other.kind == "loss" and one.kind != "loss")):
        return False
    if (
        one.preds is None
        or one.target is None
        or other.preds is None
        or other.target is None
    ):
        return False
    if one.preds.numel() != other.preds.numel():
        return False
    crossed = torch.equal(one.preds, other.target) and torch.equal(
        one.target, other.preds
    )
    return crossed and not torch.equal(one.preds, one.target)
