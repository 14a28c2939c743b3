"""The metric objects that the `scores` check follows: how often was each updated?"""

from __future__ import annotations

import torch
from torchmetrics.classification import MulticlassAccuracy

from lightning_evalguard.checks.scores.metrics import Metrics

LABELS = torch.tensor([0, 1, 2])


class Holder(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.acc = MulticlassAccuracy(3)


def test_a_reset_counts_wherever_the_new_state_lies_in_memory() -> None:
    # About one in 400 of these new states lies where the one before it lay.
    missed = 0
    for _ in range(2_000):
        holder = Holder()
        metrics = Metrics()
        metrics.begin(holder)
        for _ in range(3):
            holder.acc.reset()
            holder.acc.update(LABELS, LABELS)
            metrics.step_over(0)
        missed += metrics.step_over(0) != 3
        metrics.close()
    assert missed == 0


def test_a_step_without_an_update_counts_none() -> None:
    holder = Holder()
    metrics = Metrics()
    metrics.begin(holder)
    holder.acc.update(LABELS, LABELS)
    assert [metrics.step_over(0) for _ in range(3)] == [1, 1, 1]
    holder.acc(LABELS, LABELS)
    assert metrics.step_over(0) == 2
    metrics.close()
