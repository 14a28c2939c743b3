"""Are these targets labels? Looks at values, on the first batch alone: there the host may wait."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_evalguard.confusion.sources import Pair

_FIRST = 4096  # labels of a first batch that are kept
_LEVELS = 3  # of smoothed labels: the class's own, the others', that of padding
_FEW = 4  # samples, among which labels may happen to be counted up


def refusal(pair: Pair, from_batch: bool, leaves: Sequence[Tensor]) -> str:
    """Why a pair is no classification of the batch's samples; empty where it may be one.

    Args:
        pair: As it is counted.
        from_batch: Whether its target stands in the batch.
        leaves: The tensors of the batch, the input first.
    """
    preds = pair.preds
    target = pair.target
    if not target.numel():
        return ""
    if pair.task == "multiclass":
        if (
            preds.ndim == target.ndim + 1 == 2
            and not from_batch
            and _counts_samples(preds, target)
        ):
            return "its classes are the samples of the batch"
        return ""
    if target.is_floating_point() and not bool(((target == 0) | (target == 1)).all()):
        return "its targets are not only 0 and 1"
    if not from_batch and _is_square_of_samples(preds, target):
        return "its targets say which samples of the batch belong together"
    if _is_the_input(target, from_batch, leaves):
        return "its target is the input"
    return ""


def _is_the_input(target: Tensor, from_batch: bool, leaves: Sequence[Tensor]) -> bool:
    """Whether a target is the input, or was made of it by the step, to be reconstructed."""
    if (
        not leaves
        or not leaves[0].is_floating_point()
        or leaves[0].numel() != target.numel()
    ):
        return False
    if from_batch:
        return leaves[0].data_ptr() == target.data_ptr()
    only = not any(leaf.numel() == target.numel() for leaf in leaves[1:])
    return only and target.ndim > 1


def _counts_samples(preds: Tensor, target: Tensor) -> bool:
    """Whether the target numbers the columns, of which there is one for each row or so: InfoNCE."""
    n, columns = preds.shape
    if columns < n - 1 or n < _FEW:
        return False
    breaks = int((target[1:] - target[:-1] != 1).sum())
    return breaks == 0 or (breaks == 1 and n > _FEW)  # twice, or rolled


def _is_square_of_samples(preds: Tensor, target: Tensor) -> bool:
    if target.ndim != 2 or target.shape[0] != target.shape[1] or target.shape[0] < 2:
        return False
    same = bool((target.diagonal() == 1).all())
    return same and torch.equal(target, target.T)


def counts_up_twice(target: Tensor) -> bool:
    """Whether a target numbers two views of a batch, each the other's: ``n..2n-1, 0..n-1``."""
    flat = target.reshape(-1)
    half = len(flat) // 2
    if half < 2 or len(flat) != 2 * half:
        return False
    count = torch.arange(len(flat), device=flat.device)
    return torch.equal(flat.long(), count.roll(half)) or torch.equal(
        flat.long(), count % half
    )


def has_pattern(target: Tensor) -> bool:
    """Whether a target looks as if a step made it: a constant, a count, blocks of one size."""
    flat = target.reshape(-1)
    steps = flat[1:].double() - flat[:-1].double()
    changes = [i + 1 for i in (steps != 0).nonzero()[:, 0].tolist()]
    if not changes or int((steps != 1).sum()) == 0:
        return True
    bounds = [0, *changes, len(flat)]
    sizes = {stop - start for start, stop in itertools.pairwise(bounds)}
    jumps = set(steps[steps != 0].tolist())
    return len(sizes) == 1 and max(sizes) > 1 and len(jumps) == 1


def are_smoothed(target: Tensor, leaves: Sequence[Tensor]) -> bool:
    """Whether targets are labels of the batch, 0 and 1, that were drawn towards the middle."""
    if not target.is_floating_point() or target.numel() < 2 or not leaves:
        return False
    values = torch.unique(target.detach()).tolist()
    if (
        len(values) != 2
        or values == [0, 1]
        or not 0 <= values[0] < 0.5 < values[1] <= 1
    ):
        return False
    above = sharpened(target).reshape(-1)
    for leaf in leaves[1:] if leaves[0].is_floating_point() else leaves:
        if leaf.numel() != target.numel() or leaf.is_complex():
            continue
        if torch.equal(sharpened(leaf.reshape(-1)).to(above), above):
            return len(torch.unique(leaf)) == 2
    return False


def sharpened(target: Tensor) -> Tensor:
    """Smoothed labels as they were."""
    return (target > 0.5).to(target.dtype)


