"""What was reported of one evaluation."""

from __future__ import annotations


class Reported(set[str]):
    """Names that changes were reported of: each is reported once in an evaluation."""

    def is_new(self, what: str) -> bool:
        """Whether this is the first time that `what` is reported."""
        if what in self:
            return False
        self.add(what)
        return True
