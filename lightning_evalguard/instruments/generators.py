"""The random generators: those that everyone shares, and those that somebody holds."""

from __future__ import annotations

import pickle
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# the generators that everyone shares


@dataclass(slots=True)
class Generators:
    """The states of the generators that everyone shares: torch's, python's and numpy's.

    Attributes:
        torch: One state a device, by its name.
        python: ``random.getstate()``; None where it was not asked for.
        numpy: State of ``numpy.random``; None where numpy is not imported or not asked for.
    """

    torch: dict[str, Tensor]
    python: Any
    numpy: Any

    @classmethod
    def capture(cls, *, host: bool = True) -> Generators:
        """The states as they are now; a device that was never used is not initialised.

        Args:
            host: Python's and numpy's too, which cost most of the time.
        """
        states = {"cpu": torch.default_generator.get_state()}
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            states |= {
                device: generator.get_state()
                for device, generator in torch_generators()
            }
        if not host:
            return cls(states, None, None)
        return cls(states, random.getstate(), numpy_state())

    @staticmethod
    def seed(seed: int) -> None:
        """Seed them all."""
        torch.manual_seed(seed)
        random.seed(seed)
        if "numpy" in sys.modules:
            sys.modules["numpy"].random.seed(seed % 2**32)

    def restore(self) -> None:
        """Put the states back."""
        for device, generator in torch_generators():
            if device in self.torch:
                generator.set_state(self.torch[device])
        if self.python is not None:
            random.setstate(self.python)
        if self.numpy is not None:
            sys.modules["numpy"].random.set_state(self.numpy)

    def values(self) -> dict[str, Any]:
        """The states by name, as what ``==`` compares."""
        torch_ = [
            (device, state.numpy().tobytes()) for device, state in self.torch.items()
        ]
        return {
            "torch": torch_,
            "python": self.python,
            "numpy": pickle.dumps(self.numpy),
        }

    def moved(self, since: Generators) -> list[str]:
        """Which of ``torch``, ``python`` and ``numpy`` stand elsewhere than they did in `since`."""
        found = []
        for device, state in self.torch.items():
            before = since.torch.get(device)
            # a quarter of the time that `torch.equal` takes; states lie on the host
            if before is None or state.numpy().tobytes() != before.numpy().tobytes():
                found.append("torch")
                break
        if (
            self.python is not None
            and since.python is not None
            and self.python != since.python
        ):
            found.append("python")
        both = self.numpy is not None and since.numpy is not None
        if both and not same_state(self.numpy, since.numpy):
            found.append("numpy")
        return found


def torch_generators() -> Iterator[tuple[str, torch.Generator]]:
    """The default generators of torch, by device."""
    yield "cpu", torch.default_generator
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        for index, generator in enumerate(torch.cuda.default_generators):
            yield f"cuda:{index}", generator


def numpy_state() -> Any:
    """State of ``numpy.random``, or None where numpy is not imported."""
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return None
    return numpy.random.get_state()


def same_state(a: Any, b: Any) -> bool:
    """Whether two states of one generator are equal, of torch, python or numpy."""
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same_state(a[k], b[k]) for k in a)
    if isinstance(a, tuple) and len(a) < 100:
        return len(a) == len(b) and all(map(same_state, a, b))
    if hasattr(a, "tobytes"):
        return bool(a.tobytes() == b.tobytes())
    return bool(a == b)


def is_default(generator: torch.Generator) -> bool:
    """Whether everyone shares this generator."""
    return any(generator is default for _, default in torch_generators())


# private generators


def is_generator(kind: type) -> bool:
    """Whether things of this class draw from a state: torch's, python's and numpy's own.

    The system's entropy has none.
    """
    if issubclass(kind, random.SystemRandom):
        return False
    return issubclass(kind, (torch.Generator, random.Random)) or (
        kind.__module__.startswith("numpy.random")
        and (hasattr(kind, "bit_generator") or hasattr(kind, "get_state"))
    )


def generator_state(generator: Any) -> Any:
    """State of a generator of torch, python or numpy."""
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, random.Random):
        return generator.getstate()
    if hasattr(generator, "bit_generator"):
        return generator.bit_generator.state
    return generator.get_state()


def set_generator_state(generator: Any, state: Any) -> None:
    """Put back what `generator_state` gave."""
    if isinstance(generator, random.Random):
        generator.setstate(state)
    elif hasattr(generator, "bit_generator"):
        generator.bit_generator.state = state
    else:
        generator.set_state(state)
