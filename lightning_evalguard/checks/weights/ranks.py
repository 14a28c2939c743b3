"""Do all ranks evaluate the same weights?

Each rank hashes what it evaluates and tells the others over the group's store, at the end of an
evaluation, where all ranks meet anyway: no collective, and a few hundred bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from lightning_evalguard.checks.check import Moment
from lightning_evalguard.checks.weights.origin import parameters_of
from lightning_evalguard.checks.weights.words import weights_finding
from lightning_evalguard.model.hashes import Prints
from lightning_evalguard.model.tensors import Inventory
from lightning_evalguard.report import Finding

SHARDED = "the ranks' weights were not compared: each rank holds a part of them"
_GROUPS = 64  # names that a rank sends


class Replicas:
    """What this rank evaluates, and whether the others do too.

    Args:
        inventory: The model's tensors.

    Attributes:
        notes: What could not be compared.
    """

    def __init__(self, inventory: Inventory) -> None:
        self._inventory = inventory
        self._prints: Prints | None = None
        self._evaluations = 0
        self._reported: set[str] = set()
        self.notes: list[str] = []

    def first_step(self) -> None:
        """The first step of an evaluation is about to run: hash what it evaluates.

        In the first evaluation, the second, the fourth and so on, and not before each.
        """
        self._prints = None
        self._evaluations += 1
        often = self._evaluations & (self._evaluations - 1)
        if often or not _several():
            return
        parameters = parameters_of(self._inventory)
        if any(_is_shard(held.tensor) for held in parameters):
            if SHARDED not in self.notes:
                self.notes.append(SHARDED)
            return
        self._prints = Prints({held.name: held.tensor for held in parameters})

    def say(self) -> dict[str, dict[str, str]] | None:
        """What the others must know: hashes of the weights, and of the batch statistics."""
        if self._prints is None:
            return None
        statistics = Prints(dict(_statistics(self._inventory.modules)))
        said = {"weights": _digests(self._prints), "statistics": _digests(statistics)}
        self._prints = None
        return said

    def hear(self, everyone: Mapping[int, Any], now: Moment) -> list[Finding]:
        """Compare what all ranks said; each of them comes to the same."""
        said = {rank: theirs for rank, theirs in everyone.items() if theirs}
        if len(said) < 2:
            return []
        findings = []
        for what, say in (
            ("weights", _other_weights),
            ("statistics", _other_statistics),
        ):
            names, ranks = _differing(
                {rank: theirs[what] for rank, theirs in said.items()}
            )
            if names and what not in self._reported:
                self._reported.add(what)
                findings.append(say(names, ranks, self._inventory, now))
        return findings


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _is_shard(tensor: Tensor) -> bool:
    """Whether a strategy cut the parameter: a DTensor, FSDP's flat one, DeepSpeed's."""
    name = type(tensor).__name__
    return name in ("DTensor", "FlatParameter") or "ds_id" in vars(tensor)


def _statistics(modules: Mapping[str, nn.Module]) -> Iterable[tuple[str, Tensor]]:
    for name, module in modules.items():
        if isinstance(module, _NormBase) and isinstance(module.running_mean, Tensor):
            yield f"{name}.running_mean", module.running_mean
            if isinstance(module.running_var, Tensor):
                yield f"{name}.running_var", module.running_var


def _digests(prints: Prints) -> dict[str, str]:
    """A hash by module, as far down as there are not too many of them."""
    values = prints.values()
    for depth in (8, 4, 2, 1, 0):
        groups: dict[str, list[Any]] = {}
        for name, value in values.items():
            owner = name.rpartition(".")[0].split(".")[:depth]
            groups.setdefault(".".join(owner), []).append((name, value))
        if len(groups) <= _GROUPS:
            break
    return {
        name: hashlib.blake2b(
            repr(sorted(group, key=repr)).encode(), digest_size=8
        ).hexdigest()
        for name, group in groups.items()
    }


def _differing(said: Mapping[int, Mapping[str, str]]) -> tuple[list[str], list[int]]:
    """The modules that differ between ranks, and the ranks that differ from the lowest."""
    first = min(said)
    names: dict[str, None] = {}
    ranks = []
    for rank, theirs in sorted(said.items()):
        other = [
            n for n in {**said[first], **theirs} if said[first].get(n) != theirs.get(n)
        ]
        if other:
            ranks.append(rank)
        names.update(dict.fromkeys(other))
    return list(names), ranks


def _words(
    names: list[str], ranks: list[int], inventory: Inventory
) -> tuple[str, str, str | None]:
    module = inventory.modules.get(names[0])
    more = ""
    if len(names) > 1:
        more = f" ({len(names)} modules in all)"
    on = ", ".join(map(str, ranks))
    where = f"on rank{'s' if len(ranks) > 1 else ''} {on}{more}"
    return names[0], where, type(module).__name__ if module is not None else None


def _other_weights(
    names: list[str], ranks: list[int], inventory: Inventory, now: Moment
) -> Finding:
    subject, where, kind = _words(names, ranks, inventory)
    return weights_finding(
        now,
        f"has other weights {where} than on rank 0: each rank scores a model of its own, expected "
        "one",
        "Load or set the weights on every rank before `setup` ends, or broadcast them from rank 0.",
        subject=subject,
        kind=kind,
    )


def _other_statistics(
    names: list[str], ranks: list[int], inventory: Inventory, now: Moment
) -> Finding:
    subject, where, kind = _words(names, ranks, inventory)
    return weights_finding(
        now,
        f"has other running statistics {where} than on rank 0, and nothing synchronises them: the "
        "score depends on which rank evaluates a sample",
        "Pass `Trainer(sync_batchnorm=True)`, or reduce the statistics before the evaluation.",
        subject=subject,
        kind=kind,
        certain=False,
    )
