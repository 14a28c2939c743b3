"""Does a sample get the same outputs whatever else is in its batch?"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lightning_evalguard.checks.batch.depends import Padding
from lightning_evalguard.checks.batch.rows import Place, Rows, differs, first_mixing
from lightning_evalguard.checks.check import Check, Moment
from lightning_evalguard.data.batches import common_length, map_samples
from lightning_evalguard.instruments.dispatch import ModuleNames, Op, Subscriber
from lightning_evalguard.instruments.replay import Look
from lightning_evalguard.instruments.source import Site, user_site
from lightning_evalguard.model.attributes import (
    BEFORE_TRACING,
    LEAVE_IN_EVAL,
    where_hidden,
)
from lightning_evalguard.report import Finding

_FEWEST = 4  # samples of a batch that is worth halving


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
        self._samples = 0  # of the batch that is looked at

    def open(self, root: nn.Module, now: Moment) -> Iterable[Finding]:
        self._root = root
        return ()

    def close(self, now: Moment) -> Iterable[Finding]:
        self._root = None
        return ()

    def watch(self, now: Moment) -> Subscriber:
        """Nothing of the shared showing: this check replays under its own hooks."""
        return Subscriber()

    def saw(
        self, now: Moment, seen: Subscriber | None, look: Look | None
    ) -> Iterable[Finding]:
        """Run the step on halves of the batch and compare; then on a sample and its padding."""
        if look is None or self._root is None or not look.args:
            return ()
        findings = self._halved(now, look)
        if findings:  # one cause, one finding
            return findings
        padding = Padding(self._root, self._loader)
        findings = padding.look(now, look)
        self.notes += padding.notes
        return findings

    def _halved(self, now: Moment, look: Look) -> list[Finding]:
        assert self._root is not None, "open() comes first"
        samples = common_length(look.args[0])
        if (
            samples is None
            or samples < _FEWEST
            or samples > (self._batch_size() or samples)
        ):
            few = samples is not None and samples < _FEWEST
            why = "dim 0 of its tensors is not samples"
            if few:
                why = f"fewer than {_FEWEST} samples"
            self.notes.append(
                f"batch: whether outputs depend on the batch was not checked: {why}"
            )
            return []
        self._samples = samples
        whole = Rows(samples)
        if self._run(look, whole, None) is not None:
            return []
        half = samples // 2
        for start in (0, half):
            part = Rows(half, start)
            error = self._run(look, part, lambda t, i=start: t[i : i + half])  # type: ignore[misc]
            # its length is fixed: put the half in the place of the other
            if error is not None:
                part = Rows(samples)
                take = functools.partial(_repeated, half=half, start=start)
                error = self._run(look, part, take)
            if error is not None:
                kind = type(error).__name__
                self.notes.append(
                    f"batch: the step fails on half of its batch ({kind}); whether its outputs "
                    "depend on the batch is not known"
                )
                return []
            if first_mixing(whole, part, start) is not None:
                return self._located(now, look, part, start)
        return []

    def _located(
        self, now: Moment, look: Look, part: Rows, start: int
    ) -> list[Finding]:
        """Once more, with what every operator gave: the first one that mixes samples."""
        half = self._samples // 2
        take: Callable[[Any], Any] = lambda t: t[start : start + half]  # noqa: E731
        again = Rows(half, start, of_operators=True)
        if part.samples != half:
            again = Rows(self._samples, of_operators=True)
            take = functools.partial(_repeated, half=half, start=start)
        whole = Rows(self._samples, of_operators=True)
        if (
            self._run(look, whole, None) is not None
            or self._run(look, again, take) is not None
        ):
            return []
        at = first_mixing(whole, again, start)
        if at is None:
            return []
        return self._confirm(now, look, whole, at, start)

    def _run(
        self, look: Look, rows: Rows, take: Callable[[Any], Any] | None
    ) -> Exception | None:
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
        same = Rows(whole.samples, of_operators=True)
        if self._run(look, same, None) is not None:
            return []
        # a clock, or a draw that no seed rules
        if differs(whole.at(at), same.at(at), start, 0.01):
            return []
        other = _Other(whole.samples, self._root, at)
        take = functools.partial(_repeated, half=whole.samples // 2, start=start)
        if self._run(look, other, take) is not None:
            return []
        if not differs(whole.at(at), other.at(at), start):
            return []
        return [_finding(now, other)]


class _Other(Rows):
    """Rows among other samples, and who gives those at one place."""

    def __init__(self, samples: int, root: nn.Module, place: Place) -> None:
        super().__init__(samples, of_operators=True)
        self.op = ""
        self.site: Site | None = None
        self.subject = ""
        self.module = root
        self.remedy = ""
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
                self.subject, self.remedy = where_hidden(
                    chain, self._root, self._names, op
                )

    def returned(self, outputs: Any, module: nn.Module | None = None) -> None:
        first = len(self.modules)
        super().returned(outputs, module)
        kind, index = self._place
        if kind == "module" and first <= index < len(self.modules):
            self.site = user_site()
            self.subject, self.module = self._names.nearest(
                [module] if module is not None else []
            )


# batches


def _repeated(items: Any, *, half: int, start: int) -> Any:
    """The half from `start` on stays; the other samples are replaced by it."""
    kept = items[start : start + half]
    n = len(items)
    before = start
    after = n - start - half
    if isinstance(items, Tensor):
        more = torch.cat([kept, kept])
        return torch.cat([more[:before], kept, more[:after]])
    twice = [*kept, *kept]
    return [*twice[:before], *kept, *twice[:after]]


# words


def _apart(at: _Other) -> str:
    """What fixes the mixing: a layer that takes dim 0 for positions, or any other line."""
    if vars(at.module).get("batch_first") is False:
        return (
            f"Pass batch_first=True where `{at.subject}` is made, or give it "
            "(positions, samples, features)."
        )
    return "Compute it from each sample alone."


def _finding(now: Moment, at: _Other) -> Finding:
    site = at.site
    module = at.module
    said = "the step"
    if site is not None:
        said = site.quoted
    norm = "batch_norm" in at.op
    if norm:
        mode = "eval"
        if module.training:
            mode = "train"
        fact = f"{said} normalises with the batch in {mode} mode, expected running statistics"
        remedy = "Pass its running statistics, and training=self.training."
        if at.remedy:
            remedy = at.remedy
        elif isinstance(module, torch.jit.ScriptModule):
            remedy = BEFORE_TRACING
        elif module.training:
            remedy = LEAVE_IN_EVAL
        elif isinstance(module, nn.modules.batchnorm._NormBase):
            remedy = "Pass track_running_stats=True, or use a norm of each sample (GroupNorm)."
    else:
        fact = f"{said} gives a sample different outputs when the rest of the batch changes"
        remedy = _apart(at)
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
