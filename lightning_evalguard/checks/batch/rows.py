"""A few rows of what each module returned in a replay, and where two replays differ in them."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.modules import module as _module
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from lightning_evalguard.allow import allowed
from lightning_evalguard.checks.batch.samples import Samples, Span, Spans
from lightning_evalguard.data.batches import tensors
from lightning_evalguard.instruments.dispatch import (
    Op,
    Subscriber,
    aside,
    tensors_in,
    unseen,
)
from lightning_evalguard.instruments.source import PLUMBING, nearest, owner_of

_ROWS, _COLUMNS = 8, 32  # of each result, kept for comparison
_COARSE = (torch.float16, torch.bfloat16)
_OF_MOST = 0.25  # of the bound, where most rows must lie beyond it
# What is scored: the first argument of each.
SCORES = (
    "nll_loss", "cross_entropy", "binary_cross_entropy", "mse_loss", "l1_loss", "huber_loss",
    "kl_div", "_ctc_loss", "argmax",
)  # fmt: skip
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


class Placed(NamedTuple):
    """Where the rows of some samples stand in the results of a replay.

    Attributes:
        spans: By the length of dim 0, and by the first sample of a half.
        samples: How many samples the batch holds.
        graphs: Whether they are graphs, whose whole numbers count nodes of the whole batch.
        fixed: Whether a half was filled up to the length of the batch.
    """

    spans: Spans
    samples: int
    graphs: bool
    fixed: bool

    @classmethod
    def of(
        cls,
        samples: Samples,
        places: Sequence[int],
        starts: Sequence[int],
        fixed: bool = False,
    ) -> Placed:
        """Of a batch that `samples` made of the samples at some places."""
        spans = samples.spans(places, starts)
        return cls(spans, len(places), samples.graphs, fixed)


class Rows(Subscriber):
    """Some rows of what each module returned and the step scored, on demand of each operator.

    Args:
        placed: Where the samples of the batch stand.
        of_operators: Whether rows of what operators gave are kept too: that names the first one
            that mixes samples, and costs several operators for each.
    """

    def __init__(self, placed: Placed, of_operators: bool = False) -> None:
        self.placed = placed
        self.ops: list[Row] = []
        # what modules returned or the step scored, with the number of operators until then
        self.modules: list[tuple[int, Row]] = []
        self._of_operators = of_operators
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
        if not stop:
            with torch.no_grad(), aside, unseen():
                for tensor in (scored_by(op), *_labels_of(op)):
                    if tensor is not None:
                        self._keep(op.func, tensor)
        if not self._of_operators:
            self.ops.append(Row(op.func, (), stop=stop))
            return
        out = next(iter(tensors_in(op.out)), None)
        self.ops.append(self._row(op.func, out, stop))

    def returned(self, outputs: Any, module: nn.Module | None = None) -> None:
        """Keep what a module, or the step itself, returned."""
        for tensor in tensors(outputs):
            if tensor.is_floating_point():
                self._keep(type(module), tensor, module)

    def _keep(
        self, giver: Any, tensor: Tensor, module: nn.Module | None = None
    ) -> None:
        self.modules.append((len(self.ops), self._row(giver, tensor)))

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
        if not self._is_kept(out):
            return Row(giver, shape, {}, stop)
        return Row(giver, shape, self._values(out), stop)

    def _is_kept(self, out: Tensor) -> bool:
        """Whether the rows of a result are those of samples, as far as its shape tells."""
        placed = self.placed
        if not out.dim() or len(out) not in placed.spans or not out.numel():
            return False
        if out.layout is not torch.strided or out.is_meta or out.is_complex():
            return False
        if is_traceable_wrapper_subclass(out) or isinstance(out, FakeTensor):
            return False
        # whole numbers count nodes, and columns of as many may be the samples once more
        counts = placed.graphs and not out.is_floating_point()
        paired = placed.fixed and placed.samples in out.shape[1:]
        return not counts and not paired

    def _values(self, out: Tensor) -> dict[int, Tensor]:
        """What is kept of a result; of one that a module hands on, what is kept already."""
        version = -1 if out.is_inference() else out._version
        place = out.data_ptr()
        last = self._last
        # by the tensor itself: another one may get the address of one that is gone
        same = last is not None and last[0]() is out and last[1:3] == (place, version)
        if last is not None and same and version >= 0:
            return last[3]
        halves = self.placed.spans[len(out)]
        values = {
            start: _few(out, span, self.placed.graphs) for start, span in halves.items()
        }
        self._last = weakref.ref(out), place, version, values
        return values


def _few(out: Tensor, span: Span, spread: bool) -> Tensor:
    """Some elements of some rows: the first ones, or from all over the half."""
    most = _ROWS if out.numel() > len(out) else _ROWS * _COLUMNS
    few = out.detach()[span.first : span.first + span.rows]
    if spread:
        few = few[:: max(1, len(few) // most)]
    few = few[:most]
    if few.ndim != 2:
        few = few.reshape(len(few), -1)
    width = few.shape[1]
    if width > _COLUMNS:
        step = width // _COLUMNS
        few = few[:, : step * _COLUMNS : step]
    return few.clone()


def scored_by(op: Op) -> Tensor | None:
    """What an operator scores: the first argument of a loss or an argmax; None of others."""
    if not op.name.startswith(SCORES):
        return None
    scored = next(iter(tensors_in(op.args[:1])), None)
    if scored is not None and scored.dim() > 1 and op.name.startswith("nll_loss"):
        return scored - scored.mean(1, keepdim=True)  # the logits, up to a constant
    return scored


def _labels_of(op: Op) -> list[Tensor]:
    """Labels that an operator holds against others, or that torchmetrics counts.

    Each number below their length once names the samples of the batch itself: what is held against
    that is found among these, as a contrastive step's nearest neighbour is.
    """
    found = list(tensors_in(op.args[:2]))
    if op.name == "bincount" and is_of_metric():
        return found[:1]
    if op.name not in ("eq", "ne") or len(found) != 2:
        return []
    if found[0].shape != found[1].shape or not found[0].dim():
        return []
    if found[0].numel() != len(found[0]):
        return []
    if any(one.is_floating_point() or _numbers_samples(one) for one in found):
        return []
    return found


def _numbers_samples(labels: Tensor) -> bool:
    if labels.is_meta or labels.layout is not torch.strided:
        return False
    if isinstance(labels, FakeTensor):  # it has no values
        return True
    places = torch.arange(len(labels), device=labels.device)
    return torch.equal(labels.flatten().sort().values, places)


def is_of_metric() -> bool:
    """Whether torchmetrics' own code runs: what it makes of its inputs is its way to count."""
    frame = nearest(sys._getframe(1), PLUMBING)
    return frame is not None and owner_of(frame.f_code.co_filename) == "torchmetrics"


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
    pairs, counts = [], []
    for (count, a), (_, b) in zip(whole.modules, part.modules, strict=False):
        if count > end or a.giver is not b.giver:
            break
        pairs.append((a, b))
        counts.append(count)
    most = whole.placed.graphs
    module = first_differing(pairs, start, most)
    # layers of graphs sort all nodes, to put them back or to take some of each graph
    if module is None or (most and _ends_equal(pairs, counts, start, most)):
        return None
    ops = zip(whole.ops[:compared], part.ops[:compared], strict=False)
    op = first_differing(list(ops), start, most)
    count = whole.modules[module][0]
    if op is not None and op < count:
        if _orders(whole.ops[op].giver) and _ends_equal(pairs, counts, start, most):
            return None
        return ("op", op)
    return ("module", module)


