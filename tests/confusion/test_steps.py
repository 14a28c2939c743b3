"""Each step of the table is counted as its truth says, or reported."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from driven import Net, loader
from lightning_evalguard import ConfusionMetrics, EvalGuard, EvalGuardWarning
from lightning_evalguard.confusion.recorder import Recorder
from models.steps import TABLE, run

KINDS = {
    "sigmoid_twice": "the sigmoid stands twice",
    "sigmoid_module_then_bcewithlogits": "the sigmoid stands twice",
    "sigmoid_for_metric_and_loss": "the sigmoid stands twice",
    "metric_called_with_target_first": "is given (target, preds)",
    "metric_target_first_and_dict": "is given (target, preds)",
    "metric_target_first_alone": "is given (target, preds)",
    "functional_target_first": "is given (target, preds)",
    "loss_then_inplace_returned": "were changed in place after",
}


@pytest.mark.parametrize(
    ("name", "step", "how"), TABLE, ids=[name for name, *_ in TABLE]
)
def test_a_step_is_counted_right_or_reported(
    name: str, step: Any, how: dict[str, Any]
) -> None:
    guards: list[EvalGuard] = []
    verdict, why = run(step, **how, guards=guards)
    assert verdict in ("ok", "reported"), why
    said = [f.fact for f in guards[0].report.findings if f.check == "scores"]
    said = [fact for fact in said if "is never cleared" not in fact]
    if name in KINDS:
        assert [fact for fact in said if KINDS[name] in fact]
    elif verdict == "ok":
        assert said == []


def seen(step: Any, **keywords: Any) -> tuple[EvalGuard, list[str]]:
    """What a bare guard says of one validation."""
    import lightning.pytorch as pl

    class Module(Net):
        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            return step(self, batch, batch_idx)

    guard = EvalGuard(
        data="ignore", sync="ignore", stochastic="ignore", record=None, **keywords
    )
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[guard],
    )  # fmt: skip
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trainer.validate(Module(), loader(), verbose=False)
    return guard, [str(w.message) for w in said if "EvalGuard" in w.category.__name__]


def test_a_batch_that_shows_nothing_is_reported_with_both_numbers() -> None:
    def step(module: Any, batch: Any, batch_idx: int) -> Any:
        return (
            None if batch_idx == 3 else {"logits": module(batch[0]), "target": batch[1]}
        )

    guard, said = seen(step)
    assert guard.report.confusion["val"].total == 101 - 16
    facts = [text for text in said if "counts 85 of the 101 samples" in text]
    assert len(facts) == 1
    assert "left out are 16, first in batch 3" in facts[0]


def test_the_scores_policy_holds_for_what_is_found_of_the_sources() -> None:
    def step(module: Any, batch: Any, batch_idx: int) -> Any:
        return (
            None if batch_idx == 3 else {"logits": module(batch[0]), "target": batch[1]}
        )

    guard, said = seen(step, scores="ignore")
    assert [text for text in said if "counts 85" in text] == []
    assert guard.report.confusion["val"].total == 101 - 16


@pytest.mark.parametrize("regression", [True, False])
def test_what_is_not_found_is_a_warning_where_there_is_something_to_count(
    regression: bool,
) -> None:
    def step(module: Any, batch: Any, batch_idx: int) -> Any:
        out = module(batch[0])
        if regression:
            module.log("val_loss", F.mse_loss(out[:, 0], batch[0][:, 0]))
        else:
            own = out.gather(1, batch[1][:, None])[:, 0]
            module.log("val_acc", (own >= out.amax(1)).float().mean())

    _, said = seen(step)
    assert len([text for text in said if "no confusion matrix" in text]) == (
        not regression
    )


def entries() -> list[Any]:
    """What the taps of a first step replace, as it stands now."""
    names = (
        "sigmoid",
        "gather",
        "softmax",
        "log_softmax",
        "eq",
        "ne",
        "__eq__",
        "__ne__",
    )
    held = [vars(owner).get(name) for owner in (torch, torch.Tensor) for name in names]
    return [
        *held,
        F.one_hot,
        F.cross_entropy.__code__,
        vars(torch._C._nn)["cross_entropy_loss"],
    ]


@pytest.mark.parametrize("steps", [0, 1])
def test_what_the_taps_replace_is_put_back(steps: int) -> None:
    before = entries()
    recorder, x, y = Recorder(), torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    recorder.start("val", nn.Linear(3, 3))
    recorder.before_step((x, y))
    assert entries() != before
    for _ in range(steps):
        F.cross_entropy(x, y)
        recorder.after_step(None, (x, y))
        recorder.steps_over()
    recorder.abort()
    assert entries() == before


@pytest.mark.parametrize("first", [0, 1])
def test_two_recorders_see_the_losses_and_comparisons_of_one_step(first: int) -> None:
    x, y = torch.randn(8, 3), torch.arange(8) % 3
    before = vars(torch._C._nn)["cross_entropy_loss"], vars(torch.Tensor).get("__eq__")
    recorders = Recorder(), Recorder()
    for recorder in recorders:
        recorder.start("val", nn.Linear(3, 3))
        recorder.before_step((x, y))
    F.cross_entropy(x, y)
    for recorder in (recorders[first], recorders[1 - first]):
        recorder.after_step(None, (x, y))
    results = [recorder.stop().results["val"].matrix for recorder in recorders]
    assert torch.equal(results[0], results[1])
    assert int(results[0].sum()) == 8
    assert before == (
        vars(torch._C._nn)["cross_entropy_loss"],
        vars(torch.Tensor).get("__eq__"),
    )


@pytest.mark.filterwarnings("error::lightning_evalguard.EvalGuardWarning")
def test_where_a_filter_makes_errors_of_warnings_ours_is_the_error() -> None:
    import lightning.pytorch as pl

    class Module(Net):
        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            right = self(batch[0]).gather(1, batch[1][:, None])
            self.log("val_acc", (right[:, 0] > 0).float().mean())

    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[EvalGuard(data="ignore", sync="ignore")],
    )  # fmt: skip
    with pytest.raises(EvalGuardWarning, match="val: no confusion matrix"):
        trainer.validate(Module(), loader(), verbose=False)


def test_what_another_recorder_follows_is_found_and_a_refused_step_leaves_nothing() -> (
    None
):
    step = next(
        step for name, step, _ in TABLE if name == "focal_loss_by_hand_in_a_partial"
    )
    how = next(
        how for name, _, how in TABLE if name == "focal_loss_by_hand_in_a_partial"
    )
    other, x = Recorder(), torch.randn(4, 3)
    other.start("val", nn.Linear(3, 3))
    other.before_step((x, torch.tensor([0, 1, 2, 0])))
    try:
        assert run(step, **how)[0] == "ok"
    finally:
        other.abort()
    refusing = Recorder(ConfusionMetrics(source="metric:none"))
    refusing.start("val", nn.Linear(3, 3))
    with pytest.raises(ValueError, match="metric:none"):
        refusing.before_step((x, torch.tensor([0, 1, 2, 0])))
    assert "sigmoid" not in vars(torch.Tensor)
