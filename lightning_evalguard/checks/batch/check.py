"""Does a sample get the same outputs whatever else is in its batch?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_evalguard.checks.batch.depends import Padding
from lightning_evalguard.checks.batch.rows import (
    Place,
    Placed,
    Rows,
    differs,
    first_mixing,
    is_of_metric,
)
from lightning_evalguard.checks.batch.samples import Samples, samples_of
from lightning_evalguard.checks.check import Check, Moment
from lightning_evalguard.data.batches import graph_count, sample_count
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
        samples, why = self._samples(look)
        if samples is None:
            self.notes.append(
                f"batch: whether outputs depend on the batch was not checked: {why}"
            )
            return []
        whole, error = self._run(look, samples, range(samples.count))
        if error is not None:
            return self._unknown(error)
        for start in (0, samples.half):
            places: Sequence[int] = range(start, start + samples.half)
            part, error = self._run(look, samples, places, start)
            # its length is fixed: put the half in the place of the other
            if error is not None:
                places = samples.repeated(start)
                part, error = self._run(look, samples, places, start)
            if error is not None:
                kind = type(error).__name__
                self.notes.append(
                    f"batch: the step fails on half of its batch ({kind}); whether its outputs "
                    "depend on the batch is not known"
                )
                return []
            if first_mixing(whole, part, start) is not None:
                return self._located(now, look, samples, places, start)
        return []

    def _samples(self, look: Look) -> tuple[Samples | None, str]:
        """The samples of a step's batch; where it has none to compare, why not."""
        batch = look.args[0]
        most = self._batch_size()
        try:
            samples = samples_of(batch)
        except Exception as error:  # noqa: BLE001 - of a batch that cannot be taken apart
            return None, f"{type(error).__name__}: {error}"
        count = sample_count(batch)
        # two or three rows may be anything, unless the loader says how many it puts together
        known = most is not None or graph_count(batch) is not None
        if count is not None and count < (2 if known else _FEWEST):
            return None, f"fewer than {2 if known else _FEWEST} samples"
        if samples is None and graph_count(batch) is not None:
            return None, "its graphs do not make the same batch again"
        if samples is None or (count or 0) > (most or count or 0):
            return None, "dim 0 of its tensors is not samples"
        return samples, ""

    def _located(
        self,
        now: Moment,
        look: Look,
        samples: Samples,
        places: Sequence[int],
        start: int,
    ) -> list[Finding]:
        """Once more, with what every operator gave: the first one that mixes samples."""
        everyone = range(samples.count)
        whole, error = self._run(look, samples, everyone, of_operators=True)
        again, failed = self._run(look, samples, places, start, of_operators=True)
        if error is not None or failed is not None:
            return self._unknown(error or failed)
        at = first_mixing(whole, again, start)
        if at is None:
            return []
        return self._confirm(now, look, samples, whole, at, start)

    def _unknown(self, error: Exception | None) -> list[Finding]:
        """The step did not run again as it ran: nothing is known, and that is said."""
        said = f"{type(error).__name__}: {error}".partition("\n")[0]
        self.notes.append(
            f"batch: the step failed when it was run again ({said}); whether its outputs depend on "
            "the batch is not known"
        )
        return []

    def _run(
        self,
        look: Look,
        samples: Samples,
        places: Sequence[int],
        start: int | None = None,
        of_operators: bool = False,
    ) -> tuple[Rows, Exception | None]:
        """Run the step on the samples at some places; its rows, and why it did not run."""
        starts = (0, samples.half) if start is None else (start,)
        placed = Placed.of(samples, places, starts, not isinstance(places, range))
        rows = Rows(placed, of_operators)
        return rows, self._run_with(look, samples, places, rows)

    def _run_with(
        self, look: Look, samples: Samples, places: Sequence[int], rows: Rows
    ) -> Exception | None:
        args = None
        if not samples.is_batch(places):
            args = (samples.made(places), *look.args[1:])
        with rows.hooks():
            outcome = look.again(rows, args=args)
        if outcome.error is None:
            rows.returned(outcome.outputs)
        return outcome.error

    def _confirm(
        self,
        now: Moment,
        look: Look,
        samples: Samples,
        whole: Rows,
        at: Place,
        start: int,
    ) -> list[Finding]:
        """Leave only what the other samples explain: not another shape, kernel or clock."""
        assert self._root is not None, "open() comes first"
        everyone = range(samples.count)
        same, error = self._run(look, samples, everyone, of_operators=True)
        if error is not None:
            return self._unknown(error)
        # a clock, or a draw that no seed rules
        if differs(whole.at(at), same.at(at), start, 0.01):
            return []
        places = samples.repeated(start)
        other = _Other(Placed.of(samples, places, (start,)), self._root, at)
        error = self._run_with(look, samples, places, other)
        if error is not None:
            return self._unknown(error)
        apart = differs(whole.at(at), other.at(at), start, most=samples.graphs)
        if not apart or other.of_metric:
            return []
        return [_finding(now, other, samples.graphs)]


class _Other(Rows):
    """Rows among other samples, and who gives those at one place."""

    def __init__(self, placed: Placed, root: nn.Module, place: Place) -> None:
        super().__init__(placed, of_operators=True)
        self.op = ""
        self.site: Site | None = None
        self.subject = ""
        self.module = root
        self.remedy = ""
        self.of_metric = False
        self._root = root
        self._names = ModuleNames(root)
        self._place = place

    def after(self, op: Op) -> None:
        super().after(op)
        if self._place == ("op", op.index):
            self.op, self.site = op.name, op.site
            self.of_metric = is_of_metric()
            chain = list(op.modules())
            self.subject, self.module = self._names.nearest(chain)
            if chain and chain[0] not in self._names:
                self.module = chain[0]
                self.subject, self.remedy = where_hidden(
                    chain, self._root, self._names, op
                )

    def _keep(
        self, giver: Any, tensor: Tensor, module: nn.Module | None = None
    ) -> None:
        if self._place == ("module", len(self.modules)):
            self.site = user_site()
            self.of_metric = is_of_metric()
            self.subject, self.module = self._names.nearest(
                [module] if module is not None else []
            )
        super()._keep(giver, tensor, module)


# words


def _apart(at: _Other, graphs: bool) -> str:
    """What fixes the mixing: a layer that takes dim 0 for positions, or any other line."""
    if graphs:
        return (
            "Compute it from each graph alone: pass `batch`, the graph of each node, to norms and "
            "poolings, as in `norm(x, data.batch)`."
        )
    if vars(at.module).get("batch_first") is False:
        return (
            f"Pass batch_first=True where `{at.subject}` is made, or give it "
            "(positions, samples, features)."
        )
    return "Compute it from each sample alone."


def _finding(now: Moment, at: _Other, graphs: bool) -> Finding:
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
        remedy = _apart(at, graphs)
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
