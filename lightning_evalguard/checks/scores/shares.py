"""Are probabilities normalised over the classes of a sample, or over the samples of the batch?

A softmax over dim 0 of ``(N, C)`` gives each sample a share of the batch, which hangs on the
samples beside it; the classes of a sample are ranked by it all the same. Reported is one whose
result is then read as that of classes: by ``argmax``, ``max``, ``topk`` or ``sort`` over another
dim, by ``nll_loss`` or ``cross_entropy``, or by a metric that ranks. Meant are attention over a bag
(its result is summed up), contrastive scores (as many columns as rows), a softmax over both dims in
turn, and answers that are read over dim 0 too.

So is an ``argmax`` over dim 0 that is compared with the batch's labels, of logits whose cross
entropy goes over dim 1. It fits only where a batch has as many samples as there are classes.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_evalguard.checks.scores.labels import LabelsRead
from lightning_evalguard.data.loaders import Fact
from lightning_evalguard.instruments.dispatch import Op, storage_key, tensors_in
from lightning_evalguard.instruments.source import Site

_SHARES = frozenset({"softmax", "_softmax", "log_softmax", "_log_softmax"})
_READS = frozenset({"argmax", "max", "topk", "sort", "argsort"})
_LOSSES = frozenset(
    {"nll_loss_forward", "nll_loss2d_forward", "nll_loss_nd", "cross_entropy_loss"}
)
_LARGEST = frozenset({"argmax", "max"})
_NAMES_OF_LOSSES = ("loss", "cross_entropy", "kl_div")
_MEAN = 1  # torch's number of `reduction="mean"`
_MEANS = 16  # of one step
_CHOOSES = _LARGEST | {"topk"}
_SUM = 1e-3  # by which a column's shares may miss 1, in half precision too


class MadeLoss(NamedTuple):
    """A loss that a step computed: its kind, as torch has it, its expression and its value."""

    kind: str
    text: str
    value: Tensor


class OfStep(LabelsRead):
    """What the check wants to know of the operators of a step.

    Args:
        labels: Where the batch's labels lie.
        samples: How many samples the batch holds.
        batch: Where its tensors lie.

    Attributes:
        shared: Where a share of the batch was read as that of a class; None where none was.
        means: Means over all values, those of losses too.
        losses: Losses of something of the batch, one number each.
    """

    def __init__(self, labels: set[int], samples: int, batch: set[int]) -> None:
        super().__init__(labels)
        self._samples = samples
        self._batch = batch
        # what is made of the batch alone: targets of another type, or as yes and no
        self._made: dict[int, weakref.ref[Tensor]] = {}
        # no result is kept alive: those of attention are many
        self._over_batch: list[tuple[weakref.ref[Tensor], Site | None]] = []
        self._over_classes: list[tuple[weakref.ref[Tensor], Site | None]] = []
        self._over_classes_of: list[tuple[weakref.ref[Tensor], Site | None]] = []
        # the largest of each column, what it was taken of, and whether it met the labels
        self._largest: list[tuple[weakref.ref[Tensor], weakref.ref[Tensor], Site]] = []
        self._answers: list[tuple[weakref.ref[Tensor], Site]] = []
        self.shared: Site | None = None
        self.means: list[Tensor] = []
        self.losses: list[MadeLoss] = []
        self._indices: list[Tensor] = []  # of the largest of more than two classes

    def before(self, op: Op) -> None:
        super().before(op)
        if self._largest and op.name == "eq":
            self._compared(op)
        if not self._over_batch or not op.args or not isinstance(op.args[0], Tensor):
            return
        given = op.args[0]
        if op.name in _READS and not _is_over_others(op, given):
            return
        shared = self._over_batch
        if op.name in _LOSSES:
            shared = [*shared, *self._over_classes]
        elif op.name not in _READS:
            return
        self.shared = self.shared or self._site_of(given, shared)

    def _compared(self, op: Op) -> None:
        """Answers are compared with labels: were they taken over the batch?"""
        given = tensors_in(op.args)
        if not any(storage_key(tensor) in self._labels for tensor in given):
            return
        for largest, of, site in self._largest:
            if not any(_same(tensor, largest()) for tensor in given):
                continue
            logits = of()
            if any(_same(logits, one()) for one, _ in self._over_classes_of):
                self.shared = self.shared or site
            elif logits is not None:
                self._answers.append((weakref.ref(logits), site))

    def _chose(self, op: Op) -> None:
        """The class of each sample was chosen, of more than two."""
        given = op.args[0]
        out = op.out[1] if isinstance(op.out, tuple) else op.out
        if given.ndim != 2 or not isinstance(out, Tensor) or given.shape[1] <= 2:
            return
        if out.numel() == len(given) and len(self._indices) < _MEANS:
            self._indices.append(out.reshape(-1))

    def indices_ranked(self, kept: Iterable[Any]) -> bool:
        """Whether a metric that ranks kept indices of classes as scores, or a sigmoid of them."""
        with torch.no_grad():
            for tensor in kept:
                if not isinstance(tensor, Tensor) or tensor.ndim != 1:
                    continue
                if any(_ranks_indices(tensor, one) for one in self._indices):
                    return True
        return False

    def _averaged(self, op: Op) -> None:
        """Keep a mean of the batch: one number each."""
        loss = any(word in op.name for word in _NAMES_OF_LOSSES)
        if not (op.name == "mean" or loss):
            return
        if loss:
            self._lost(op)
        if loss and op.arguments.get("reduction") != _MEAN:
            return
        out = op.out[0] if isinstance(op.out, tuple) else op.out
        # a fake tensor, or one of a class of its own, may have no value to read
        if type(out) is not Tensor or len(self.means) == _MEANS:
            return
        if out.numel() == 1 and out.is_floating_point():
            self.means.append(out.detach())

    def _lost(self, op: Op) -> None:
        """Keep a loss, and what the user's line calls it."""
        out = op.out[0] if isinstance(op.out, tuple) else op.out
        if type(out) is not Tensor or out.numel() != 1 or len(self.losses) == _MEANS:
            return
        if not any(map(self._is_of_input, tensors_in(op.args))):
            return
        name = op.name.removesuffix("_forward").removesuffix("_nd").removesuffix("2d")
        kind = "nll_loss" if name == "cross_entropy_loss" else name
        text = op.site.quoted if op.site is not None else f"`{kind}`"
        self.losses.append(MadeLoss(kind, text, out.detach()))

    def _is_of_input(self, tensor: Tensor) -> bool:
        """Whether a tensor is the batch's, or made of it alone."""
        key = storage_key(tensor)
        if key is None:
            return False
        made = self._made.get(key)
        return key in self._batch or (made is not None and made() is not None)

    def _makes(self, op: Op) -> None:
        """Follow what is made of the batch alone."""
        given = tensors_in([*op.args, *op.kwargs.values()])
        if not isinstance(op.out, Tensor) or not given:
            return
        key = storage_key(op.out)
        if key is not None and all(map(self._is_of_input, given)):
            self._made[key] = weakref.ref(op.out)

    def _took(self, op: Op) -> None:
        """The largest of each column of ``(N, N)`` was taken."""
        given = op.args[0]
        out = op.out[1] if isinstance(op.out, tuple) else op.out
        square = given.ndim == 2 and given.shape[0] == given.shape[1] == self._samples
        over_batch = op.arguments.get("dim") is not None
        over_batch &= not _is_over_others(op, given)
        if square and over_batch and op.site is not None and isinstance(out, Tensor):
            refs = weakref.ref(out), weakref.ref(given)
            self._largest.append((*refs, op.site))

    def after(self, op: Op) -> None:
        super().after(op)
        if op.name in _LARGEST and isinstance(op.args[0], Tensor):
            self._took(op)
        if op.name in _CHOOSES and isinstance(op.args[0], Tensor):
            self._chose(op)
        self._averaged(op)
        self._makes(op)
        if op.name not in _SHARES or not isinstance(op.out, Tensor):
            return
        given = op.args[0]
        out = op.out
        if out.ndim < 2:
            return
        if _dim_of(op, out):  # cross entropy takes a softmax of what it is given
            site = self._site_of(given, self._over_batch)
            self._over_classes.append((weakref.ref(out), site))
            self._over_classes_of.append((weakref.ref(given), op.site))
            self.shared = self.shared or self._site_of(given, self._answers)
        elif self._is_of_batch(out) and not self._is_of_classes(given):
            self._over_batch.append((weakref.ref(out), op.site))

    def _is_of_batch(self, out: Tensor) -> bool:
        n, classes = out.shape[:2]
        return n == self._samples and n > 1 and classes > 1 and classes != n

    def _is_of_classes(self, given: Tensor) -> bool:
        """Whether a tensor is normalised over the other dim already: both in turn, balanced."""
        return any(_same(given, out()) for out, _ in self._over_classes)

    @staticmethod
    def _site_of(
        given: Any, shared: Iterable[tuple[weakref.ref[Tensor], Any]]
    ) -> Site | None:
        """Where it was shared out over the batch, what is read here."""
        return next((site for out, site in shared if _same(given, out())), None)

    def ranked(self, kept: Iterable[Any]) -> Site | None:
        """Where shares of the batch come from that a metric kept, ``(N, C)`` each."""
        if not self._over_batch:
            return None
        for tensor in kept:
            if isinstance(tensor, Tensor) and self._holds_shares(tensor):
                return self._over_batch[-1][1]
        return None

    def _holds_shares(self, tensor: Tensor) -> bool:
        if tensor.ndim != 2 or not self._is_of_batch(tensor):
            return False
        with torch.no_grad():
            return bool(((tensor.double().sum(0) - 1).abs() < _SUM).all())