def _orders(giver: Any) -> bool:
    """Whether an operator puts samples in another order: some steps put them back later."""
    return str(giver.__name__).partition(".")[0] in _ORDERS


def _ends_equal(
    pairs: Sequence[tuple[Row, Row]], counts: Sequence[int], start: int, most: bool
) -> bool:
    """Whether the last rows that can be compared are equal: nothing came of the order."""
    both = zip(counts, pairs, strict=True)
    compared = [(at, pair) for at, pair in both if _both(*pair, start) is not None]
    last = [pair for at, pair in compared if at == compared[-1][0]]
    return first_differing(last, start, most) is None


def first_differing(
    pairs: Sequence[tuple[Row, Row]], start: int, most: bool
) -> int | None:
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
    doubtful = ((i, one, two) for i, one, two in found if i in unequal)
    return next((i for i, one, two in doubtful if _far(one, two, 1.0, most)), None)


def differs(a: Row, b: Row, start: int, share: float = 1.0, most: bool = False) -> bool:
    """Whether rows differ by more than (a `share` of) what another kernel or rounding explains.

    Args:
        a: Some rows.
        b: The same ones of another replay.
        start: The half that is looked at.
        share: Of the bound.
        most: Whether most of the rows must: two nodes that score the same are put in one order
            here and in another one there, which changes few graphs.
    """
    both = _both(a, b, start)
    return both is not None and _far(*both, share, most)


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


def _far(one: Tensor, two: Tensor, share: float, most: bool) -> bool:
    if torch.equal(one, two):
        return False
    if most:
        share *= 1.0 if one.dtype in _COARSE else _OF_MOST
        apart = [_far(a, b, share, False) for a, b in zip(one, two, strict=True)]
        return 2 * sum(apart) > len(apart)
    x = one.double()
    y = two.double()
    finite = x.isfinite() & y.isfinite()
    x, y = x[finite], y[finite]
    size = max(float(x.norm()), float(y.norm()))
    coarse = one.dtype in _COARSE
    return size > 0 and float((x - y).norm()) > share * (0.1 if coarse else 0.02) * size
