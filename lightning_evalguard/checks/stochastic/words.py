"""The findings of the `stochastic` check in words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch

from lightning_evalguard.checks.check import Moment
from lightning_evalguard.checks.stochastic.draws import Draw
from lightning_evalguard.instruments.source import Site
from lightning_evalguard.model.attributes import BEFORE_TRACING
from lightning_evalguard.report import Finding


def findings_of(now: Moment, draws: Iterable[Draw]) -> Iterator[Finding]:
    """One finding for each place that drew."""
    groups: dict[tuple[Any, ...], list[Draw]] = {}
    for draw in draws:
        location = draw.site.location if draw.site is not None else draw.subject
        groups.setdefault(
            (location, draw.module, draw.remedy, draw.dropout), []
        ).append(draw)
    for group in groups.values():
        first = replace(group[0], subject=_common([d.subject for d in group]))
        fact = f"{_said(first)} drew random numbers in eval mode"
        yield _of_draw(now, first, fact, _remedy(first), first.dropout, len(group))


def _remedy(draw: Draw) -> str:
    said = ""
    if draw.site is not None:
        said = draw.site.expression
    if draw.remedy or not draw.dropout:
        return draw.remedy or DRAW_IN_TRAINING
    if issubclass(draw.module, torch.jit.ScriptModule):
        return BEFORE_TRACING
    if issubclass(draw.module, torch.fx.GraphModule):
        return "Call `.eval()` on the model before it is traced."
    if draw.site is not None and draw.site.owner != "user":
        return (
            f"Set the dropout rate of {draw.site.owner}'s module to 0 for evaluation."
        )
    if "scaled_dot_product" in said or (
        "attention" in draw.op and "multi_head" not in said
    ):
        return "Pass dropout_p=p if self.training else 0.0."
    if (
        draw.op.startswith("bern")
        and "dropout" not in said
        and "multi_head" not in said
    ):
        return DRAW_IN_TRAINING
    return "Pass training=self.training."


def _said(draw: Draw) -> str:
    if draw.site is None:
        return "the step"
    return draw.site.quoted


def differing_replay(now: Moment, draw: Draw) -> Finding:
    """An operator gave other values in a second replay."""
    fact = f"{_said(draw)} returned different values when replayed with the same batch and seeds"
    return _of_draw(now, draw, fact, DRAW_IN_TRAINING, certain=False)


def _of_draw(
    now: Moment, draw: Draw, fact: str, remedy: str, certain: bool, count: int = 1
) -> Finding:
    place = (draw.subject, draw.module.__name__, draw.site)
    return draw_finding(now, fact, remedy, *place, certain, count)


def moved_somewhere(now: Moment, which: str, what: str = "the step") -> Finding:
    """A generator moved, and no line is known."""
    return draw_finding(
        now,
        f"{what} moved {WORDS[which]}",
        DRAW_IN_TRAINING,
        "",
        None,
        None,
        certain=False,
    )


_SEEDS = re.compile(r"\b(manual_seed(_all)?|seed_everything|set_seed|random\.seed)\(.")


def of_line(site: Site, which: str) -> tuple[str, str]:
    """What is said of a line that moved a generator, and the remedy."""
    if _SEEDS.search(site.expression):
        return (
            f"{site.quoted} sets the seed of {WORDS[which]} in eval mode",
            "Call it once, before the run, or put the generator back, e.g. by "
            "`torch.random.fork_rng()`.",
        )
    return f"{site.quoted} moved {WORDS[which]} in eval mode", DRAW_IN_TRAINING


DRAW_IN_TRAINING = "Draw only in training: `if self.training:`."
WORDS = {
    "torch": "torch's global generator",
    "python": "Python's global generator",
    "numpy": "NumPy's global generator",
    "private": "a generator that the model holds",
}


def _common(subjects: list[str]) -> str:
    """The module that holds all of `subjects`."""
    shared: list[str] = []
    for level in zip(*(s.split(".") for s in subjects), strict=False):
        if len(set(level)) > 1:
            break
        shared.append(level[0])
    return ".".join(shared)


def draw_finding(
    now: Moment,
    fact: str,
    remedy: str,
    subject: str | None,
    subject_type: str | None,
    site: Site | None,
    certain: bool,
    count: int = 1,
) -> Finding:
    """A finding of the `stochastic` check."""
    return Finding(
        check="stochastic",
        stage=now.stage,
        fact=fact,
        remedy=remedy,
        subject=subject,
        subject_type=subject_type,
        location=site.location if site is not None else None,
        expression=site.expression if site is not None else None,
        function=site.function if site is not None else None,
        epoch=now.epoch,
        step=now.step,
        rank=now.rank,
        count=count,
        certain=certain,
    )
