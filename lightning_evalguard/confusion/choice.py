"""Which of the pairs that a step shows is its answer: the rules, in the order in which they decide.

A step may show the same answer several times (a loss, a metric, the returned dict), and several
answers (two heads, a teacher's labels, a subset). What shows one answer is a `Question`; they are
never added up. One is chosen, by the first rule in `CHOICE_RULES` that tells it from the others.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lightning_evalguard.confusion.score_keys import names_score
from lightning_evalguard.confusion.stream import Stream

# kinds that tell least: whether they are a score, its value says
WEAK = ("comparison", "array")

_LOSS = re.compile(r"^(?:(?:val|valid|validation|test|eval)[_/.\- ]*)?loss$", re.I)


@dataclass
class Evidence:
    """What else a step says about its pairs.

    Attributes:
        logged: What it logged so far, by key: numbers, or metric objects by their names.
        samples: Of its batch.
        top_k: Whether the user asks for the k best, which labels do not tell.
    """

    logged: Mapping[str, float] = field(default_factory=dict)
    samples: int = 0
    top_k: bool = False


@dataclass
class Question:
    """What a step asks: the streams that show the same predictions and targets."""

    streams: list[Stream]

    def of(self, *kinds: str) -> list[Stream]:
        """The streams of these kinds."""
        return [stream for stream in self.streams if stream.kind in kinds]


def questions_of(
    streams: Sequence[Stream], same: Callable[[Stream, Stream], bool] | None = None
) -> list[Question]:
    """The streams of a step, those that show one answer together, in the order of the step."""
    same = same or _same
    questions: list[Question] = []
    for stream in streams:
        for question in questions:
            if any(same(stream, other) for other in question.streams):
                question.streams.append(stream)
                break
        else:
            questions.append(Question([stream]))
    return questions


def _same(one: Stream, other: Stream) -> bool:
    if (one.layout.task == "multilabel") != (other.layout.task == "multilabel"):
        return False
    return _equal(one.target, other.target) and _equal(one.preds, other.preds)


def _equal(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None or one.numel() != other.numel():
        return False
    return bool(torch.equal(one, other.to(one.device)))


class Unread:
    """Which of a step's streams show the same answer, compared on the device and not yet read.

    A read waits for the device, and the choice does not need it where `certain_of` makes it.
    """

    def __init__(self, streams: Sequence[Stream], chosen: Stream) -> None:
        self._streams = list(streams)
        self._chosen = chosen
        pairs = list(itertools.combinations(range(len(streams)), 2))
        self._flags = {(i, j): _is_same(streams[i], streams[j]) for i, j in pairs}

    def others(self) -> list[str]:
        """The answers that were not taken, in words: this is where the flags are read."""
        place = {id(stream): i for i, stream in enumerate(self._streams)}

        def same(stream: Stream, other: Stream) -> bool:
            i, j = sorted((place[id(stream)], place[id(other)]))
            return bool(self._flags[i, j])

        questions = questions_of(self._streams, same)
        return [q.streams[-1].said for q in questions if self._chosen not in q.streams]


def _is_same(one: Stream, other: Stream) -> Tensor | bool:
    """What `_same` says, without a wait."""
    if (one.layout.task == "multilabel") != (other.layout.task == "multilabel"):
        return False
    sides = (one.target, other.target), (one.preds, other.preds)
    same: Tensor | bool = True
    for a, b in sides:
        if a is None or b is None or a.numel() != b.numel():
            return False
        same = (a == b).all() & same
    return same


def certain_of(streams: Sequence[Stream], evidence: Evidence) -> Stream | None:
    """The stream that counts whatever the values are, so that none is read; None for none.

    It is the one returned pair, or the one metric where nothing is returned and no function
    judges. The rules and `counted_of` say the same of it; they would compare it with every other.
    """
    returned = [stream for stream in streams if stream.kind == "outputs"]
    judged = [stream for stream in streams if stream.kind in ("metric", "function")]
    first = returned or judged
    if (
        evidence.top_k
        or len(first) != 1
        or first[0].kind == "function"
        or not first[0].cuts
    ):
        return None
    (one,) = first
    tensors = [s.preds for s in streams] + [s.target for s in streams]
    is_part = any(
        s.kind in ("metric", "loss") and s.elements < one.elements for s in streams
    )
    has_other = any(s.kind == "loss" and s.elements != one.elements for s in streams)
    is_spread = len({t.device for t in tensors if t is not None}) > 1
    unclear = has_other
    if one.kind == "outputs":
        unclear = is_part
    if unclear or is_spread:
        return None
    return one


def is_stated(question: Question) -> bool:
    """Whether more than a comparison of labels shows it, or that they become arrays."""
    return any(stream.kind not in WEAK for stream in question.streams)


def is_cut_of(compared: Question, others: Sequence[Question]) -> bool:
    """Whether what is compared are scores that another question has, cut where it does not cut."""
    (one, *_) = compared.streams
    streams = itertools.chain.from_iterable(question.streams for question in others)
    scored = [s for s in streams if s.cuts and s.cut is not None]
    return any(
        _equal(one.target, s.target) and _is_cut(one.preds, s.cut) for s in scored
    )


def _is_cut(preds: Tensor | None, scores: Tensor | None) -> bool:
    if preds is None or scores is None or preds.numel() != scores.numel():
        return False
    above = preds.to(scores.device) > 0
    if not bool(above.any()) or bool(above.all()):
        return True
    return bool(scores[above].min() > scores[~above].max())


# --- the rules -----------------------------------------------------------------------------------


def _keeps_the_best(question: Question, evidence: Evidence) -> Any:
    """What the user asks for comes first: of the k best, labels say nothing."""
    return not evidence.top_k or any(stream.layout.top_k for stream in question.streams)


def _is_returned(question: Question, evidence: Evidence) -> Any:
    """A pair that the returned dict names."""
    return bool(question.of("outputs"))


def _is_agreed_on(question: Question, evidence: Evidence) -> Any:
    """Else the pair on which a loss and a metric agree."""
    judged = question.of("metric", "function")
    if question.of("loss"):
        return bool(judged or (question.of(*WEAK) and is_logged(question, evidence)))
    return bool(question.of("metric")) and len(judged) > 1


def _is_judged(question: Question, evidence: Evidence) -> Any:
    """Else the one of which a metric says what is right; a curve only ranks its scores."""
    return any(stream.judges and stream.cuts for stream in question.streams)


def is_logged(question: Question, evidence: Evidence) -> Any:
    """Else the one whose value the step logs as its score: for certain, where it compares."""
    scores = [v for k, v in evidence.logged.items() if names_score(k)]
    logged = [
        s for s in question.streams if any(_is_share(s.accuracy, b) for b in scores)
    ]
    if any(s.kind in WEAK for s in logged):
        return 2
    return len(logged[:1])


def _is_share(accuracy: float, score: float) -> bool:
    return _near(accuracy, score) or _near(100 * accuracy, score)


def _has_own_targets(question: Question, evidence: Evidence) -> Any:
    """Else the one whose targets stand in the batch: a teacher's labels are made in the step."""
    return any(stream.from_batch for stream in question.streams)


