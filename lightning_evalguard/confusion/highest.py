"""The class with the highest score.

On the CPU, torch 2.13 vectorises `amax` and comparisons into the type of what they compare, but
neither `max` with its indices nor comparisons into bool. So the highest is found first, and then
where it stands: up to six times as fast as `max`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_FEW = 20_000  # scores, among which `max` is as fast
_FEW_PAIRS = 1_024  # the same of two classes
_LONG, _LONGER = 64, 256  # classes from which one row is vectorised, and is better cut in blocks
_BLOCK = 64
_AT_ONCE = 1 << 19  # scores whose intermediate values stay in the cache
_ROWS_AT_ONCE = 8_192


def highest(scores: Tensor) -> Tensor:
    """Index of the highest score of each sample, the first of equal ones.

    Args:
        scores: ``(N, C, ...)``.

    Returns:
        int64 ``(N, ...)``; C where one of a sample's scores is NaN.

    Example:
        >>> highest(torch.tensor([[1.0, 3.0, 3.0], [0.0, torch.nan, 5.0]])).tolist()
        [1, 3]
    """
    c = scores.shape[1]
    if is_by_max(scores):
        return _by_max(scores)
    if not scores.is_floating_point():
        return scores.argmax(dim=1)
    if scores.device.type != "cpu":
        return _on_device(scores)
    if scores.ndim == 2:
        return _in_rows(scores)
    if scores.stride(1) == 1:  # the classes lie last in memory
        last = scores.movedim(1, -1)
        return _in_rows(last.reshape(-1, c)).view(last.shape[:-1])
    if scores.numel() < _FEW or c >= _LONGER or scores[0, 0].numel() < 16:
        return _by_max(scores)
    return _in_parts(scores, _AT_ONCE * len(scores) // scores.numel(), _first)


def is_by_max(scores: Tensor) -> bool:
    """Whether one `max` is the fastest way: of few scores, and of few classes on a device."""
    if not scores.is_floating_point():
        return False
    if scores.device.type == "cpu":
        return scores.numel() < 2 * _FEW_PAIRS
    return scores.shape[1] <= 32


def _on_device(scores: Tensor) -> Tensor:
    p = scores.argmax(dim=1, keepdim=True)
    top = scores.gather(1, p).squeeze(1)
    return p.squeeze(1).masked_fill_(top.isnan(), scores.shape[1])


def _in_rows(scores: Tensor) -> Tensor:
    """`highest` of ``(N, C)`` on the CPU."""
    n, c = scores.shape
    if c == 2 and n >= _FEW_PAIRS:
        return _of_two(scores)
    if scores.stride(1) != 1 or c < 3 or scores.numel() < _FEW:
        return _by_max(scores)
    quick = scores.dtype == torch.float32
    if quick and c < _LONG:
        return _in_parts(scores, _ROWS_AT_ONCE, lambda rows: _first(rows.t().contiguous(), 0))
    if quick and c < _LONGER and c % 32 <= 16:  # what 32 leave over is not vectorised
        return _in_parts(scores, _AT_ONCE // c, _first)
    if n >= _BLOCK and c >= (2 * _BLOCK if quick else _LONGER):
        return _in_parts(scores, _ROWS_AT_ONCE, _blockwise)
    return _by_max(scores)


def _in_parts(scores: Tensor, size: int, find: Callable[[Tensor], Tensor]) -> Tensor:
    if len(scores) <= size:
        return find(scores)
    return torch.cat([find(part) for part in scores.split(max(1, size))])  # type: ignore[no-untyped-call]


def _by_max(scores: Tensor) -> Tensor:
    top, p = scores.max(dim=1)
    return p.masked_fill_(top.isnan(), scores.shape[1])


def _of_two(scores: Tensor) -> Tensor:
    first, second = scores.unbind(1)
    top = torch.maximum(first, second)
    index = torch.gt(second, first, out=torch.empty_like(top))
    return index.add_(torch.ne(top, top, out=top), alpha=2).long()


def _first(scores: Tensor, dim: int = 1) -> Tensor:
    """Where along `dim` the highest stands: of the equal ones, the one with most behind it."""
    n = scores.shape[dim]
    top = scores.amax(dim, keepdim=True)
    behind = torch.arange(n, 0, -1, dtype=scores.dtype).view(-1, *[1] * (scores.ndim - 1 - dim))
    found = torch.eq(scores, top, out=torch.empty_like(scores)).mul_(behind)
    return found.amax(dim).neg_().add_(n).long()  # n where the highest is NaN, equal to nothing


def _blockwise(scores: Tensor) -> Tensor:
    """Which block has the highest, then where in it."""
    n, c = scores.shape
    best = scores.unfold(1, _BLOCK, _BLOCK).amax(dim=2)
    if c % _BLOCK:
        best = torch.cat((best, scores[:, -_BLOCK:].amax(dim=1, keepdim=True)), dim=1)
    block = _in_rows(best).mul_(_BLOCK)
    start = block.clamp(max=c - _BLOCK)  # the last block overlaps the one before
    rows = torch.arange(0, n * c, c).add_(start)
    inside = scores.reshape(-1).unfold(0, _BLOCK, 1).index_select(0, rows)
    # Never before its block, unless a score is NaN and the block the one behind the last.
    return torch.maximum(start.add_(_in_rows(inside)), block).clamp_(max=c)
