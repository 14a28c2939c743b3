"""The modes of a Trainer's model around its evaluations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn


class RestoredModes:
    """The mode of every module before an evaluation, put back one by one."""

    def __init__(self, roots: Sequence[nn.Module]) -> None:
        known = {id(m): m for root in roots for m in root.modules()}
        self._before = [(module, module.training) for module in known.values()]

    @contextmanager
    def as_before(self) -> Iterator[None]:
        """The modes are as they were, while the checks look at them."""
        left = [(module, module.training) for module, _ in self._before]
        self.restore()
        try:
            yield
        finally:
            for module, flag in left:
                if module.training != flag:
                    module.training = flag

    def restore(self) -> None:
        """Set the flags directly: `train()` and `eval()` of the model are not called."""
        for module, flag in self._before:
            if module.training != flag:
                module.training = flag
