"""A few rows of what each module returned in a replay, and where two replays differ in them."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules import module as _module
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from lightning_evalguard.allow import allowed
from lightning_evalguard.data.batches import tensors
from lightning_evalguard.instruments.dispatch import (
    Op,
    Subscriber,
    aside,
    tensors_in,
    unseen,
)

_ROWS, _COLUMNS = 8, 32  # of each result, kept for comparison
_COARSE = (torch.float16, torch.bfloat16)
_ORDERS = ("sort", "argsort", "topk", "index", "index_select", "gather")

Place = tuple[Literal["op", "module"], int]


@dataclass(slots=True)
class Row:
    """A few elements of some rows of one result, by what gave it.

    Attributes:
        giver: The operator, or the class of the module that returned it.
        shape: Of the result.
        values: Rows from the start of each half, by the index of the sample there; empty where
            dim 0 is not the batch.
        stop: Whether nothing from it on can be compared.
    """

    giver: Any
    shape: tuple[int, ...]
    values: dict[int, Tensor] = field(default_factory=dict)
    stop: bool = False


class Rows(Subscriber):
    """Some rows of what each module returned, and on demand of what each operator gave.

    Args:
        samples: Length of dim 0 of the batch.
        start: Which sample of the whole batch is its first.
        of_operators: Whether rows of what operators gave are kept too: that names the first one
            that mixes samples, and costs several operators for each.
    """

    def __init__(
        self, samples: int, start: int | None = None, of_operators: bool = False
    ) -> None:
        self.samples = samples
        self.ops: list[Row] = []
        # with the number of operators until then
        self.modules: list[tuple[int, Row]] = []
        self._of_operators = of_operators
        # index in the whole batch -> index in this one
        self._starts = (
            {0: 0, samples // 2: samples // 2} if start is None else {start: 0}
        )
        self._last: tuple[weakref.ref[Tensor], int, int, dict[int, Tensor]] | None = (
            None
        )

    def at(self, place: Place) -> Row:
        """What stands at a place; an empty row where the replay did not get there."""
        kind, index = place
        rows = self.ops if kind == "op" else [row for _, row in self.modules]
        if index < len(rows):
            return rows[index]
        return Row(None, ())

    def after(self, op: Op) -> None:
        # A step that differentiates adapts to its batch, or asks for forces after all is computed.
        stop = op.draws or "backward" in op.name or allowed("batch")
        if not self._of_operators:
            self.ops.append(Row(op.func, (), stop=stop))
            return
        out = next(iter(tensors_in(op.out)), None)
        self.ops.append(self._row(op.func, out, stop))

    def returned(self, outputs: Any, module: nn.Module | None = None) -> None:
        """Keep what a module, or the step itself, returned."""
        for tensor in tensors(outputs):
            if tensor.is_floating_point():
                self.modules.append((len(self.ops), self._row(type(module), tensor)))

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """Hear what every module returns, inside this replay only."""

        def hook(module: nn.Module, args: Any, outputs: Any) -> None:
            if not _is_metric(module):
                with aside, unseen():  # our own operators are none of the step's
                    self.returned(outputs, module)

        handle = _module.register_module_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()

    def _row(self, giver: Any, out: Tensor | None, stop: bool = False) -> Row:
        if out is None:
            return Row(giver, (), {}, stop)
        shape = tuple(out.shape)
        plain = out.layout is torch.strided and not (out.is_meta or out.is_complex())
        plain = plain and not is_traceable_wrapper_subclass(out)
        if not shape or shape[0] != self.samples or out.numel() == 0 or not plain:
            return Row(giver, shape, {}, stop)
        return Row(giver, shape, self._values(out), stop)

    def _values(self, out: Tensor) -> dict[int, Tensor]:
        """What is kept of a result; of one that a module hands on, what is kept already."""
        version = -1 if out.is_inference() else out._version
        place = out.data_ptr()
        last = self._last
        # by the tensor itself: another one may get the address of one that is gone
        same = last is not None and last[0]() is out and last[1:3] == (place, version)
        if last is not None and same and version >= 0:
            return last[3]
        values = {s: _few(out, i, self.samples) for s, i in self._starts.items()}
        self._last = weakref.ref(out), place, version, values
        return values


def _few(out: Tensor, index: int, samples: int) -> Tensor:
    few = out.detach()[index : index + min(_ROWS, samples // 2 or 1)]
    if few.ndim != 2:
        few = few.reshape(len(few), -1)
    width = few.shape[1]
    if width > _COLUMNS:
        step = width // _COLUMNS
        few = few[:, : step * _COLUMNS : step]
    return few.clone()


def _is_metric(module: nn.Module) -> bool:
    return any(c.__module__.startswith("torchmetrics.") for c in type(module).__mro__)


def first_mixing(whole: Rows, part: Rows, start: int) -> Place | None:
    """Where rows first depend on the other samples, if any module returns rows that do."""
    end = min(len(whole.ops), len(part.ops))
    compared = end
    for index, (a, b) in enumerate(zip(whole.ops, part.ops, strict=False)):
        if a.stop or b.stop:
            end = compared = index
            break
        # a loop over dim 0: only what modules return still compares
        if a.giver is not b.giver:
            end = next((i for i, r in enumerate(whole.ops) if r.stop), len(whole.ops))
            compared = index
            break
    pairs = []
    for (count, a), (_, b) in zip(whole.modules, part.modules, strict=False):
        if count > end or a.giver is not b.giver:
            break
        pairs.append((a, b))
    module = first_differing(pairs, start)
    if module is None:
        return None
    ops = zip(whole.ops[:compared], part.ops[:compared], strict=False)
    op = first_differing(list(ops), start)
    count = whole.modules[module][0]
    if op is not None and op < count:
        if _orders(whole.ops[op].giver) and _ends_equal(pairs, start):
            return None
        return ("op", op)
    return ("module", module)


def _orders(giver: Any) -> bool:
    """Whether an operator puts samples in another order: some steps put them back later."""
    return str(giver.__name__).partition(".")[0] in _ORDERS


def _ends_equal(pairs: Sequence[tuple[Row, Row]], start: int) -> bool:
    """Whether the last rows that can be compared are equal: nothing came of the order."""
    compared = [pair for pair in pairs if _both(*pair, start) is not None]
    return first_differing(compared[-1:], start) is None


def first_differing(pairs: Sequence[tuple[Row, Row]], start: int) -> int | None:
    """Index of the first pair of rows that `differs`: most are equal, so all are asked at once."""
    found = []
    for index, (a, b) in enumerate(pairs):
        both = _both(a, b, start)
        if both is not None:
            found.append((index, *both))
    groups: dict[
        tuple[torch.dtype, torch.device], list[tuple[int, Tensor, Tensor]]
    ] = {}
    for one in found:
        groups.setdefault((one[1].dtype, one[1].device), []).append(one)
    unequal: set[int] = set()
    for group in groups.values():
        x = torch.cat([one.reshape(-1) for _, one, _ in group])
        y = torch.cat([two.reshape(-1) for _, _, two in group])
        if not torch.equal(x, y):
            unequal |= {index for index, *_ in group}
    return next((i for i, one, two in found if i in unequal and _far(one, two)), None)


def differs(a: Row, b: Row, start: int, share: float = 1.0) -> bool:
    """Whether rows differ by more than (a `share` of) what another kernel or rounding explains."""
    both = _both(a, b, start)
    return both is not None and _far(*both, share)


def _both(a: Row, b: Row, start: int) -> tuple[Tensor, Tensor] | None:
    """The values that two rows share; None where they cannot be compared."""
    if start not in a.values or start not in b.values or a.shape[1:] != b.shape[1:]:
        return None
    one = a.values[start]
    two = b.values[start]
    if one is two or one.dtype != two.dtype:
        if one is two:
            return None
        return (one.double(), two.double())
    rows = min(len(one), len(two))
    if len(one) == len(two):
        return (one, two)
    return (one[:rows], two[:rows])


def _far(one: Tensor, two: Tensor, share: float = 1.0) -> bool:
    if torch.equal(one, two):
        return False
    x = one.double()
    y = two.double()
    finite = x.isfinite() & y.isfinite()
    x, y = x[finite], y[finite]
    size = max(float(x.norm()), float(y.norm()))
    coarse = one.dtype in _COARSE
    return size > 0 and float((x - y).norm()) > share * (0.1 if coarse else 0.02) * size
