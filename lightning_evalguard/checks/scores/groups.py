"""Metrics that a collection updates as one: do they count the same?"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_evalguard.data.loaders import Fact
from lightning_evalguard.instruments.patch import Wrap


class Groups:
    """Compares, on a few batches, the update of a group with a separate one of each member.

    A collection merges metrics whose states were equal after its first update. Looked at are the
    second batch, the third, the fifth, ... of an evaluation: each time twice as far.

    Attributes:
        compares: Whether it listens to the running step.
        next: The batch of an evaluation at which it listens next.
    """

    def __init__(self, root: nn.Module | None = None) -> None:
        self._root = root
        self._wraps: list[Wrap] = []
        self._facts: dict[str, Fact] = {}
        self.compares = False
        self.begin()

    def begin(self) -> None:
        """An evaluation begins."""
        self._batch, self.next = -1, 1
        self._collections: list[tuple[str, nn.Module]] | None = None

    def before_step(self, batch: int) -> None:
        """The step is about to run that it listens to next."""
        self._batch, self.next = batch, 2 * self.next
        if self._root is None:
            return
        if self._collections is None:
            self._collections = _collections_of(self._root)
        for name, leader, member, label in _merged(self._collections):
            if label not in self._facts:
                around = partial(self._update, name, leader, member, label)
                self._wraps.append(Wrap(leader, "update", around))
                self.compares = True

    def after_step(self) -> None:
        """The step is over, however it ended."""
        self.compares = False
        for wrap in self._wraps:
            wrap.remove()
        self._wraps.clear()

    def facts(self) -> list[Fact]:
        """The members that count otherwise than their group."""
        return list(self._facts.values())

    def _update(
        self,
        leader_name: str,
        leader: Any,
        member: Any,
        label: str,
        update: Callable[..., Any],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        done = update(*args, **kwargs)
        if label not in self._facts and _differ(leader, member, args, kwargs):
            self._facts[label] = Fact(
                f"takes its state from `{leader_name}`, because both were equal after "
                f"batch 0; after batch {self._batch} they differ",
                "Pass compute_groups=False to the MetricCollection.",
                label,
                type(member).__name__,
            )
        return done


def _collections_of(root: nn.Module) -> list[tuple[str, nn.Module]]:
    named = root.named_modules()
    return [(name, m) for name, m in named if type(m).__name__ == "MetricCollection"]


def _merged(
    collections: Sequence[tuple[str, nn.Module]],
) -> Iterator[tuple[str, Any, Any, str]]:
    """Each metric that a collection does not update itself, and the one that stands for it."""
    for name, module in collections:
        held = vars(module)
        if not held.get("_groups_checked"):
            continue
        members = held.get("_modules", {})
        for group in held.get("_groups", {}).values():
            chosen = [members[n] for n in group if n in members]
            if len(chosen) == len(group) > 1 and not any(_computes(m) for m in chosen):
                for other in group[1:]:
                    yield (
                        group[0],
                        members[group[0]],
                        members[other],
                        f"{name}.{other}".strip("."),
                    )


def _computes(metric: nn.Module) -> bool:
    """Whether a metric holds a network or others of its kind: it is not updated a second time."""
    return any(True for _ in metric.children()) or any(
        True for _ in metric.parameters()
    )


def _differ(leader: Any, member: Any, args: Any, kwargs: Any) -> bool:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        ours = _fresh(member)
        theirs = _fresh(leader)
        for one in (ours, theirs):
            one.update(*args, **one._filter_kwargs(**kwargs))
    names = list(ours._defaults)
    if names != list(theirs._defaults):
        return True
    return not all(_equal(vars(ours)[name], vars(theirs)[name]) for name in names)


def _fresh(metric: Any) -> Any:
    """A copy that has counted nothing and shares no state."""
    made = copy.copy(metric)
    for name, default in metric._defaults.items():
        vars(made)[name] = [] if isinstance(default, list) else default.detach().clone()
    vars(made)["_update_count"] = 0
    vars(made)["_computed"] = None
    return made


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_equal, a, b))
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())
    return True
