"""What a step computes at a sample's own positions, kept to be compared with another run of it."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as _module
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from lightning_evalguard.allow import allowed
from lightning_evalguard.checks.batch.padding import Padded
from lightning_evalguard.checks.batch.rows import SCORES, scored_by
from lightning_evalguard.data.batches import tensors
from lightning_evalguard.instruments.dispatch import (
    Op,
    Subscriber,
    aside,
    storage_key,
    tensors_in,
)
from lightning_evalguard.model.tensors import is_metric

_FEW = 8  # elements kept along a dimension that padding does not make longer
# elements by which a dimension may be longer than the padded one: borders, a [CLS]
_NEAR = 16
_MOST = 1 << 20  # elements of one kept result
# They look over the end of a sequence by their kernel, whatever is masked.
_REACHES = ("conv", "max_pool", "avg_pool", "unfold", "im2col")
# They give what another operator computed.
_VIEWS = frozenset({"select", "slice", "index", "cat", "stack", "view", "transpose", "permute",
                    "unbind", "squeeze", "unsqueeze", "_unsafe_view", "clone", "t"})  # fmt: skip
_OF_LOSS = 1e-3  # relative distance of two means over more and fewer samples
_COARSE = (torch.float16, torch.bfloat16)


@dataclass
class KeptElements:
    """Some elements of one tensor, every position among them.

    Attributes:
        giver: The operator, or the class of the module, that gave it.
        name: Of the operator.
        values: None where it cannot be compared.
        stop: Whether nothing from it on can be.
    """

    giver: Any
    name: str = ""
    values: Tensor | None = None
    stop: bool = False


@dataclass
class Returned:
    """What one module returned.

    Attributes:
        key: The module and which of its calls.
        ops: How many operators had run.
        outermost: Whether no other module called it.
        kept: Its tensors.
    """

    key: tuple[int, int]
    ops: int
    outermost: bool
    kept: list[KeptElements]


@dataclass
class Own(Subscriber):
    """One run of a step on a sample and a share of its padding.

    Attributes:
        padded: The batch.
        share: Of the padding.
        beside: Whether a longer sample stands before it in the batch.
        ops: What each operator gave.
        modules: What each module returned.
        results: What the step returned and scored, in full.
        losses: Scalars that sum up what is scored, each with the number of its operator.
        coarse: Whether anything was computed in a type of few digits.
    """

    padded: Padded
    share: float
    beside: bool = False
    ops: list[KeptElements] = field(default_factory=list)
    modules: list[Returned] = field(default_factory=list)
    results: list[Tensor] = field(default_factory=list)
    losses: list[tuple[int, Tensor]] = field(default_factory=list)
    coarse: bool = False
    draws: bool = False
    _unreduced: int | None = None  # memory of what a loss function gave one by one
    _depth: int = 0
    _calls: Counter[int] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        cuts = list(chain.from_iterable(self.padded.cuts.values()))
        # of every run, so that the same elements are kept in each
        shares = itertools.product(cuts, (0.0, 0.5, 1.0))
        self._sizes = {cut.at(share) for cut, share in shares}
        self.ends = {(c.own, c.at(self.share)) for c in cuts}

    def clear(self) -> None:
        """Forget a run that failed."""
        for kept in (self.ops, self.modules, self.results, self.losses, self._calls):
            kept.clear()
        self._depth = 0
        self._unreduced = None

    def after(self, op: Op) -> None:
        out = next(iter(tensors_in(op.out)), None)
        if op.draws:
            self.draws = True
        if out is not None and (out.dtype in _COARSE or "quantized" in op.name):
            self.coarse = True
        if not self.draws and not allowed("batch"):
            self._scored(op)
        self._summed(op, out)
        stop = self.draws or "backward" in op.name or allowed("batch")
        self.ops.append(
            KeptElements(op.func, op.name, None if stop else self._some(out), stop)
        )

    def returned(self, outputs: Any) -> None:
        """Keep what the step returned."""
        if self.draws:
            return
        for tensor in tensors(outputs):
            self._result(tensor)

    def _scored(self, op: Op) -> None:
        with torch.no_grad(), aside:
            scored = scored_by(op)
            if scored is not None:
                self._result(scored)

    def _summed(self, op: Op, out: Tensor | None) -> None:
        """Keep a loss over all samples: of a loss function, or the mean of what one gave."""
        if out is None or self.draws or not _is_plain(out) or allowed("batch"):
            return
        loss = op.name.startswith(SCORES)
        if out.dim():
            if loss:
                self._unreduced = storage_key(out)
        elif loss or (op.name in ("mean", "sum") and self._is_unreduced(op)):
            self.losses.append((len(self.ops), out.detach().clone()))

    def _is_unreduced(self, op: Op) -> bool:
        given = next(iter(tensors_in(op.args[:1])), None)
        return given is not None and storage_key(given) == self._unreduced is not None

    def _result(self, tensor: Tensor) -> None:
        if tensor.dim() and tensor.numel() <= _MOST and _is_plain(tensor):
            self.results.append(tensor.detach().clone())

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """Hear what every module returns, inside this run only."""

        def enters(module: nn.Module, args: Any) -> None:
            self._depth += 1

        def leaves(module: nn.Module, args: Any, outputs: Any) -> None:
            self._depth = max(0, self._depth - 1)
            if is_metric(module):
                return
            with aside:
                kept = [
                    KeptElements(type(module), "", self._some(t))
                    for t in tensors(outputs)
                ]
            self._calls[id(module)] += 1
            key = (id(module), self._calls[id(module)])
            self.modules.append(Returned(key, len(self.ops), self._depth == 0, kept))
            self._heard(module)

        handles = (
            _module.register_module_forward_pre_hook(enters),
            _module.register_module_forward_hook(leaves),
        )
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _heard(self, module: nn.Module) -> None:
        """What a module returned was kept."""

    def _some(self, tensor: Tensor | None) -> Tensor | None:
        """Every position of a tensor, a few elements of each."""
        if tensor is None or not _is_plain(tensor) or not tensor.dim():
            return None
        some = tensor.detach()
        for dim, size in enumerate(some.shape):
            if size > _FEW and not self._counts_positions(size):
                some = some.narrow(dim, 0, size - size % _FEW)
                some = torch.unflatten(some, dim, (_FEW, -1)).select(dim + 1, 0)
        if some.numel() <= _MOST:
            return some.clone()
        return None

    def _counts_positions(self, size: int) -> bool:
        return any(_comes_of(size, positions) for positions in self._sizes)


def _comes_of(size: int, positions: int) -> bool:
    """Whether a dimension may count so many positions: nearly, twice, or in groups."""
    if abs(size - positions) <= _NEAR or size == 2 * positions:
        return True
    return size > 0 and positions % size == 0


def _is_plain(tensor: Tensor) -> bool:
    plain = (
        tensor.is_floating_point()
        and tensor.layout is torch.strided
        and not tensor.is_meta
    )
    return plain and tensor.numel() > 0 and not is_traceable_wrapper_subclass(tensor)


# --- two runs ------------------------------------------------------------------------------------


@dataclass
class Comparison:
    """Two runs of one step, at the positions that they share.

    Attributes:
        a: The one with less padding.
        b: The other.
        tolerance: The relative distance that rounding explains.
    """

    a: Own
    b: Own
    tolerance: float

    def distance(self) -> float:
        """The largest relative distance between results, else between what the last module gave."""
        pairs = list(zip(self.a.results, self.b.results, strict=False))
        if not pairs:
            pairs = self._last_returned()
        found = [self._apart(x, y) for x, y in pairs]
        return max((d for d in found if d is not None), default=0.0)

    def loss(self) -> tuple[str, int] | None:
        """The first loss over all that another amount of padding changes.

        None where a longer sample stands beside: such a loss is over that one too.
        """
        if self.a.beside or self.b.beside:
            return None
        for (_, x), (index, y) in zip(self.a.losses, self.b.losses, strict=False):
            apart = _distance(x.reshape(1), y.reshape(1))
            if apart is not None and apart > max(_OF_LOSS, 10 * self.tolerance):
                return "op", index
        return None

    def _last_returned(self) -> list[tuple[Tensor, Tensor]]:
        for x, y in zip(
            reversed(self._outer(self.a)), reversed(self._outer(self.b)), strict=False
        ):
            if x.key[0] != y.key[0]:
                break
            pairs = [(p.values, q.values) for p, q in zip(x.kept, y.kept, strict=False)]
            found = [(p, q) for p, q in pairs if p is not None and q is not None]
            if found:
                return found
        return []

    def _outer(self, run: Own) -> list[Returned]:
        return [r for r in run.modules if r.outermost and not run.draws]

    def culprit(self) -> tuple[str, int] | None:
        """Where own positions first differ: ``("op", n)`` or ``("module", n)``, of run `b`.

        None where it stands behind a draw or inside ``allow("batch")``.
        """
        by_key = {r.key: r for r in self.a.modules}
        start = (0, 0)
        for index, there in enumerate(self.b.modules):
            here = by_key.get(there.key)
            if here is None:
                continue
            if self._differs(here.kept[:1], there.kept[:1]):
                return self._between(start, (here.ops, there.ops)) or ("module", index)
            start = (here.ops, there.ops)
        end = len(self.a.ops), len(self.b.ops)
        return self._between(start, end) or self._last_state(end[1])

    def _between(
        self, start: tuple[int, int], end: tuple[int, int]
    ) -> tuple[str, int] | None:
        """The first operator that differs, as long as both runs do the same."""
        ops = zip(
            self.a.ops[start[0] : end[0]], self.b.ops[start[1] : end[1]], strict=False
        )
        for index, (x, y) in enumerate(ops, start[1]):
            if x.giver is not y.giver or x.stop or y.stop:
                return None
            if self._differs([x], [y]):
                state = None
                if y.name in _VIEWS:
                    state = self._last_state(start[1])
                return state or ("op", index)
        return None

    def _last_state(self, ops: int) -> tuple[str, int] | None:
        """The first module until then of which a further output differs: its last state."""
        by_key = {r.key: r for r in self.a.modules}
        for index, there in enumerate(self.b.modules):
            here = by_key.get(there.key)
            if (
                here is not None
                and there.ops <= ops
                and self._differs(here.kept, there.kept)
            ):
                return "module", index
        return None

    def reaches(self, place: tuple[str, int] | None) -> bool:
        """Whether what differs there is the end of a sequence, which a kernel looks over."""
        if place is None or place[0] != "op":
            return False
        here = self.b.ops[place[1]]
        if not any(word in here.name for word in _REACHES):
            return False
        return here.values is not None and any(n > _FEW for n in here.values.shape[2:])

    def _differs(self, a: list[KeptElements], b: list[KeptElements]) -> bool:
        for x, y in zip(a, b, strict=False):
            if x.values is not None and y.values is not None:
                apart = self._apart(x.values, y.values)
                if apart is not None and apart > self.tolerance:
                    return True
        return False

    def _apart(self, a: Tensor, b: Tensor) -> float | None:
        """Relative distance at own positions; None where the two have no common shape."""
        found = [
            d for x, y in self._aligned(a, b) if (d := _distance(x, y)) is not None
        ]
        return min(found, default=None)

    def _aligned(self, a: Tensor, b: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """The own positions of both, in each way in which they may be laid out."""
        if a.dim() != b.dim():
            return
        yield self._cut(a, b)
        if a.shape[0] == b.shape[0]:
            return
        # sample after sample in one dimension, or by position
        for n, m in self._flattened(a.shape[0], b.shape[0]):
            yield self._cut(_split(a, -1, n), _split(b, -1, m))
            yield self._cut(_split(a, n, -1), _split(b, m, -1))

    def _flattened(self, a: int, b: int) -> Iterator[tuple[int, int]]:
        """How many positions a sample may have where a dimension holds all samples' positions.

        A few less or more than the sample: each next token is predicted by the ones before it.
        """
        pairs = itertools.product(self.a.ends, self.b.ends)
        ends = [(n, m) for (own, n), (other, m) in pairs if own == other]
        for (n, m), more in itertools.product(ends, range(-_NEAR, _NEAR + 1)):
            n, m = n + more, m + more
            if n < 1 or m < 1 or a % n or b % m:
                continue
            # as many samples in both, or one beside them
            if not more or b // m - a // n in (0, 1):
                yield n, m

    def _cut(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        rows_cut = not self.b.beside
        for dim, (n, m) in enumerate(zip(a.shape, b.shape, strict=True)):
            if n == m:
                continue
            size = self._own_of(n, m)
            at_end = self.a.padded.left
            if not rows_cut and m == n + 1:
                rows_cut = True
                size = n
                at_end = True
            a = _side(a, dim, size, at_end)
            b = _side(b, dim, size, at_end)
        return a, b

    def _own_of(self, n: int, m: int) -> int:
        """How many of two numbers of positions are the sample's own."""
        for own, end in self.a.ends:
            for other, to in self.b.ends:
                if own == other and n - m == end - to:
                    return max(1, n - end + own)
        own, end = max(self.a.ends, key=lambda pair: pair[1])
        return max(1, min(n, m) * own // end)  # every so many positions one


def _split(tensor: Tensor, *sizes: int) -> Tensor:
    return torch.unflatten(tensor, 0, sizes)


def _side(tensor: Tensor, dim: int, size: int, at_end: bool) -> Tensor:
    return tensor.narrow(dim, tensor.shape[dim] - size if at_end else 0, size)


def _distance(a: Tensor, b: Tensor) -> float | None:
    if a.shape != b.shape or not a.numel():
        return None
    if torch.equal(a, b):
        return 0.0
    x = a.double()
    y = b.double()
    finite = x.isfinite() & y.isfinite()
    x, y = x[finite], y[finite]
    size = max(float(x.norm()), float(y.norm()))
    if size > 0:
        return float((x - y).norm()) / size
    return 0.0


__all__ = ["Comparison", "Own"]