def _is_the_loss(question: Question, evidence: Evidence) -> Any:
    """Else the one whose loss is what the step logs or returns as its loss."""
    said = [v for k, v in evidence.logged.items() if _LOSS.match(k)]
    for stream in question.streams:
        if stream.is_returned:
            return True
        value = stream.value
        is_number = bool(said) and value is not None and value.numel() == 1
        if is_number and any(_near(float(value), logged) for logged in said):  # type: ignore[arg-type]
            return True
    return False


def _is_whole(question: Question, evidence: Evidence) -> Any:
    """Else the one of the most samples: a group's subset has fewer."""
    return max(stream.elements for stream in question.streams)


CHOICE_RULES: tuple[Callable[[Question, Evidence], Any], ...] = (
    _keeps_the_best,
    _is_returned,
    _is_agreed_on,
    _is_judged,
    is_logged,
    _has_own_targets,
    _is_the_loss,
    _is_whole,
)


def main_of(questions: Sequence[Question], evidence: Evidence) -> tuple[Question, bool]:
    """The question that the run counts, and whether a rule told it from all others.

    Where none does, it is the last one that the step asks.
    """
    if len(questions) == 1:
        return questions[0], True
    judged = [
        [rule(question, evidence) for rule in CHOICE_RULES] for question in questions
    ]
    best = max(judged)
    chosen = max(i for i, values in enumerate(judged) if values == best)
    return questions[chosen], judged.count(best) == 1


def counted_of(main: Question, others: Sequence[Question]) -> Stream:
    """The stream through which a question is counted.

    A metric counts what it scores; else the loss does; what is returned is counted where neither
    shows more of it. Where a loss or a metric is given a part of what is returned, chosen by a
    mask, the part is what counts.
    """
    returned = main.of("outputs")
    if returned:
        whole = returned[0]
        masked = []
        for question in others:
            judged = question.of("metric", "loss")
            smaller = [s for s in judged if s.elements < whole.elements]
            masked += [stream for stream in smaller if _fits(stream, whole)]
        if masked and len(main.streams) == 1:
            return masked[-1]
        return whole
    cutting = [stream for stream in main.streams if stream.cuts]
    metrics = [stream for stream in cutting if stream.kind == "metric"]
    with_scores = [m for m in metrics if m.layout.top_k] or metrics
    return (with_scores or main.of("loss") or cutting or main.streams)[0]


def _fits(one: Stream, other: Stream) -> bool:
    a = one.layout
    b = other.layout
    return a.task == b.task and (
        a.num_classes == b.num_classes or not (a.exact and b.exact)
    )


def _near(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-5, abs_tol=1e-6)
