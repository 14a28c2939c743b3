"""Do ranks evaluate samples twice between them, or samples that another one trains on?

Each rank says hashes of what its steps got, once a set, over the group's store: no collective. Of
many samples every rank says those whose hash ends in zeros: the same ones on all ranks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_evalguard.checks.data.loader_facts import EvaluatedSet, listed_places
from lightning_evalguard.checks.data.repeats import is_repeated
from lightning_evalguard.data.loaders import Fact

_MOST = 4096  # hashes of one set that a rank says
_FEW = 3  # as many may be equal by chance
_UNSEEN = 3.0  # equal samples that as many hashes may hide which show none


class Said(NamedTuple):
    """Hashes of samples.

    Attributes:
        hashes: ``(N,)`` int64: of every so many samples.
        every: Of how many one is among them, by its hash: a power of two.
        of: How many samples there were.
    """

    hashes: Tensor
    every: int
    of: int

    def thinned(self, every: int) -> Tensor:
        """The hashes that a rank would say that says one of `every`."""
        return self.hashes[(self.hashes & (every - 1)) == 0]


def say(hashes: Tensor | None) -> Said | None:
    """What one rank says of its samples."""
    if hashes is None or not len(hashes):
        return None
    every = 1
    while len(hashes) > _MOST * every:
        every *= 2
    return Said(hashes[(hashes & (every - 1)) == 0].clone(), every, len(hashes))


def repetitions(one: EvaluatedSet, everyone: Mapping[int, Said]) -> list[Fact]:
    """Samples that several ranks evaluate; those that one of them has twice count once."""
    if len(everyone) < 2:
        return []
    every = max(said.every for said in everyone.values())
    each = [said.thinned(every).unique() for said in everyone.values()]  # type: ignore[no-untyped-call]
    _, counts = torch.cat(each).unique(return_counts=True)  # type: ignore[no-untyped-call]
    if not len(counts) or int(counts.max()) < 2 or not is_repeated(counts):
        return []
    again = int((counts - 1).sum())
    of = sum(said.of for said in everyone.values())
    number = f"{again}" if every == 1 else f"about {again * every}"
    whole = int(counts.min()) == len(everyone)
    cause = ""
    if whole:
        cause = f": each of {len(everyone)} ranks evaluates all of them"
    return [
        one.fact(
            f"{number} of the {of} samples that all ranks evaluate are repetitions, expected each "
            f"once{cause}",
            "Share them out: leave `use_distributed_sampler` on, or, for a stream, take every "
            "`trainer.world_size`-th sample from `trainer.global_rank` on in its `__iter__`.",
            certain=False,
        )
    ]


def leaked(
    one: EvaluatedSet, evaluated: Iterable[Said], trained: Sequence[Said], words: str
) -> list[Fact]:
    """Samples that any rank evaluates and any rank trained on."""
    if not trained:
        return []
    theirs = torch.cat([said.hashes for said in trained])
    distinct = theirs.unique()  # type: ignore[no-untyped-call]
    ours = torch.cat([said.hashes for said in evaluated])
    hit = torch.isin(ours, distinct)
    natural = max(1 - len(distinct) / len(theirs), _UNSEEN / len(distinct))
    hits = int(hit.sum())
    if hits <= 3 * natural * len(ours) + _FEW:
        return []
    fact = (
        f"at least {hits} of the {len(ours)} samples that all ranks evaluate stand in {words} too "
        f"({listed_places(hit.nonzero().flatten().tolist())}), expected none"
    )
    remedy = (
        "Split once, before anything is drawn or repeated, "
        "and evaluate what training does not see."
    )
    return [one.fact(fact, remedy)]


def of_all(everyone: Mapping[int, Any], part: str) -> dict[Any, dict[int, Said]]:
    """What each rank said of each set: by set, then by rank."""
    found: dict[Any, dict[int, Said]] = {}
    for rank, said in sorted(everyone.items()):
        for key, hashes in said[part].items():
            found.setdefault(key, {})[rank] = hashes
    return found
