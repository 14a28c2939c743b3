"""The class with the highest score."""

from __future__ import annotations

from torch import Tensor


def highest(scores: Tensor) -> Tensor:
    """Index of the highest score of each sample, the first of equal ones.

    Args:
        scores: ``(N, C, ...)``.

    Returns:
        int64 ``(N, ...)``; C where one of a sample's scores is NaN.

    Example:
        >>> import torch
        >>> highest(torch.tensor([[1.0, 3.0, 3.0], [0.0, torch.nan, 5.0]])).tolist()
        [1, 3]
    """
    top, index = scores.max(dim=1)
    if not scores.is_floating_point():
        return index
    return index.masked_fill_(top.isnan(), scores.shape[1])
