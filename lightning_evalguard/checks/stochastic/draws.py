"""The operators of a step that draw, and what they gave in each replay."""

from __future__ import annotations

import re
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from lightning_evalguard.allow import allowed
from lightning_evalguard.instruments.dispatch import (
    ModuleNames,
    Op,
    Subscriber,
    tensors_in,
)
from lightning_evalguard.instruments.generators import torch_generators
from lightning_evalguard.instruments.replay import replaying
from lightning_evalguard.instruments.source import Site, owner_of
from lightning_evalguard.model.attributes import where_hidden


@dataclass
class Draw:
    """One operator that drew random numbers, where it stands, and what fixes it.

    Attributes:
        index: Of the operator in the step.
        op: Its name.
        dropout: Whether it is dropout or a kin of it.
        private: Whether it drew from a generator of its own.
        site: The nearest place outside the libraries.
        subject: Qualified name of the module, or how to write where an unregistered one hides.
        module: Its class.
        remedy: What fixes the module, where that fixes the draw.
    """

    index: int
    op: str
    dropout: bool
    private: bool
    site: Site | None
    subject: str
    module: type[nn.Module]
    remedy: str = ""


class Draws(Subscriber):
    """Every draw of a step that is not allowed, and in a replay a sample of what each op gave."""

    def __init__(self, root: nn.Module) -> None:
        self.draws: list[Draw] = []
        self.shared: set[int] = set()  # all operators that drew from a shared generator
        self.samples: list[Sample] = []
        self._root = root
        self._names = ModuleNames(root)
        self._mask: tuple[Draw, Any, Any] | None = None

    def after(self, op: Op) -> None:
        if self._mask is not None:
            draw, mask, keep = self._mask
            self._mask = None
            draw.dropout |= _rescales(op, mask, keep)
        meant = allowed("stochastic")
        if replaying():
            self.samples.append(Sample.of(op, meant))
        if not op.draws or isinstance(op.out, FakeTensor):
            return
        if not _is_private(op):
            self.shared.add(op.index)
        # A module in train mode is for the `modes` check to find; what it draws follows from that.
        inner = op.module
        if meant or (inner is not None and inner in self._names and inner.training):
            return
        draw = placed(op, self._root, self._names)
        self.draws.append(draw)
        if op.name == "bernoulli_":
            self._mask = (draw, op.out, op.arguments.get("p"))


_FAMILY = re.compile(r"dropout|rrelu|attention|^_?(lstm|gru|rnn)|_rnn")
_DROPS = re.compile(
    r"drop_?path|stochastic_?depth|drop_?block|drop_?connect", re.IGNORECASE
)


def _is_dropout(op: Op, module: nn.Module) -> bool:
    """Whether a draw is dropout or a kin of it; its operator may be a plain `bernoulli_`."""
    if _FAMILY.search(op.name):
        return True
    for frame in op.stack():
        owner = owner_of(frame.f_code.co_filename)
        if _DROPS.search(frame.f_code.co_name):
            return True
        if owner != "torch":
            break
        if op.name.startswith("bernoulli") and "drop" in frame.f_code.co_name:
            return True
    return bool(_DROPS.search(type(module).__name__))


def _rescales(op: Op, mask: Any, keep: Any) -> bool:
    """Whether `op` divides a fresh mask by its keep probability, as ATen's dropout does."""
    return (
        op.name in ("div_", "div")
        and bool(op.args)
        and op.args[0] is mask
        and isinstance(keep, float)
        and op.args[1:2] == (keep,)
    )


def _is_private(op: Op) -> bool:
    generator = op.kwargs.get("generator")
    return generator is not None and all(
        generator is not g for _, g in torch_generators()
    )


def placed(op: Op, root: nn.Module, names: ModuleNames) -> Draw:
    """Where a draw stands, and what fixes it."""
    chain = list(op.modules())
    subject, module = names.nearest(chain)
    remedy = ""
    if any(
        owner_of(frame.f_code.co_filename) == "torchmetrics" for frame in op.stack()
    ):
        # it resamples what it is given: the model draws nothing
        remedy = SEED_IT
    elif chain and chain[0] not in names:
        subject, remedy = where_hidden(chain, root, names, op)
        module = chain[0]
    elif any(_in_init(frame) for frame in op.stack()):
        remedy = "Create the module in `__init__`."
    elif _GAUSSIAN.search(op.name):
        remedy = _mean_of(op)
    else:
        remedy = _instead(op)
    return Draw(
        op.index,
        op.name,
        _is_dropout(op, module),
        _is_private(op),
        op.site,
        subject,
        type(module),
        remedy,
    )


SEED_IT = (
    "Update it under `torch.random.fork_rng(devices=[])`, after `torch.manual_seed(0)`."
)
_CHOICES = frozenset({"multinomial", "gumbel_softmax"})


def _instead(op: Op) -> str:
    """What an evaluation does where the draw cannot be left out; empty where it can."""
    calls = {op.name}
    for frame in op.stack():
        if owner_of(frame.f_code.co_filename) != "torch":
            break
        calls.add(frame.f_code.co_name)
    if calls & _CHOICES:
        return (
            "Take the most probable one in evaluation, e.g. `logits.argmax(-1)`, or draw only in "
            "training."
        )
    if any("fractional_max_pool" in call for call in calls):
        return "Use a pool that draws nothing, e.g. `nn.AdaptiveMaxPool2d`."
    return ""