def _dim_of(op: Op, out: Tensor) -> int:
    dim = op.arguments.get("dim")
    if isinstance(dim, int):
        return dim % out.ndim
    return 0


def _is_over_others(op: Op, given: Tensor) -> bool:
    """Whether it is read over another dim than that of the samples."""
    dim = op.arguments.get("dim")
    return isinstance(dim, int) and given.ndim > 1 and dim % given.ndim != 0


def _same(a: Any, b: Tensor | None) -> bool:
    """Whether both are one tensor, or an alias of it."""
    if b is None or not isinstance(a, Tensor):
        return False
    if a is b:
        return True
    if a.shape != b.shape or a.stride() != b.stride():
        return False
    try:
        return a.data_ptr() == b.data_ptr()
    except RuntimeError:  # no storage
        return False


def _ranks_indices(kept: Tensor, indices: Tensor) -> bool:
    if kept.shape != indices.shape or bool((indices == indices[0]).all()):
        return False
    values = indices.to(kept.dtype)
    return torch.equal(kept, values) or torch.equal(kept, values.sigmoid())


def index_as_score(name: str, kind: str) -> Fact:
    """A metric that ranks samples by indices of classes."""
    return Fact(
        "is given the indices of classes (0, 1, 2, ...), expected scores that rank the samples",
        "Give it the probability of the class in question, as it is before `argmax`.",
        name,
        kind,
        certain=False,
    )


def share_of_the_batch(site: Site) -> Fact:
    """Probabilities that hang on the samples beside a sample."""
    return Fact(
        f"`{site.expression}` goes over the samples of the batch (dim 0), and is read as going "
        "over classes: a sample's answer depends on the others in its batch",
        "Pass the dim of the classes: `dim=1`.",
        location=site.location,
        certain=False,
    )


def kept_by(metrics: Iterable[Any]) -> Iterator[Any]:
    """The last predictions of metrics that keep them."""
    for metric in metrics:
        preds = vars(metric).get("preds")
        if isinstance(preds, list) and preds:
            yield preds[-1]
