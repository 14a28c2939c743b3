"""Which evaluated samples stand in another set that they should be apart from?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_evalguard.checks.data.history import Side
from lightning_evalguard.checks.data.loader_facts import (
    EvaluatedSet,
    listed_places,
    workers,
)
from lightning_evalguard.checks.data.masked import by_masks
from lightning_evalguard.data import loaders as _loaders
from lightning_evalguard.data.loaders import Fact, Part
from lightning_evalguard.data.portraits import BATCHES, Portrait
from lightning_evalguard.data.samples import (
    Budget,
    SampleRows,
    content_hash,
    digest,
    rows,
    spread,
    twins,
    undisturbed,
)

_QUERIES = 4096  # evaluated samples to look for
_NATURAL = 1024  # rows of the other set that are looked for in it
_HASHED = 20_000  # samples of the other set whose hashes are kept
_FEW = 3  # as many may be equal by chance
_UNSEEN = 3.0  # equal samples that a portrait may hide which shows none
_SPLIT = (
    "Split once, before anything is drawn or repeated, "
    "and evaluate what training does not see."
)
_ANEW = (
    "Begin each fold with a new model, or with the weights from before the first fit."
)
_CHOSEN = "Keep a set for the test alone: what was chosen by a score is fitted to its samples."


class Leak:
    """Looks for the samples of one evaluated set in one other set.

    First by index, where both lie in one dataset: exact, and nothing is read. Then by the rows or
    file names that the datasets hold. Else by reading samples in this process, a few more after
    each evaluation; not where training's are random, nor where workers read them. Plain samples
    that are equal within the other set itself are equal by nature.

    Attributes:
        why_not: Why the sets could not be compared.
        is_whole: Whether all evaluated samples that were looked for stand in the other set.
        compared: Whether something was compared, so that silence means something.
    """

    def __init__(self, one: EvaluatedSet, side: Side) -> None:
        self._one, self._side = one, side
        self._mine = _loaders.parts(one.loader)
        self._remedy = _remedy(side.words)
        self._done = not self._mine
        self.why_not = ""
        self.is_whole = self.compared = False
        self._evaluated: dict[bytes, tuple[int, bool]] | None = None
        self._seen: Counter[bytes] = Counter()
        self._next = 0
        self._hashes = 0

    def has_more(self, theirs: Portrait | None) -> bool:
        """Whether the other set shows more of its samples than when this was asked last."""
        known = self._hashes
        self._hashes = 0 if theirs is None else len(theirs.hashes)
        return self._hashes > known

    def look(self, budget: Budget) -> list[Fact]:
        """Look for as long as the budget lasts; may be called again."""
        if self._done:
            return []
        if self._evaluated is None:
            of_one = by_masks(self._one, self._side, _given(self._mine))
            if of_one is not None:
                self._done = self.compared = True
                return of_one
            facts = self._by_index() or self._by_rows(budget)
            if facts or self._done:
                self._done = True
                return facts
        if self._evaluated is None and not self._can_read():
            self._done = True
            return []
        with undisturbed(self._one.loader.dataset, self._side.dataset):
            try:
                return self._by_reading(budget)
            except Exception as error:  # noqa: BLE001 - a dataset that cannot be read so
                self._done = True
                self.why_not = (
                    f"the samples of `{self._one.name}` were not compared with training's: "
                    f"{type(error).__name__}: {error}"
                )
                return []

    def _pairs(self) -> list[tuple[Part, Part]]:
        return [(a, b) for a in self._mine for b in self._side.parts]

    def _by_index(self) -> list[Fact]:
        places = [_loaders.shared(a, b) for a, b in self._pairs()]
        if not places:
            return []
        self.compared = any(a.root is b.root for a, b in self._pairs())
        shared = sorted(set(torch.cat(places).tolist()))
        words = self._side.words
        said = f"belong to {words} too" if "earlier" in words else f"are {words}'s too"
        return self._fact(shared, said, exact=True)

    def _by_rows(self, budget: Budget) -> list[Fact]:
        compared = False
        exact = True
        places = set[int]()
        for part in self._mine:
            mine = rows(part.root, part.indices)
            if mine is None:
                continue
            queries = mine.some(_QUERIES)
            exact &= len(queries.chosen) == len(mine.chosen)
            for theirs in self._tables(part):
                compared = True
                hit = self._hits(queries, theirs, budget)
                step = max(1, -(-len(part.at) // _QUERIES))
                places |= (
                    set(part.at[::step][hit].tolist()) if hit is not None else set()
                )
            for kept in self._side.portraits if not self._side.parts else ():
                compared = True
                hit = kept.holds(queries)
                exact &= kept.whole
                step = max(1, -(-len(part.at) // _QUERIES))
                if _judged(queries, hit, kept.natural, len(kept.hashes)):
                    places |= set(part.at[::step][hit].tolist())
        self._done = compared
        self.compared |= compared
        exact &= not budget.cut
        return self._fact(sorted(places), f"stand in {self._side.words} too", exact)

    def _tables(self, mine: Part) -> list[SampleRows]:
        held = [
            rows(b.root, b.indices) for b in self._side.parts if b.root is not mine.root
        ]
        return [table for table in held if table is not None]

    def _hits(
        self, queries: SampleRows, theirs: SampleRows, budget: Budget
    ) -> Tensor | None:
        """Which queries are leaks, as a mask; None where there are no more than by nature."""
        hit = twins(queries, theirs, 1, budget)
        if not bool(hit.any()):
            return None
        natural = twins(theirs.some(_NATURAL), theirs, 2, budget).double().mean()
        if not _judged(queries, hit, float(natural), len(theirs.chosen)):
            return None
        return hit

    def _can_read(self) -> bool:
        if self._side.dataset is None or not self._side.parts:
            return False
        if self._one.varies:
            return False
        if workers(self._one.loader) or self._side.workers:
            self.why_not = (
                f"the samples of `{self._one.name}` were not compared with training's, because "
                "workers read them"
            )
            return False
        both = (self._one.loader.dataset, self._side.dataset)
        return all(hasattr(type(dataset), "__getitem__") for dataset in both)

    def _by_reading(self, budget: Budget) -> list[Fact]:
        dataset = self._one.loader.dataset
        other = self._side.dataset
        mine = _given(self._mine)
        theirs = _given(self._side.parts)
        n, m = len(mine), len(theirs)
        if self._evaluated is None:
            if not (n and m and budget.read(2)):
                return []
            if digest(other[theirs[0]]) != digest(other[theirs[0]]):
                self._done = True  # augmented: no sample of it comes back
                return []
            self._evaluated = {}
            self.compared = True
        ours = self._evaluated
        while len(self._seen) < _HASHED and self._next < max(n, m):
            if not budget.read(2):
                break
            # In step, so that copies in one order meet.
            k, self._next = self._next, self._next + 1
            at = mine[spread(k, n)]
            if (
                k < n
                and len(ours) < _QUERIES
                and (held := content_hash(dataset[at])) is not None
            ):
                ours.setdefault(held[0], (at, held[1]))
            there = theirs[spread(k, m)]
            if k < m and (held := content_hash(other[there])) is not None:
                self._seen[held[0]] += 1
        else:
            self._done = True
        hits = [held for hashed, held in ours.items() if hashed in self._seen]
        repeated = sum(n for n in self._seen.values() if n > 1)
        natural = repeated / max(1, self._seen.total())
        particular = sum(rich for _, rich in hits)
        others = self._seen.total()
        if not _is_leak(len(hits), particular, len(ours), natural, others):
            return []
        self._done = True
        places = sorted(at for at, _ in hits)
        exact = self._next >= max(n, m) and n <= _QUERIES
        return self._fact(places, f"stand in {self._side.words} too", exact)

    def _fact(self, places: Sequence[int], said: str, exact: bool) -> list[Fact]:
        if not places:
            return []
        n = len(set(_given(self._mine)))
        self.is_whole = len(places) >= min(n, _QUERIES)
        number = (
            f"{len(places)}" if exact or len(places) == n else f"at least {len(places)}"
        )
        return [
            self._one.fact(
                f"{number} of its {n} samples {said} ({listed_places(places)}), expected none",
                self._remedy,
            )
        ]


def _given(parts: Sequence[Part]) -> list[int]:
    """Which samples of its dataset a loader gives: a sampler may leave some to another one."""
    if not parts:
        return []
    places: list[int] = torch.cat([part.at for part in parts]).sort().values.tolist()
    return places


def _remedy(words: str) -> str:
    """What to do about samples that stand in a set of these words."""
    if "these weights" in words:
        return _ANEW
    if "training" in words:
        return _SPLIT
    return _CHOSEN


def by_batches(one: EvaluatedSet, theirs: Portrait | None, words: str) -> list[Fact]:
    """What the hashes of samples say, as steps got them: of streams, and of what workers read."""
    if theirs is None or one.hashes is None or not len(theirs.hashes):
        return []
    hit = theirs.holds_hashes(one.hashes)
    hits, of = int(hit.sum()), len(one.hashes)
    natural = max(theirs.natural, _UNSEEN / len(theirs.hashes))
    if hits <= 3 * natural * of + _FEW:
        return []
    places = hit.nonzero().flatten().tolist()
    number = str(hits) if hits == of else f"at least {hits}"
    which = listed_places(places)
    fact = f"{number} of its {of} samples stand in {words} too ({which}), expected none"
    return [one.fact(fact, _remedy(words))]


def is_whole(fact: Fact, one: EvaluatedSet) -> bool:
    """Whether a fact speaks of all evaluated samples."""
    return one.hashes is not None and fact.fact.startswith(f"{len(one.hashes)} of")


def by_portraits(
    one: EvaluatedSet, theirs: Sequence[Portrait], words: str
) -> list[Fact]:
    """Which evaluated samples stand in a set of which a record holds hashes."""
    places, exact = set[int](), True
    parts = _loaders.parts(one.loader)
    for part in parts:
        mine = rows(part.root, part.indices)
        if mine is None:
            continue
        queries = mine.some(_QUERIES)
        step = max(1, -(-len(part.at) // _QUERIES))
        exact &= step == 1
        for kept in theirs:
            hit = kept.holds(queries)
            exact &= kept.whole or kept.kind == BATCHES
            if _judged(queries, hit, kept.natural, len(kept.hashes)):
                places |= set(part.at[::step][hit].tolist())
    if not places:
        of_batches = next((kept for kept in theirs if kept.kind == BATCHES), None)
        return by_batches(one, of_batches, words)
    n = len(set(_given(parts)))
    number = (
        str(len(places)) if exact or len(places) == n else f"at least {len(places)}"
    )
    which = listed_places(sorted(places))
    fact = f"{number} of its {n} samples stand in {words} too ({which}), expected none"
    return [one.fact(fact, _SPLIT)]


def _judged(queries: SampleRows, hit: Tensor, natural: float, others: int) -> bool:
    particular = sum(map(queries.rich, queries.chosen[hit].tolist()))
    return _is_leak(int(hit.sum()), particular, len(hit), natural, others)


def _is_leak(hits: int, particular: int, of: int, natural: float, others: int) -> bool:
    """Whether so many equal samples are more than such data has by nature.

    Args:
        hits: Evaluated samples that stand in the other set.
        particular: Those that are not equal by chance.
        of: Samples looked for.
        natural: The share of the other set's samples that stand in it a second time.
        others: Samples of the other set.
    """
    if not natural:
        # of few values some may be equal by chance, though none is within the other set
        by_chance = 2 * _UNSEEN * of / max(1, others)
        return particular >= _FEW or hits > by_chance + _FEW
    return particular >= max(_FEW, 0.01 * of) or hits > 3 * natural * of + _FEW
