"""Does a sample get the same outputs whatever else is in its batch?"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as _module

from lightning_evalguard._allow import allowed
from lightning_evalguard._dispatch import ModuleNames, Op, Subscriber, tensors_in
from lightning_evalguard._replay import Look
from lightning_evalguard._source import Site
from lightning_evalguard.checks import Check, Moment
from lightning_evalguard.report import Finding

_FEWEST = 4  # samples of a batch that is worth halving
_ROWS, _COLUMNS = 8, 32  # of each result, kept for comparison


class BatchCheck(Check):
    """The `batch` check: in a replay, the first half of the batch must give the same rows alone.

    Only what a module returns is judged, row by row, and only until the first random draw or the
    first comparison of every sample with every other (a contrastive loss). Batch norm that
    normalises with the batch is certain; any other mixing is a suspicion, for dim 0 may be
    something else than samples.
    """

    name = "batch"

    def __init__(self) -> None:
        self._root: nn.Module | None = None
        self.notes: list[str] = []

    def open(self, root: nn.Module, now: Moment) -> Iterable[Finding]:
        self._root = root
        return ()

    def close(self, now: Moment) -> Iterable[Finding]:
        self._root = None
        return ()

    def tripped(self) -> bool:
        """Never: only a replay can tell."""
        return False

    def watch(self, now: Moment) -> Subscriber:
        """Nothing of the shared showing: this check replays under its own hooks."""
        return Subscriber()

    def saw(self, now: Moment, seen: Subscriber | None, look: Look | None) -> Iterable[Finding]:
        """Run the step on half of the batch and compare."""
        if look is None or self._root is None or not look.args:
            return ()
        samples = sample_count(look.args[0])
        if samples is None or samples < _FEWEST:
            why = "its tensors do not share dim 0" if samples is None else "it has too few samples"
            self.notes.append(f"batch: the first batch was not halved, {why}")
            return ()
        half = samples // 2
        whole, part = Rows(samples), Rows(half)
        rest = look.args[1:]
        for rows, batch in ((whole, None), (part, _first(look.args[0], half, samples))):
            with rows.hooks():
                outcome = look.again(rows, args=None if batch is None else (batch, *rest))
            if outcome.error is not None:
                error = type(outcome.error).__name__
                self.notes.append(f"batch: the step does not run on half of the batch ({error})")
                return ()
            rows.returned(outcome.outputs)
        at = first_mixing(whole, part)
        if at is None:
            return ()
        # The same shapes, so the same kernels: what differs now differs by the other samples.
        other = _Confirm(self._root, whole, at)
        with other.rows.hooks():
            look.again(other.rows, other, args=(_repeated(look.args[0], half, samples), *rest))
        return [_finding(now, other)] if other.differs else ()


# what is kept of each result


@dataclass
class Row:
    """A few elements of the first rows of one result, by what gave it.

    Attributes:
        giver: The operator, or the class of the module that returned it.
        shape: Of the result.
        values: (rows, columns), or None where dim 0 is not the batch.
        stop: Whether nothing after it can be compared.
    """

    giver: Any
    shape: tuple[int, ...]
    values: Tensor | None
    stop: bool = False


class Rows(Subscriber):
    """The first rows of what each operator gave and each module returned.

    Args:
        samples: Length of dim 0 of the batch.
    """

    def __init__(self, samples: int) -> None:
        self.samples = samples
        self.ops: list[Row] = []
        self.modules: list[tuple[int, Row]] = []  # with the number of operators until then

    def after(self, op: Op) -> None:
        out = next(iter(tensors_in(op.out)), None)
        self.ops.append(self._row(op.func, out, op.draws or allowed("batch")))

    def returned(self, outputs: Any, giver: Any = None) -> None:
        """Keep what a module, or the step itself, returned."""
        for tensor in _tensors(outputs):
            self.modules.append((len(self.ops), self._row(giver, tensor)))

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """Hear what every module returns, inside this replay only."""

        def hook(module: nn.Module, args: Any, outputs: Any) -> None:
            if not _is_metric(module):
                self.returned(outputs, type(module))

        handle = _module.register_module_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()

    def _row(self, giver: Any, out: Tensor | None, stop: bool = False) -> Row:
        if out is None:
            return Row(giver, (), None, stop)
        shape = tuple(out.shape)
        if not shape or shape[0] != self.samples or out.numel() == 0 or not _plain(out):
            return Row(giver, shape, None, stop)
        rows = min(_ROWS, self.samples)
        flat = out.detach()[:rows].reshape(rows, -1)
        step = max(1, flat.shape[1] // _COLUMNS)
        return Row(giver, shape, flat[:, ::step][:, :_COLUMNS].clone(), stop)


def first_mixing(whole: Rows, part: Rows) -> int | None:
    """Index of the first operator whose rows depend on the other samples, if a module tells."""
    differing = None
    for index, (a, b) in enumerate(zip(whole.ops, part.ops, strict=False)):
        if a.giver is not b.giver or a.stop or b.stop or _pairwise(a, b, whole, part):
            end = index
            break
        if differing is None and _differs(a, b):
            differing = index
    else:
        end = min(len(whole.ops), len(part.ops))
    if differing is None:
        return None
    for (count, a), (_, b) in zip(whole.modules, part.modules, strict=False):
        if count > end or a.giver is not b.giver:
            return None
        if count > differing and _differs(a, b):
            return differing
    return None


def _pairwise(a: Row, b: Row, whole: Rows, part: Rows) -> bool:
    """Whether a result holds one entry for each pair of samples."""
    return len(a.shape) == len(b.shape) and (
        sum((m, n) == (whole.samples, part.samples) for m, n in zip(a.shape, b.shape, strict=True))
        > 1
        and a.shape[0] == whole.samples
    )


def _differs(a: Row, b: Row) -> bool:
    """Whether rows differ by more than another kernel or another rounding explains."""
    if a.values is None or b.values is None or a.shape[1:] != b.shape[1:]:
        return False
    rows = min(len(a.values), len(b.values))
    x, y = a.values[:rows].double(), b.values[:rows].double()
    finite = x.isfinite() & y.isfinite()
    x, y = x[finite], y[finite]
    size = max(float(x.norm()), float(y.norm()))
    coarse = a.values.dtype in (torch.float16, torch.bfloat16)
    return size > 0 and float((x - y).norm()) > (0.1 if coarse else 0.02) * size


class _Confirm(Subscriber):
    """Whether, and where, one operator gives its first rows otherwise among other samples."""

    def __init__(self, root: nn.Module, whole: Rows, index: int) -> None:
        self.rows = Rows(whole.samples)
        self.differs = False
        self.op = ""
        self.site: Site | None = None
        self.subject: str | None = None
        self.module: nn.Module | None = None
        self._names = ModuleNames(root)
        self._whole = whole
        self._index = index

    def after(self, op: Op) -> None:
        if op.index == self._index:
            self.differs = _differs(self._whole.ops[op.index], self.rows.ops[op.index])
            self.op, self.site = op.name, op.site
            self.subject, self.module = self._names.nearest(op)
            # `modes` answers for a module in train mode
            self.differs &= self.module is None or not self.module.training


# batches


def sample_count(batch: Any) -> int | None:
    """Length of dim 0 that all tensors of a batch share; None where they share none."""
    lengths = {len(t) for t in _leaves(batch) if isinstance(t, Tensor) and t.dim()}
    return lengths.pop() if len(lengths) == 1 else None


def _first(batch: Any, half: int, samples: int) -> Any:
    return _map(batch, samples, lambda t: t[:half])


def _repeated(batch: Any, half: int, samples: int) -> Any:
    """The first half once more in the place of the second."""

    def repeat(items: Any) -> Any:
        if isinstance(items, Tensor):
            return torch.cat([items[:half], items[:half], items[: samples - 2 * half]])
        return [*items[:half], *items[:half], *items[: samples - 2 * half]]

    return _map(batch, samples, repeat)


def _map(batch: Any, samples: int, take: Callable[[Any], Any]) -> Any:
    """`batch` with `take` applied to every tensor, and to every list with an item a sample."""
    if isinstance(batch, Tensor):
        return take(batch) if batch.dim() else batch
    if isinstance(batch, dict):
        return {k: _map(v, samples, take) for k, v in batch.items()}
    if isinstance(batch, (list, tuple)):
        one_each = len(batch) == samples and not any(
            isinstance(leaf, Tensor) for leaf in _leaves(batch)
        )
        items = take(batch) if one_each else [_map(v, samples, take) for v in batch]
        if isinstance(batch, tuple):
            return type(batch)(*items) if hasattr(batch, "_fields") else tuple(items)
        return list(items)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        changed = {
            f.name: _map(getattr(batch, f.name), samples, take) for f in dataclasses.fields(batch)
        }
        return dataclasses.replace(batch, **changed)
    return batch


def _leaves(batch: Any) -> Iterator[Any]:
    if isinstance(batch, dict):
        batch = list(batch.values())
    elif dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        batch = [getattr(batch, f.name) for f in dataclasses.fields(batch)]
    if isinstance(batch, (list, tuple)):
        for item in batch:
            yield from _leaves(item)
    else:
        yield batch


def _tensors(outputs: Any) -> Iterator[Tensor]:
    return (leaf for leaf in _leaves(outputs) if isinstance(leaf, Tensor))


def _plain(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and tensor.is_floating_point() and not tensor.is_meta


def _is_metric(module: nn.Module) -> bool:
    return any(c.__module__.startswith("torchmetrics.") for c in type(module).__mro__)


# words


def _finding(now: Moment, at: _Confirm) -> Finding:
    site, module = at.site, at.module
    said = f"`{site.expression}`" if site is not None else "the step"
    norm = "batch_norm" in at.op
    if norm:
        fact = f"{said} normalises with the batch in eval mode, expected running statistics"
        remedy = "Pass its running statistics, and training=self.training."
        if isinstance(module, nn.modules.batchnorm._NormBase):
            remedy = "Pass track_running_stats=True, or use a norm of each sample (GroupNorm)."
    else:
        pattern = at.subject or "*"
        if not at.subject and site is not None:
            pattern = "*/" + os.path.basename(site.location.rpartition(":")[0])
        fact = f"{said} gives a sample other values among other samples"
        remedy = f'Compute it from each sample alone, or pass allow={{"batch": ["{pattern}"]}}.'
    return Finding(
        check="batch",
        stage=now.stage,
        fact=fact,
        remedy=remedy,
        subject=at.subject,
        subject_type=type(module).__name__ if module is not None else None,
        location=site.location if site is not None else None,
        expression=site.expression if site is not None else None,
        function=site.function if site is not None else None,
        epoch=now.epoch,
        step=now.step,
        rank=now.rank,
        certain=norm,
    )
