"""The batches that were not looked at: did a generator move in them?"""

from __future__ import annotations

from lightning_evalguard.checks.check import Moment
from lightning_evalguard.instruments.generators import Generators


class Gaps:
    """Compares where torch's generators stood after one look with where they stand at the next.

    Args:
        between: Whether an earlier evaluation of the stage saw them move between two steps.

    Attributes:
        between: Whether they were seen to move between two steps that follow on one another: a
            dataset or a hook draws.
        of_others: Whether what moved them may be no step, for that or for another reason.
        batches: The first and last batch of a gap in which they moved.
    """

    def __init__(self, between: bool = False) -> None:
        self.between = self.of_others = between
        self.batches: tuple[int, int] | None = None
        self._last: Generators | None = None
        self._at = 0, 0

    def looked(self, now: Moment, after: Generators) -> None:
        """A step was looked at; `after` is where they stand now."""
        self._last = after
        self._at = (now.dataloader, now.batch)

    def moved(self, now: Moment, before: Generators, batch: int) -> bool:
        """Whether they moved while steps were skipped.

        Args:
            now: Where the run stands.
            before: Where the generators stand now.
            batch: The next one.
        """
        if self._last is None or not before.moved(self._last):
            return False
        loader, last = self._at
        if loader != now.dataloader:
            self.of_others = True  # each loader draws a seed when it begins
            return now.skipped > 0
        if batch == last + 1:
            self.between = self.of_others = True
            return False
        if self.batches is None:
            self.batches = last + 1, batch - 1
        return True

    def suspect(self) -> str:
        """Who moved them, where none but a step or a rare hook may have been it."""
        if self.batches is None or self.of_others:
            return ""
        return "something in batches {} to {}".format(*self.batches)
