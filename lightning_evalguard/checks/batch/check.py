"""Does a sample get the same outputs whatever else is in its batch?"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules import module as _module
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from lightning_evalguard.allow import allowed
from lightning_evalguard.checks.batch.depends import Padding
from lightning_evalguard.checks.check import Check, Moment
from lightning_evalguard.data.batches import common_length, map_samples, tensors
from lightning_evalguard.instruments.dispatch import ModuleNames, Op, Subscriber, aside, tensors_in
from lightning_evalguard.instruments.replay import Look
from lightning_evalguard.instruments.source import Site, user_site
from lightning_evalguard.model.attributes import BEFORE_TRACING, where_hidden
from lightning_evalguard.report import Finding

_FEWEST = 4  # samples of a batch that is worth halving
_ROWS, _COLUMNS = 8, 32  # of each result, kept for comparison


class BatchCheck(Check):
    """The `batch` check: in a replay, each half of the batch must give the same rows alone.

    Only what a module returns is judged, row by row, and only until the first random draw. Batch
    norm that normalises with the batch is certain; any other mixing is a suspicion, for a model
    may mean it.

    Args:
        batch_size: Gives how many samples the loader puts in a batch, or None where it does not
            say; dim 0 must be no longer, or it is not the samples.
        loader: Gives the loader of that number in the running evaluation, or None.
    """

    name = "batch"

    def __init__(
        self,
        batch_size: Callable[[], int | None] = lambda: None,
        loader: Callable[[int], Any] = lambda _: None,
    ) -> None:
        self._root: nn.Module | None = None
        self._batch_size = batch_size
        self._loader = loader
        self.notes: list[str] = []

    def open(self, root: nn.Module, now: Moment) -> Iterable[Finding]:
        self._root = root
        return ()

    def close(self, now: Moment) -> Iterable[Finding]:
        self._root = None
        return ()

    def watch(self, now: Moment) -> Subscriber:
        """Nothing of the shared showing: this check replays under its own hooks."""
        return Subscriber()

    def saw(self, now: Moment, seen: Subscriber | None, look: Look | None) -> Iterable[Finding]:
        """Run the step on halves of the batch and compare; then on a sample and its padding."""
        if look is None or self._root is None or not look.args:
            return ()
        found = self._halved(now, look)
        if found:  # one cause, one finding
            return found
        padding = Padding(self._root, self._loader)
        found = padding.look(now, look)
        self.notes += padding.notes
        return found

    def _halved(self, now: Moment, look: Look) -> list[Finding]:
        assert self._root is not None, "open() comes first"
        samples = common_length(look.args[0])
        if samples is None or samples < _FEWEST or samples > (self._batch_size() or samples):
            few = samples is not None and samples < _FEWEST
            why = f"fewer than {_FEWEST} samples" if few else "dim 0 of its tensors is not samples"
            self.notes.append(f"batch: the first batch was not halved: {why}")
            return []
        whole = Rows(samples)
        if self._run(look, whole, None) is not None:
            return []
        half = samples // 2
        for start in (0, half):
            part = Rows(half, start)
            error = self._run(look, part, lambda t, i=start: t[i : i + half])  # type: ignore[misc]
            if error is not None:  # its length is fixed: put the half in the place of the other
                part = Rows(samples)
                take = functools.partial(_repeated, half=half, start=start)
                error = self._run(look, part, take)
            if error is not None:
                kind = type(error).__name__
                self.notes.append(f"batch: the step does not run on other samples ({kind})")
                return []
            at = first_mixing(whole, part, start)
            if at is not None:
                return self._confirm(now, look, whole, at, start)
        return []

    def _run(self, look: Look, rows: Rows, take: Callable[[Any], Any] | None) -> Exception | None:
        """Run the step on what `take` makes of the batch; why it did not run."""
        args = None
        if take is not None:
            samples = common_length(look.args[0]) or 0
            args = (map_samples(look.args[0], samples, take), *look.args[1:])
        with rows.hooks():
            outcome = look.again(rows, args=args)
        if outcome.error is None:
            rows.returned(outcome.outputs)
        return outcome.error

    def _confirm(
        self, now: Moment, look: Look, whole: Rows, at: Place, start: int
    ) -> list[Finding]:
        """Leave only what the other samples explain: not another shape, kernel or clock."""
        assert self._root is not None, "open() comes first"
        same = Rows(whole.samples)
        if self._run(look, same, None) is not None:
            return []
        if _differs(
            whole.at(at), same.at(at), start, 0.01
        ):  # a clock, or a draw that no seed rules
            return []
        other = _Other(whole.samples, self._root, at)
        take = functools.partial(_repeated, half=whole.samples // 2, start=start)
        if self._run(look, other, take) is not None:
            return []
        return [_finding(now, other)] if _differs(whole.at(at), other.at(at), start) else []


# what is kept of each result


Place = tuple[Literal["op", "module"], int]


@dataclass
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
    """Some rows of what each operator gave and each module returned.

    Args:
        samples: Length of dim 0 of the batch.
        start: Which sample of the whole batch is its first.
    """

    def __init__(self, samples: int, start: int | None = None) -> None:
        self.samples = samples
        self.ops: list[Row] = []
        self.modules: list[tuple[int, Row]] = []  # with the number of operators until then
        # index in the whole batch -> index in this one
        self._starts = {0: 0, samples // 2: samples // 2} if start is None else {start: 0}

    def at(self, place: Place) -> Row:
        """What stands at a place; an empty row where the replay did not get there."""
        kind, index = place
        rows = self.ops if kind == "op" else [row for _, row in self.modules]
        return rows[index] if index < len(rows) else Row(None, ())

    def after(self, op: Op) -> None:
        out = next(iter(tensors_in(op.out)), None)
        # A step that differentiates adapts to its batch, or asks for forces after all is computed.
        stop = op.draws or "backward" in op.name or allowed("batch")
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
                with aside:  # our own operators are none of the step's
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
        values = {}
        for sample, index in self._starts.items():
            few = out.detach()[index : index + min(_ROWS, self.samples // 2 or 1)]
            flat = few.reshape(len(few), -1)
            step = max(1, flat.shape[1] // _COLUMNS)
            values[sample] = flat[:, ::step][:, :_COLUMNS].clone()
        return Row(giver, shape, values, stop)


def first_mixing(whole: Rows, part: Rows, start: int) -> Place | None:
    """Where rows first depend on the other samples, if any module returns rows that do."""
    op = None
    end = min(len(whole.ops), len(part.ops))
    for index, (a, b) in enumerate(zip(whole.ops, part.ops, strict=False)):
        if a.stop or b.stop:
            end = index
            break
        if a.giver is not b.giver:  # a loop over dim 0: only what modules return still compares
            end = next((i for i, r in enumerate(whole.ops) if r.stop), len(whole.ops))
            break
        if op is None and _differs(a, b, start):
            op = index
    for index, ((count, a), (_, b)) in enumerate(zip(whole.modules, part.modules, strict=False)):
        if count > end or a.giver is not b.giver:
            return None
        if _differs(a, b, start):
            return ("op", op) if op is not None and op < count else ("module", index)
    return None


def _differs(a: Row, b: Row, start: int, share: float = 1.0) -> bool:
    """Whether rows differ by more than (a `share` of) what another kernel or rounding explains."""
    if start not in a.values or start not in b.values or a.shape[1:] != b.shape[1:]:
        return False
    one, two = a.values[start], b.values[start]
    rows = min(len(one), len(two))
    one, two = one[:rows], two[:rows]
    if torch.equal(one, two):
        return False
    x, y = one.double(), two.double()
    finite = x.isfinite() & y.isfinite()
    x, y = x[finite], y[finite]
    size = max(float(x.norm()), float(y.norm()))
    coarse = one.dtype in (torch.float16, torch.bfloat16)
    return size > 0 and float((x - y).norm()) > share * (0.1 if coarse else 0.02) * size


class _Other(Rows):
    """Rows among other samples, and who gives those at one place."""

    def __init__(self, samples: int, root: nn.Module, place: Place) -> None:
        super().__init__(samples)
        self.op = ""
        self.site: Site | None = None
        self.subject = ""
        self.module = root
        self.mend = ""
        self._root = root
        self._names = ModuleNames(root)
        self._place = place

    def after(self, op: Op) -> None:
        super().after(op)
        if self._place == ("op", op.index):
            self.op, self.site = op.name, op.site
            chain = list(op.modules())
            self.subject, self.module = self._names.nearest(chain)
            if chain and chain[0] not in self._names:
                self.module = chain[0]
                self.subject, self.mend = where_hidden(chain, self._root, self._names, op)

    def returned(self, outputs: Any, module: nn.Module | None = None) -> None:
        first = len(self.modules)
        super().returned(outputs, module)
        kind, index = self._place
        if kind == "module" and first <= index < len(self.modules):
            self.site = user_site()
            self.subject, self.module = self._names.nearest([module] if module is not None else [])


# batches


def _repeated(items: Any, *, half: int, start: int) -> Any:
    """The half from `start` on stays; the other samples are replaced by it."""
    kept, n = items[start : start + half], len(items)
    before, after = start, n - start - half
    if isinstance(items, Tensor):
        more = torch.cat([kept, kept])
        return torch.cat([more[:before], kept, more[:after]])
    twice = [*kept, *kept]
    return [*twice[:before], *kept, *twice[:after]]


def _is_metric(module: nn.Module) -> bool:
    return any(c.__module__.startswith("torchmetrics.") for c in type(module).__mro__)


# words


def _finding(now: Moment, at: _Other) -> Finding:
    site, module = at.site, at.module
    said = site.quoted if site is not None else "the step"
    norm = "batch_norm" in at.op
    if norm:
        mode = "train" if module.training else "eval"
        fact = f"{said} normalises with the batch in {mode} mode, expected running statistics"
        remedy = "Pass its running statistics, and training=self.training."
        if at.mend:
            remedy = at.mend
        elif isinstance(module, torch.jit.ScriptModule):
            remedy = BEFORE_TRACING
        elif module.training:
            remedy = "Leave it in eval mode during an evaluation."
        elif isinstance(module, nn.modules.batchnorm._NormBase):
            remedy = "Pass track_running_stats=True, or use a norm of each sample (GroupNorm)."
    else:
        fact = f"{said} gives a sample other values among other samples"
        remedy = "Compute it from each sample alone."
    return Finding(
        check="batch",
        stage=now.stage,
        fact=fact,
        remedy=remedy,
        subject=at.subject,
        subject_type=type(module).__name__,
        location=site.location if site is not None else None,
        expression=site.expression if site is not None else None,
        function=site.function if site is not None else None,
        epoch=now.epoch,
        step=now.step,
        rank=now.rank,
        certain=norm,
    )
