"""Logged scores: what they claim is checked, and what is honest stays silent."""

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
from torchmetrics.classification import BinaryAccuracy, MultilabelF1Score

import words
from lightning_evalguard import EvalGuard, EvalGuardWarning
from models import scores as zoo
from models.program import Classifier, samples

Make = Callable[..., pl.Trainer]
ALONE: dict[str, Any] = {"metrics": None, "sync": "ignore"}


def run(
    make: Make, module: pl.LightningModule, guard: EvalGuard, **kwargs: Any
) -> pl.Trainer:
    made = make(callbacks=[guard], **({"max_epochs": 2} | kwargs))
    made.fit(module)
    return made


# --- what is found, in words --------------------------------------------------------------------


def found(make: Make, module: type[Classifier], **kwargs: Any) -> list[str]:
    guard = EvalGuard(scores="warn", **ALONE)
    with pytest.warns(EvalGuardWarning):
        run(make, module(), guard, **kwargs)
    return [words.said(f).partition(": ")[2] for f in guard.report.findings]


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (
            zoo.NeverReset,
            "is not reset: it still held 2 updates from the sanity check when this evaluation "
            "began. Earlier samples are in the score. "
            "Call `self.acc.reset()` in `on_validation_epoch_start`, or log the metric "
            "object itself; train and validation need one each. [scores]",
        ),
        (
            zoo.TimeFirst,
            "self.log weighs a batch of 5 samples as 4: it took dim 0 of the batch's first tensor "
            "for the samples. Some samples count more than others. "
            "Pass batch_size=<number of samples> to self.log. [scores]",
        ),
        (
            zoo.WeighsAllAlike,
            "is the plain mean of 4 batches' means, though batches have 1 to 5 samples: small ones "
            "weigh too much. Pass batch_size=<number of samples> to self.log. [scores]",
        ),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_a_message_says_what_is_so_and_the_fix(
    trainer: Make, module: type[Classifier], said: str
) -> None:
    assert found(trainer, module, max_epochs=1) == [said]


@pytest.mark.parametrize(
    ("reduction", "reason"),
    [
        ("max", '`reduce_fx="max"` makes it the max of 4 batches'),
        ("min", '`reduce_fx="min"` makes it the min of 4 batches'),
        ("sum", '`reduce_fx="sum"` makes it the sum of 4 batches'),
        ("first", "it is logged in 1 of 4 batches"),
        ("mean", ""),
    ],
)
def test_a_score_that_is_no_mean_of_all_batches_says_how_it_is_logged(
    trainer: Make, reduction: str, reason: str
) -> None:
    class Reduces(Classifier):
        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            logits = self(batch[0])
            right = (logits.argmax(1) == batch[1]).float().mean()
            how: dict[str, Any] = {"batch_size": len(batch[1])}
            if reduction != "first":
                how["reduce_fx"] = reduction
            if reduction != "first" or batch_idx == 0:
                self.log("val_acc", right, **how)
            return {"logits": logits, "target": batch[1]}

        def val_dataloader(self) -> Any:
            return DataLoader(samples(2), 5)

    guard = EvalGuard(sync="ignore")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EvalGuardWarning)
        run(trainer, Reduces(), guard, max_epochs=1)
    said = [f.fact for f in guard.report.findings]
    assert len(said) == bool(reason)
    assert all(reason in fact for fact in said)


@pytest.mark.parametrize(
    ("size", "findings"), [(1, ["plain mean of 4 batches'"]), (None, [])]
)
def test_what_a_hook_logs_after_a_step_is_weighed_by_that_steps_samples(
    trainer: Make, size: int | None, findings: list[str]
) -> None:
    class Logs(Classifier):
        def on_validation_batch_end(
            self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
        ) -> None:
            loss = F.cross_entropy(self(batch[0]), batch[1])
            self.log("val_hook", loss, batch_size=size or len(batch[1]))

        def val_dataloader(self) -> Any:
            return DataLoader(samples(2), 5)

    guard = EvalGuard(scores="warn", **ALONE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EvalGuardWarning)
        run(trainer, Logs(), guard, max_epochs=1)
    said = [f.fact for f in guard.report.findings]
    assert len(said) == len(findings)
    assert all(text in fact for text, fact in zip(findings, said, strict=True))


@pytest.mark.parametrize("module", [zoo.NeverReset, zoo.WeighsAllAlike, zoo.MeanOfF1])
def test_its_own_policy_switches_it_off_and_no_other(
    trainer: Make, module: type[Classifier]
) -> None:
    guard = EvalGuard(scores="ignore", **ALONE)
    run(trainer, module(), guard)
    assert guard.report.findings == []
    guard = EvalGuard(data="ignore", **ALONE)
    with pytest.warns(EvalGuardWarning):
        run(trainer, module(), guard)
    assert [f.check for f in guard.report.findings] == ["scores"]


def test_a_score_is_one_finding_a_run_with_the_last_epochs_numbers(
    trainer: Make,
) -> None:
    guard = EvalGuard(**ALONE)
    with pytest.warns(EvalGuardWarning, match="is not reset") as warned:
        run(trainer, zoo.NeverReset(), guard, max_epochs=3)
    assert len([w for w in warned if issubclass(w.category, EvalGuardWarning)]) == 1
    (finding,) = guard.report.findings
    assert (finding.count, finding.epoch) == (3, 2)
    assert "it still held 6 updates" in finding.fact