def are_smoothed_classes(target: Tensor) -> bool:
    """Whether rows ``(N, C)`` are one-hot labels that were drawn towards the mean, or of zeros.

    A teacher's probabilities take as many values as there are of them.
    """
    if target.ndim != 2 or target.shape[0] < 2 or target.shape[1] < 2:
        return False
    target = target.detach()
    rows = target[target.sum(1) != 0]
    if not len(rows) or len(torch.unique(rows)) > _LEVELS or bool(no_shares(rows)):
        return False
    best = rows.max(1, keepdim=True).values
    return bool(((rows == best).sum(1) == 1).all())


def are_shares(preds: Tensor, target: Tensor) -> bool:
    """Whether rows of a target in the form of `preds` are shares of its classes, summing to one."""
    if preds.shape != target.shape or target.ndim < 2 or target.shape[1] < 2:
        return False
    if (
        not preds.is_floating_point()
        or target.dtype == torch.bool
        or not target.numel()
    ):
        return False
    return not bool(no_shares(target))


def no_shares(target: Tensor) -> Tensor:
    """Whether a row does not sum to one, on the device."""
    total = target.sum(1)
    off = (total - 1).abs() > 1e-3 if target.is_floating_point() else total != 1
    return off.any() | (target < 0).any()


def are_only_ranked(pair: Pair) -> bool:
    """Whether scores are neither logits nor probabilities, and only a curve takes them.

    Errors and distances begin at zero and have no end: where they mean yes, a threshold says.
    """
    preds = pair.preds
    if pair.cuts or pair.task == "multiclass" or pair.preds_are is not None:
        return False
    if not preds.is_floating_point() or not preds.numel():
        return False
    return bool((preds >= 0).all() & (preds > 1).any())


def first_of(leaves: Sequence[Tensor], samples: int) -> list[Tensor]:
    """Copies of what may be the labels of a batch, as long as they are few."""
    kept = []
    for leaf in leaves:
        is_number = not (leaf.is_floating_point() or leaf.is_complex())
        if (is_number or leaf.numel() == samples) and leaf.numel() <= _FIRST:
            kept.append(leaf.detach().reshape(-1).clone())
    return kept


def begins_with(target: Tensor, first: Sequence[Tensor]) -> bool:
    """Whether the targets of an evaluation begin with labels of its first batch."""
    if target.is_complex():
        return False
    flat = target.reshape(-1)
    for labels in first:
        n = len(labels)
        if 0 < n <= len(flat) and torch.equal(
            flat[:n].double(), labels.to(flat.device).double()
        ):
            return True
    return False


def may_be_among(leaves: Sequence[Tensor], samples: int) -> bool:
    """Whether a tensor of a batch of so many samples may be labels, or nothing is known of it."""
    try:
        return not leaves or any(_may_be(leaf, leaves[0], samples) for leaf in leaves)
    except (
        RuntimeError,
        TypeError,
        NotImplementedError,
    ):  # tensors without values to read
        return True


def _may_be(leaf: Tensor, first: Tensor, samples: int) -> bool:
    if not leaf.is_floating_point():
        return not leaf.is_complex()
    if leaf.ndim > 1 and leaf.shape == first.shape:
        return False  # an input, or another view of it as contrastive learning has them
    if not leaf.numel():
        return True
    if bool(((leaf == 0) | (leaf == 1)).all()):
        return True
    if leaf.numel() == samples:  # classes that are written as floating-point numbers
        return bool(((leaf >= 0) & (leaf % 1 == 0)).all())
    return leaf.ndim > 1 and leaf.shape[1] > 1 and not bool(no_shares(leaf))


def equals_one_of(target: Tensor, leaves: Sequence[Tensor]) -> bool:
    """Whether a target has the values of a tensor of the batch."""
    for leaf in leaves:
        alike = leaf.numel() == target.numel()
        if alike and leaf.is_floating_point() != target.is_floating_point():
            alike = leaf.ndim == target.ndim
        if alike and torch.equal(
            leaf.reshape(-1).double(), target.reshape(-1).double()
        ):
            return True
    return False


def answers(pair: Pair, preds_are: str, threshold: float) -> Tensor:
    """The labels that the predictions of an arranged pair give."""
    preds = pair.preds
    if not preds.is_floating_point():
        return preds.long()
    if pair.task == "multiclass":
        return preds.argmax(1)
    if preds_are == "unknown":
        inside = bool(((preds >= 0) & (preds <= 1)).all())
        preds_are = "logits"
        if inside:
            preds_are = "probs"
    cut = threshold
    if preds_are != "probs":
        cut = torch.logit(torch.tensor(threshold)).item()
    return (preds.double() > cut).long()
