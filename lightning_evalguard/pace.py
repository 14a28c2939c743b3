"""Which batches of an evaluation are looked at: all of the first, then ever fewer."""

from __future__ import annotations

from collections.abc import Callable

# Batches of each loader that are looked at in any case: the most, the fewest, and what they look at
# together, in modules and tensors. What an evaluation does in its first batches, the same code did
# in those of the evaluation before: of later ones the fewest are looked at.
_FIRST, _LEAST, _PARTS = 16, 4, 1 << 13


class Pace:
    """Says of each batch whether the checks that look again and again look at it.

    The first batches of each loader are looked at, 16 in the first evaluation of a stage and 4 in
    those after it, then the gaps double, up to one batch in so
    many that the looks take their share of the evaluation and no more: a look takes less time than
    the step that it looks at, so a share of the batches is a larger share than that of the time.
    The last one is looked at where it is known which that is. Nothing here asks for the time.

    Args:
        budget: That share; 1.0 looks at every batch.
        batches: Gives how many batches a loader will give; None where that is not known.

    Attributes:
        skipped: Whether the last batch was not looked at.

    Example:
        >>> pace = Pace(budget=0.01)
        >>> looks = [i for i in range(1000) if pace.looks(0)]
        >>> looks[:4], looks[16:]
        ([0, 1, 2, 3], [17, 21, 29, 45, 77, 141, 241, 341, 441, 541, 641, 741, 841, 941])
    """

    def __init__(
        self,
        budget: float,
        batches: Callable[[int], float | None] = lambda loader: None,
    ) -> None:
        self._widest = max(1, round(1 / budget))
        self._most = self._first = _FIRST
        self._known = batches
        self.begin()

    def reads(self, parts: int) -> None:
        """A look reads so many modules and tensors: of many, fewer batches come first."""
        self._most = max(_LEAST, min(_FIRST, _PARTS // max(1, parts)))
        self._first = min(self._first, self._most)

    def begin(self, again: bool = False) -> None:
        """An evaluation begins.

        Args:
            again: Whether one of its kind was looked at before.
        """
        self._first = _LEAST if again else self._most
        self._loader: int | None = None
        self.skipped = False

    def looks(self, loader: int) -> bool:
        """Whether the next batch, of that loader, is looked at."""
        if loader != self._loader:
            self._loader = loader
            self._batches = 0
            self._next = 0
            self._gap = 1
            self._end = self._known(loader)
        n = self._batches
        self._batches += 1
        if n < self._next:
            self.skipped = True
            return False
        if n >= self._first - 1:
            self._gap = min(2 * self._gap, self._widest)
        self._next = n + self._gap
        if self._end is not None and n + 1 < self._end < self._next + 1:
            self._next = int(self._end) - 1
        self.skipped = False
        return True