def test_a_difference_from_the_matrix_is_told_with_its_reason(trainer: Make) -> None:
    class OwnF1(zoo.MeanOfF1):
        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            logits = self(batch[0])
            self.log("val/f1_macro", self.f1(logits, batch[1]))
            return {"logits": logits, "target": batch[1]}

    guard = EvalGuard(sync="ignore")
    with pytest.warns(EvalGuardWarning, match="it is the mean of 4 batches' f1_macro"):
        run(trainer, OwnF1(), guard, max_epochs=1)
    assert [f.check for f in guard.report.findings] == ["scores"]


class Spam(pl.LightningModule):
    """Its one feature is the logit; of its three batches the last has all of them in [0, 1]."""

    def __init__(
        self, score: Callable[[Any, Tensor, Tensor], Any], labels: int = 1
    ) -> None:
        super().__init__()
        self.acc, self.f1 = BinaryAccuracy(), MultilabelF1Score(2)
        self.scale = nn.Parameter(torch.ones(()))
        self.score = score
        logits = [-1.0, 2.0, 0.3, -0.2, 3.0, 0.2, -2.0, 0.4, 0.1, 0.3, 0.7, 0.9]
        x = torch.tensor(logits)
        y = (x > 0).long()
        if labels == 2:
            x, y = torch.stack((x, x), 1), torch.stack((y, y), 1)
        self.data = TensorDataset(x, y)

    def val_dataloader(self) -> Any:
        return DataLoader(self.data, 4)

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        return self.score(self, batch[0] * self.scale, batch[1])


def metric_of_logits(net: Any, logits: Tensor, target: Tensor) -> None:
    net.acc(logits, target)
    net.log("val/accuracy", net.acc)


def metric_of_logits_beside_outputs(net: Any, logits: Tensor, target: Tensor) -> Any:
    metric_of_logits(net, logits, target)
    return {"logits": logits, "target": target}


def metric_of_many_labels(net: Any, logits: Tensor, target: Tensor) -> None:
    net.f1(logits, target)
    net.log("val/f1_macro", net.f1)


def cut_by_hand(net: Any, logits: Tensor, target: Tensor) -> Tensor:
    right = (logits > 0.5) == target.bool()
    net.log("val/accuracy", right.float().mean(), batch_size=len(target))
    return F.binary_cross_entropy_with_logits(logits, target.float())


def metric_of_probabilities(net: Any, logits: Tensor, target: Tensor) -> None:
    metric_of_logits(net, logits.sigmoid(), target)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_no_number_breaks_nothing(value: float, trainer: Make) -> None:
    class Empty(Classifier):
        def on_validation_epoch_end(self) -> None:
            self.log_dict(
                {"calibration": value, "val_perplexity": value, "val_auroc": value}
            )

    guard = EvalGuard(scores="warn", **ALONE)
    run(trainer, Empty(), guard)
    assert (guard.report.findings, guard.report.notes) == ([], [])


@pytest.mark.parametrize(
    ("score", "labels", "said"),
    [
        (
            metric_of_logits,
            1,
            "is 0.8333, expected 1.0000 (accuracy); the logits of 4 samples were taken for "
            "probabilities, because all of their batch lie in [0, 1]. "
            "Right answers count as wrong. Give it",
        ),
        (metric_of_logits_beside_outputs, 1, "the logits of 4 samples were taken for"),
        (metric_of_many_labels, 2, "the logits of 8 answers were taken for"),
        (
            cut_by_hand,
            1,
            "expected 1.0000 (accuracy); it cuts logits at 0.5, expected 0. "
            "Right answers count as wrong. Give it",
        ),
        (metric_of_probabilities, 1, ""),
    ],
)
def test_logits_that_are_taken_for_probabilities_are_the_reason(
    trainer: Make, score: Callable[..., Any], labels: int, said: str
) -> None:
    guard = EvalGuard(sync="ignore")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        trainer(callbacks=[guard]).validate(Spam(score, labels), verbose=False)
    warned = [str(w.message) for w in told if issubclass(w.category, EvalGuardWarning)]
    assert [said in text for text in warned] == [True] * bool(said)
    assert [f.check for f in guard.report.findings] == ["scores"] * bool(said)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_only_16_bits_round_is_noted_and_warned_of_by_nobody(
    trainer: Make, dtype: torch.dtype
) -> None:
    def score(net: Any, logits: Tensor, target: Tensor) -> None:
        metric_of_logits(
            net, torch.where(logits == 0.3, 0.0005, logits).to(dtype), target
        )

    guard, spam = EvalGuard(sync="ignore"), Spam(score)
    spam.data = TensorDataset(spam.data.tensors[0][:8], spam.data.tensors[1][:8])
    trainer(callbacks=[guard]).validate(spam, verbose=False)
    assert guard.report.findings == []
    noted = [
        note
        for note in guard.report.notes
        if "`val/accuracy` is 0.8750, expected 1" in note
    ]
    assert [note.partition("; ")[2] for note in noted] == [
        "of 1 sample the sigmoid, in 16 bits, is rounded to the other side of 0.5"
    ]