_GAUSSIAN = re.compile(r"^(randn|normal)")
_MEAN = re.compile(r"^(z_?)?(mu|mean|means|loc)(_?z)?$")
_SPREAD = re.compile(r"^(z_?)?(std|sigma|scale|log_?var|log_?std|log_?sigma)(_?z)?$")


def _mean_of(op: Op) -> str:
    """What fixes a draw around a mean, as a variational autoencoder has it; empty for another."""
    for frame in op.stack():
        code = frame.f_code
        if owner_of(code.co_filename) in ("torch", "stdlib"):
            continue
        used = (*code.co_varnames, *code.co_names)
        if "rsample" in used:
            return "Take the mean in evaluation: `z = q.rsample() if self.training else q.mean`."
        mean = next((name for name in used if _MEAN.match(name)), None)
        if mean is not None and any(_SPREAD.match(name) for name in used):
            drawn = f"{mean} + std * eps"
            return f"Take the mean in evaluation: `z = {drawn} if self.training else {mean}`."
        break
    return ""


def _in_init(frame: FrameType) -> bool:
    return frame.f_code.co_filename == nn.init.__file__ or (
        frame.f_code.co_name in ("reset_parameters", "_reset_parameters")
    )


_SAMPLED = 64
_EMPTY = frozenset(
    {
        "empty",
        "empty_like",
        "new_empty",
        "empty_strided",
        "new_empty_strided",
        "empty_permuted",
    }
)


@dataclass
class Sample:
    """A few elements of what one operator gave."""

    func: Any
    values: Tensor | None
    meant: bool

    @classmethod
    def of(cls, op: Op, meant: bool) -> Sample:
        """Sample the first result; memory that nobody has written yet is zeroed first."""
        out = next(iter(tensors_in(op.out)), None)
        while out is not None and hasattr(out, "__tensor_flatten__"):
            # a wrapper subclass, such as DTensor: the first tensor inside speaks for it
            out = getattr(out, out.__tensor_flatten__()[0][0])
        if (
            out is None
            or out.numel() == 0
            or out.layout is not torch.strided
            or out.is_meta
        ):
            return cls(op.func, None, meant)
        if isinstance(out, FakeTensor):  # a shape that is computed, without values
            return cls(op.func, None, meant)
        if op.name in ("resize_", "resize_as_") or getattr(op.func, "is_view", False):
            # What is new of it nobody has written yet, and a view of that shows no more.
            return cls(op.func, None, meant)
        # onto a storage that is about to be filled, in a deep copy
        if op.name == "set_":
            return cls(op.func, None, meant)
        try:
            if op.name in _EMPTY:
                out.detach().zero_()
            flat = out.detach().reshape(-1)
            step = max(1, flat.numel() // _SAMPLED)
            return cls(op.func, flat[::step][:_SAMPLED].clone(), meant)
        except (RuntimeError, NotImplementedError):
            # a layout or a subclass without these
            return cls(op.func, None, meant)

    def differs(self, other: Sample) -> bool:
        """Whether the values differ by more than the order of a sum explains."""
        a = self.values
        b = other.values
        if a is None or b is None or a.shape != b.shape:
            return False
        if a.dtype == b.dtype and torch.equal(a, b):
            return False
        if not a.is_floating_point():
            return True
        a, b = a.double(), b.double()
        scale = float(a.nan_to_num(0.0, 0.0, 0.0).abs().max())
        return not torch.allclose(a, b, rtol=1e-3, atol=1e-4 * scale, equal_nan=True)


def first_difference(first: Draws, second: Draws) -> int | None:
    """Index of the first operator that gave other values in a replay from the same state.

    What nothing later took up is memory that nobody had written, or a time that was measured.
    """
    found = None
    last = min(len(first.samples), len(second.samples)) - 1
    for index, (a, b) in enumerate(zip(first.samples, second.samples, strict=False)):
        if a.func is not b.func or a.meant or b.meant:
            break
        if not a.differs(b):
            continue
        if found is not None:
            return found
        if a.values is not None and a.values.numel() > 1:
            found = index
            if index == last:
                return index
    return None


def equal_at(first: Draws, second: Draws, indices: set[int]) -> set[int]:
    """Those of `indices` whose operators gave the same values in both."""
    pairs = list(zip(first.samples, second.samples, strict=False))
    return {i for i in indices if i < len(pairs) and _gave_the_same(*pairs[i])}


def _gave_the_same(one: Sample, other: Sample) -> bool:
    is_known = one.func is other.func and one.values is not None
    return is_known and not one.differs(other)


class At(Subscriber):
    """The place of one operator, known by its index."""

    def __init__(self, root: nn.Module, index: int) -> None:
        self.place: Draw | None = None
        self._index = index
        self._names = ModuleNames(root)

    def after(self, op: Op) -> None:
        if op.index == self._index:
            subject, module = self._names.nearest(op.modules())
            self.place = Draw(
                op.index, op.name, False, True, op.site, subject, type(module)
            )
