"""Small batches are counted together: exactly what one after the other gives."""

from __future__ import annotations

import pytest
import torch

from lightning_evalguard.confusion import by_batch
from lightning_evalguard.confusion.by_batch import Batches
from lightning_evalguard.confusion.matrix import ConfusionMatrix


def margins(totals: torch.Tensor) -> by_batch.Margins:
    return totals, totals, totals, totals


@pytest.mark.parametrize(
    "sizes", [[5] * 70, [5] * 40 + [2], [3, 0, 9, 1] * 20, [5000, 3, 3, 5000]]
)
@pytest.mark.parametrize("labels", [False, True])
def test_counts_of_batches_that_waited_are_those_of_each(
    sizes: list[int], labels: bool
) -> None:
    made = torch.Generator().manual_seed(len(sizes))
    waits, whole = ConfusionMatrix(4), ConfusionMatrix(4)
    each, expected = Batches(), [torch.zeros_like(whole.counts)]
    for n in sizes:
        preds = torch.randn(n, 4, generator=made)
        preds[preds > 2.5] = torch.nan
        preds = preds.argmax(1) if labels else preds
        target = torch.randint(-1, 6, (n,), generator=made)
        target[target == 5] = -100
        waits.note(preds, target)
        waits.step_over(each)
        whole.count(preds, target)
        target.fill_(0)  # what waits is no view of the batch
        expected.append(whole.counts.clone())
    waits.settle()
    assert torch.equal(waits.counts, whole.counts)
    each.close("multilabel", margins)
    assert each.totals() == torch.stack(expected).diff(dim=0).sum(1).tolist()


def test_several_parts_of_a_step_and_a_large_one_between_stay_in_order() -> None:
    made = torch.Generator().manual_seed(0)
    waits, whole, each = ConfusionMatrix(3), ConfusionMatrix(3), Batches()
    for parts in ([4, 4], [4], [], [6000, 2], [2, 6000, 1]):
        for n in parts:
            preds, target = torch.randn(n, 3, generator=made), torch.arange(n) % 3
            waits.note(preds, target)
            whole.count(preds, target)
        waits.step_over(each)
    waits.settle()
    each.close("multilabel", margins)
    assert torch.equal(waits.counts, whole.counts)
    assert each.totals() == [8, 4, 0, 6002, 6003]


def test_what_waits_is_bounded_and_forgotten_by_a_reset() -> None:
    matrix = ConfusionMatrix(3)
    for _ in range(1000):
        matrix.note(torch.randn(512, 3), torch.zeros(512, dtype=torch.long))
        assert sum(map(len, matrix._waiting.targets)) <= 1 << 17
    matrix.reset()
    assert matrix.result().total == 0


def test_more_cells_than_are_kept_forget_the_batches_and_count_on() -> None:
    matrix, each = ConfusionMatrix(300), Batches()
    for _ in range(50):
        matrix.note(torch.arange(300), torch.arange(300))
        matrix.step_over(each)
    each.close("multilabel", margins)
    assert each.totals() == []
    assert matrix.result().total == 50 * 300
