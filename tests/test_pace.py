"""Looking ever more rarely: what is skipped is found by the end, and `budget` says how much."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_evalguard import EvalGuard, EvalGuardError
from lightning_evalguard.pace import Pace

BATCHES = 60
LATE = 37  # no batch at which the guard looks


def loader(batches: int = BATCHES) -> DataLoader[Any]:
    made = torch.Generator().manual_seed(0)
    x = torch.randn(4 * batches, 8, generator=made)
    return DataLoader(
        TensorDataset(x, torch.randint(0, 3, (len(x),), generator=made)), 4
    )


class Net(pl.LightningModule):
    """Does something to itself in one late batch, where it is told to."""

    def __init__(
        self, fault: Callable[[Net], None] | None = None, until: int = LATE
    ) -> None:
        super().__init__()
        self.fault, self.until = fault, until
        self.body = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
        self.head = nn.Linear(8, 3)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.head(self.body(batch[0])), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        if self.fault is not None and LATE <= batch_idx <= self.until:
            self.fault(self)
        self.log("val_loss", F.cross_entropy(self.head(self.body(batch[0])), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.01)


def evaluated(module: Net, **kwargs: Any) -> EvalGuard:
    guard = EvalGuard(data="ignore", weights="ignore", sync="ignore", **kwargs)
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[guard],
    )  # fmt: skip
    trainer.validate(module, loader(), verbose=False)
    return guard


def _wakes(module: Net) -> None:
    module.body[2].train()


def _writes(module: Net) -> None:
    module.head.bias.data.add_(1.0)


def _counts_a_write(module: Net) -> None:
    with torch.no_grad():
        module.head.bias.add_(1.0)


def _moves_a_statistic(module: Net) -> None:
    module.body[1].running_mean.add_(1.0)  # type: ignore[union-attr, operator]


def _turns_gradients_on(module: Net) -> None:
    torch.set_grad_enabled(True)


@pytest.mark.parametrize(
    ("fault", "check", "subject"),
    [
        (_wakes, "modes", "body.2"),
        (_writes, "state", "head.bias"),
        (_counts_a_write, "state", "head.bias"),
        (_moves_a_statistic, "state", "body.1.running_mean"),
    ],
)
def test_what_a_skipped_batch_does_is_found(
    fault: Any, check: str, subject: str
) -> None:
    with pytest.raises(EvalGuardError) as raised:
        evaluated(Net(fault))
    assert (check, subject) in {
        (f.check, f.subject) for f in raised.value.report.findings
    }


def test_a_module_that_wakes_in_the_last_batch_is_found() -> None:
    class Last(Net):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            super().validation_step(batch, batch_idx)
            if batch_idx == BATCHES - 1:
                self.body.train()

    with pytest.raises(EvalGuardError) as raised:
        evaluated(Last())
    assert {f.check for f in raised.value.report.findings} == {"modes"}


def test_dropout_that_is_active_in_a_single_skipped_batch_is_found() -> None:
    def drops(module: Net) -> None:
        F.dropout(torch.ones(8), 0.5, training=True)

    with pytest.raises(EvalGuardError) as raised:
        evaluated(Net(drops))
    assert {f.check for f in raised.value.report.findings} == {"stochastic"}


def test_gradients_that_a_skipped_batch_turns_on_are_found() -> None:
    with pytest.raises(EvalGuardError) as raised:
        evaluated(Net(_turns_gradients_on))
    assert {f.check for f in raised.value.report.findings} == {"grad"}


def test_the_report_says_how_many_batches_were_looked_at() -> None:
    guard = evaluated(Net())
    looked_at = guard.report.checked["batches_looked_at"]
    assert not guard.report.findings
    assert guard.report.checked["batches"] == BATCHES
    assert 16 <= looked_at < 24
    assert f"{looked_at} batches looked at" in str(guard.report)


def test_a_whole_budget_looks_at_every_batch_and_says_nothing_more() -> None:
    guard = evaluated(Net(), budget=1.0)
    assert guard.report.checked["batches_looked_at"] == BATCHES
    assert "looked at" not in str(guard.report)


def test_a_whole_budget_names_the_batch_in_which_a_weight_changes() -> None:
    with pytest.raises(EvalGuardError) as raised:
        evaluated(Net(_counts_a_write), budget=1.0)
    assert LATE <= raised.value.report.checked["batches"] <= LATE + 2


@pytest.mark.parametrize("budget", [0.001, 0.01, 0.1, 0.5, 1.0])
def test_looks_take_their_share_of_a_long_evaluation(budget: float) -> None:
    pace, n = Pace(budget), 20_000
    looks = sum(pace.looks(0) for _ in range(n))
    assert looks <= budget * n + 16 + 2 * len(bin(round(1 / budget)))
    assert looks >= budget * n * 0.9


def test_each_loader_begins_with_full_looks() -> None:
    pace = Pace(0.01)
    assert sum(pace.looks(0) for _ in range(100)) < 25
    assert all(pace.looks(1) for _ in range(16))
    pace.begin()
    assert all(pace.looks(1) for _ in range(16))


def test_of_evaluations_after_the_first_four_batches_come_first() -> None:
    pace = Pace(0.01)
    pace.begin(again=True)
    assert [i for i in range(60) if pace.looks(0)] == [0, 1, 2, 3, 5, 9, 17, 33]
    assert pace.looks(1)
    pace = Pace(1.0)
    pace.begin(again=True)
    assert all(pace.looks(0) for _ in range(60))


class _Noisy(TensorDataset):
    """Draws for one late sample of each evaluation."""

    def __getitem__(self, index: int) -> Any:
        if index >= 4 * LATE:
            torch.rand(1)
        return super().__getitem__(index)


def fitted(module: Net, data: Any = None) -> EvalGuard:
    guard = EvalGuard(data="ignore", weights="ignore", sync="ignore", stochastic="warn")
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[guard], max_epochs=4,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(
            module, loader(2), loader() if data is None else DataLoader(data, 4)
        )
    return guard


def test_a_draw_in_a_skipped_batch_of_a_later_epoch_is_found_and_then_named() -> None:
    def draws(module: Net) -> None:
        if module.current_epoch >= 2:
            torch.rand(3)

    findings = fitted(Net(draws)).report.findings
    first, second = [(f.epoch, f.fact) for f in findings]
    assert first[0] == 2
    assert "something in batches 34 to 58 moved torch's global generator" in first[1]
    assert second[0] == 3
    assert "torch.rand(3)" in second[1]


def test_a_draw_in_the_last_batch_of_a_later_epoch_is_named_at_once() -> None:
    class Last(Net):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            super().validation_step(batch, batch_idx)
            if batch_idx == BATCHES - 1 and self.current_epoch == 2:
                torch.rand(3)

    (finding,) = fitted(Last()).report.findings
    assert (finding.epoch, finding.certain) == (2, False)
    assert "torch.rand(3)" in finding.fact


def test_what_a_dataset_draws_in_skipped_batches_is_no_finding() -> None:
    made = loader().dataset
    assert not fitted(Net(), _Noisy(*made.tensors)).report.findings  # type: ignore[attr-defined]


@pytest.mark.parametrize(("parts", "first"), [(10, 16), (1000, 8), (5000, 4)])
def test_of_a_model_of_many_parts_fewer_batches_are_looked_at_first(
    parts: int, first: int
) -> None:
    pace = Pace(0.01)
    pace.reads(parts)
    looks = [batch for batch in range(100) if pace.looks(0)]
    assert looks[: first + 1] == [*range(first), first + 1]
