"""One thing that an evaluation changed, and its finding."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lightning_evalguard.checks.check import Moment
from lightning_evalguard.instruments.source import Site
from lightning_evalguard.model.attributes import (
    BEFORE_TRACING,
    LEAVE_IN_EVAL,
    how_to_hold,
)
from lightning_evalguard.model.tensors import Held, Inventory
from lightning_evalguard.paths import file_pattern
from lightning_evalguard.report import Finding
from lightning_evalguard.stages import spelling

PUT_BACK = "Put it back before the evaluation ends, or do it in training."
REGISTER = "Register it in `__init__`."
PROJECT = (
    "Compute with the bounded value instead of writing it, "
    "e.g. `F.linear(x, self.weight * mask)`."
)


@dataclass
class Change:
    """One thing that is not what it was.

    Attributes:
        name: Qualified name of the tensor, attribute or module, or what else it is called.
        kind: What it is, in words: ``buffer of BatchNorm1d``.
        fact: What became of it: starts with a verb in the past tense, ends before ``expected``.
        expected: What was expected.
        remedy: One imperative.
        owner: Changes of one owner are told together.
        certain: False for a suspicion.
        writes: Whether the line that wrote it is the line to name.
        backward: Whether the line that ran backward is.
        site: The line, where it is known already.
        value: What to look at line by line, where no operator shows the change.
        rewind: Called before and after the step is run again for that.
    """

    name: str
    kind: str
    fact: str
    expected: str
    remedy: str
    owner: str = ""
    certain: bool = True
    writes: bool = False
    backward: bool = False
    site: Site | None = None
    value: Callable[[], Any] | None = None
    rewind: tuple[Callable[[], object], Callable[[], object]] | None = None


_NORM = re.compile(r"\b(batch|instance)_norm\(")


def of_tensor(held: Held, fact: str, expected: str, remedy: str, **more: Any) -> Change:
    """A change of a parameter or a buffer."""
    kind = f"{held.kind} of {type(held.module).__name__}"
    return Change(held.name, kind, fact, expected, remedy, held.owner, **more)


def of_step(held: Held, is_new: bool) -> Change:
    """A tensor that a step wrote, or registered."""
    fact = "changed during the step"
    expected = "it to stay as it was"
    remedy = remedy_of(held)
    if is_new and held.persistent:
        fact = "was added during the step"
        expected = "the state_dict as before it"
        remedy = REGISTER
    return of_tensor(held, fact, expected, remedy, writes=True)


def of_module(
    name: str,
    module: nn.Module,
    fact: str,
    expected: str,
    remedy: str,
    site: Site | None = None,
) -> Change:
    """A change of a module."""
    return Change(
        name, type(module).__name__, fact, expected, remedy, owner=name, site=site
    )


def finding_of(group: list[Change], now: Moment) -> Finding:
    """One finding of the changes of one owner that are alike."""
    first = group[0]
    others = [
        c.name.removeprefix(f"{first.owner}.")
        for c in group[1:]
        if c.name != first.name
    ]
    site = first.site
    remedy = first.remedy
    if first.writes and site is not None and ".step(" in site.expression:
        remedy = "Step the optimizer in training only."
    elif first.writes and site is not None and _NORM.search(site.expression):
        remedy = "Pass training=self.training."
    elif first.writes and site is not None and site.function in ("train", "eval"):
        remedy = (
            "Compute it in `forward`: modes are put back without a call of `train()`."
        )
    return Finding(
        check="state",
        stage=now.stage,
        fact=f"{first.fact}{_as_did(others)}, expected {first.expected}",
        remedy=remedy,
        subject=first.name,
        subject_type=first.kind or None,
        location=site.location if site else None,
        expression=site.expression if site else None,
        function=site.function if site else None,
        leads="subject",
        epoch=now.epoch,
        step=now.step,
        rank=now.rank,
        certain=first.certain,
        pattern=_pattern(group, site),
    )


def _pattern(group: list[Change], site: Site | None) -> str | None:
    """What silences a line that changed tensors of several modules: their common ending."""
    if len({change.owner for change in group}) == 1:
        return None
    endings = zip(*(reversed(change.name.split(".")) for change in group), strict=False)
    common = list(itertools.takewhile(lambda parts: len(set(parts)) == 1, endings))
    ending = ".".join(parts[0] for parts in reversed(common))
    if not ending:
        if site is None:
            return None
        return file_pattern(site.location)
    if any(change.name == ending for change in group):
        return f"*{ending}"
    return f"*.{ending}"


def _as_did(others: list[str]) -> str:
    if not others:
        return ""
    shown = others if len(others) <= 3 else [*others[:2], f"{len(others) - 2} more"]
    *head, last = shown
    if head:
        return f", as did {', '.join(head)} and {last}"
    return f", as did {last}"


def carried(path: str, site: Site | None, inventory: Inventory) -> Change:
    """An attribute that each step reads and writes."""
    owner = path
    while owner and owner not in inventory.modules:
        owner = owner.rpartition(".")[0]
    return Change(
        path,
        f"attribute of {type(inventory.modules[owner]).__name__}",
        "changed during a step that also computes with it",
        "results that do not depend on the batches before",
        "Update it `if self.training:`.",
        owner,
        certain=False,
        site=site,
    )


def batch_change() -> Change:
    """The step wrote into its batch."""
    return Change(
        "the batch",
        "",
        "changed in place during the step",
        "it to stay as the loader gave it",
        "Work on a copy: `.clone()`.",
        certain=False,
    )


def remedy_of(held: Held) -> str:
    """What to write where a tensor changes in a step."""
    module = held.module
    if type(module).__module__.startswith(("torch.ao.quantization", "torchao.")):
        return "Call `model.apply(torch.ao.quantization.disable_observer)` before evaluating."
    if (
        isinstance(module, (nn.Embedding, nn.EmbeddingBag))
        and module.max_norm is not None
    ):
        return "Look up with `F.embedding(x, weight)`: max_norm rewrites the rows it reads."
    if isinstance(module, torch.jit.ScriptModule):
        return BEFORE_TRACING
    if isinstance(module, nn.modules.batchnorm._NormBase):  # awake now, or for a moment
        if held.registered:
            return LEAVE_IN_EVAL
        return how_to_hold(held.owner[: held.owner.rfind("]") + 1])
    return "Change it only `if self.training:`."


def during(now: Moment) -> str:
    """When an evaluation changed it, in words."""
    return f"during {spelling(now.stage).words}"
