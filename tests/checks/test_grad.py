"""Graphs that an evaluation records, returns or keeps, and those it may."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import Metric

import words
from lightning_evalguard import (
    EvalGuardError,
    EvalGuardWarning,
    Report,
    allow,
    evaluating,
)
from lightning_evalguard.callback import EvalGuard
from models.program import CLASSES, FEATURES, Classifier

Fit = Callable[..., pl.Trainer]


@pytest.fixture
def report_of(trainer: Callable[..., pl.Trainer]) -> Callable[..., Report]:
    """``report_of(module, entry="fit", **kwargs)``: what the guard says of it."""

    def run(module: pl.LightningModule, entry: str = "fit", **kwargs: Any) -> Report:
        ours = {
            k: kwargs.pop(k) for k in tuple(kwargs) if k in ("grad", "allow", "audit")
        }
        guard = EvalGuard(
            data="ignore", scores="ignore", metrics=None, sync="ignore", **ours
        )
        made = trainer(callbacks=[guard], **kwargs)
        with warnings.catch_warnings(), contextlib.suppress(EvalGuardError):
            warnings.simplefilter("ignore", EvalGuardWarning)
            getattr(made, entry)(
                module, **({"verbose": False} if entry == "validate" else {})
            )
        return guard.report

    return run


class Records(Classifier):
    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        with torch.enable_grad():
            logits = self(batch[0])
        return {"preds": logits}


def test_the_line_that_switched_grad_mode_on_is_named(report_of: Any) -> None:
    (finding,) = report_of(Records()).findings
    assert finding.certain
    assert str(finding).startswith(
        "`Records` (the whole model): returned an autograd graph, expected tensors without "
        "`grad_fn`; set at tests/checks/test_grad.py:"
    )
    assert words.said(finding).endswith(
        "`with torch.enable_grad():`. "
        "The graph stays in memory. Return `.detach()`ed tensors. [grad]"
    )


def test_the_context_that_only_puts_back_is_not_blamed(report_of: Any) -> None:
    class Nested(Classifier):
        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            with torch.enable_grad():
                with torch.no_grad():
                    x = batch[0] * 2
                logits = self(x)
            return {"preds": logits}

    (finding,) = report_of(Nested()).findings
    assert finding.expression == "with torch.enable_grad():"


def test_without_a_witness_a_returned_graph_is_found_all_the_same(
    report_of: Any,
) -> None:
    (finding,) = report_of(Records(), audit="off").findings
    assert (finding.check, finding.location) == ("grad", None)


def test_an_allowed_graph_is_left_alone(report_of: Any) -> None:
    class Meant(Classifier):
        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            with (
                allow("grad", reason="measures what recording costs"),
                torch.enable_grad(),
            ):
                logits = self(batch[0])
            self.log("loss", F.cross_entropy(logits.detach(), batch[1]))

    class Returned(Meant):
        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            with allow("grad", reason="a callback differentiates"), torch.enable_grad():
                return {"preds": self(batch[0])}

    assert report_of(Meant()).findings == []
    assert report_of(Returned(), max_epochs=2).findings == []
    assert report_of(Records(), allow={"grad": ["*test_grad.py"]}).findings == []


@pytest.mark.parametrize("entry", ["fit", "validate"])
def test_a_derivative_of_the_input_is_what_grad_mode_is_for(
    entry: str, report_of: Any
) -> None:
    class Forces(Classifier):
        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            with torch.inference_mode(False), torch.enable_grad():
                x = batch[0].clone().requires_grad_()
                (slope,) = torch.autograd.grad(self(x).sum(), x)
            return {"forces": slope}

    assert report_of(Forces(), entry, audit="full").findings == []


def test_grad_mode_inside_inference_mode_records_nothing(report_of: Any) -> None:
    assert report_of(Records(), "validate").findings == []


def test_a_metric_with_a_network_of_its_own_is_none_of_the_users(
    report_of: Any,
) -> None:
    class Distance(Metric):
        full_state_update = False

        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Linear(CLASSES, 2)
            self.add_state("total", torch.zeros(()), "sum")

        def update(self, logits: Tensor) -> None:
            self.total = self.total + self.features(logits).detach().sum()

        def compute(self) -> Tensor:
            return self.total

    class Measures(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.distance = Distance()

        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            self.distance(self(batch[0]))
            self.log("distance", self.distance)

    assert report_of(Measures(), audit="full").findings == []


def test_grad_mode_left_on_is_told_once_with_its_line(report_of: Any) -> None:
    class LeavesOn(Classifier):
        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            torch.set_grad_enabled(True)
            return super().validation_step(batch, batch_idx)

    try:
        (finding,) = report_of(LeavesOn(), grad="warn").findings[:1]
    finally:
        torch.set_grad_enabled(True)
    assert finding.expression == "torch.set_grad_enabled(True)"
    assert "left grad mode on after the step" in finding.fact


@pytest.mark.parametrize("hook", ["on_validation_epoch_end", "on_validation_end"])
def test_grad_mode_left_on_after_the_last_step_is_a_suspicion(
    hook: str, report_of: Any
) -> None:
    class LeavesOn(Classifier):
        pass

    setattr(LeavesOn, hook, lambda self: torch._C._set_grad_enabled(True))
    (finding,) = report_of(LeavesOn(), num_sanity_val_steps=0).findings
    assert (finding.check, finding.certain) == ("grad", False)
    assert "left on by a hook after the last step" in finding.fact

    def puts_back(self: Any) -> None:
        with torch.enable_grad():
            pass

    setattr(LeavesOn, hook, puts_back)
    assert report_of(LeavesOn()).findings == []


class Keeps(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.outputs: list[Tensor] = []

    def keep(self, logits: Tensor) -> None:
        self.outputs.append(logits)

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.keep(self(batch[0]))


def test_outputs_of_two_evaluations_in_one_list_are_a_suspicion(report_of: Any) -> None:
    (finding,) = report_of(Keeps(), max_epochs=1).findings
    assert (finding.subject, finding.stage, finding.certain) == (
        "outputs",
        "validate",
        False,
    )
    assert "keeps 4 tensors of more than one evaluation" in finding.fact
    assert 'allow={"grad": ["outputs"]}' in finding.switch


class Caches(Keeps):
    """A mask for each place in the set, made once."""

    def __init__(self) -> None:
        super().__init__()
        self.masks: dict[int, Tensor] = {}

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        if batch_idx not in self.masks:
            self.masks[batch_idx] = torch.arange(8.0) < batch_idx


class KeepsTheFirst(Keeps):
    """One batch of each evaluation."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        if batch_idx == 0:
            super().validation_step(batch, batch_idx)


class KeepsByBatch(Keeps):
    """Overwritten in each evaluation, which is longer than the sanity check."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.outputs[batch_idx:] = [self(batch[0])]


@pytest.mark.parametrize("cache", [Caches, KeepsByBatch])
def test_what_fills_up_or_is_overwritten_accumulates_nothing(
    cache: Any, report_of: Any
) -> None:
    assert report_of(cache(), max_epochs=3, num_sanity_val_steps=1).findings == []


def test_one_batch_of_each_evaluation_accumulates(report_of: Any) -> None:
    (finding,) = report_of(KeepsTheFirst(), max_epochs=3).findings
    assert "of more than one evaluation" in finding.fact


@pytest.mark.parametrize("hook", ["on_validation_epoch_start", "on_validation_end"])
def test_outputs_cleared_by_any_hook_are_left_alone(hook: str, report_of: Any) -> None:
    class Clears(Keeps):
        pass

    setattr(Clears, hook, lambda self: self.outputs.clear())
    assert report_of(Clears(), max_epochs=3).findings == []


def test_a_history_of_scalars_is_left_alone(report_of: Any) -> None:
    class History(Keeps):
        def keep(self, logits: Tensor) -> None:
            self.outputs.append(logits.mean())

    assert report_of(History(), max_epochs=3).findings == []


def test_graphs_in_an_attribute_are_certain(report_of: Any) -> None:
    class KeepsGraphs(Keeps):
        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            with torch.enable_grad():
                self.keep(self(batch[0]))

    (finding,) = report_of(KeepsGraphs()).findings
    assert (finding.subject, finding.certain) == ("outputs", True)
    assert finding.expression == "with torch.enable_grad():"


@pytest.mark.parametrize("audit", ["auto", "full"])
def test_the_weights_that_autocast_keeps_are_no_graph(audit: Any) -> None:
    class SwitchesOn(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            with torch.enable_grad():
                return super().forward(x)

    def cast(net: nn.Module) -> None:
        with evaluating(net, audit=audit), torch.autocast("cpu", torch.bfloat16):
            net(torch.ones(4, FEATURES))

    cast(nn.Linear(FEATURES, CLASSES))
    with pytest.raises(EvalGuardError, match="returned an autograd graph"):
        cast(SwitchesOn(FEATURES, CLASSES))


def test_grad_mode_contexts_are_as_they_were_after_a_run(report_of: Any) -> None:
    contexts = (torch.enable_grad, torch.set_grad_enabled, torch.inference_mode)
    before = [dict(vars(c)) for c in contexts]
    report_of(Records())
    assert [dict(vars(c)) for c in contexts] == before


def test_a_compiled_module_is_compiled_as_often_as_without_the_guard(
    trainer: Callable[..., pl.Trainer],
) -> None:
    def frames(*callbacks: Any) -> int:
        torch._dynamo.reset()
        counts = 0

        def backend(graph: Any, inputs: Any) -> Any:
            nonlocal counts
            counts += 1
            return graph.forward

        module = Classifier()
        module.net = torch.compile(nn.Linear(FEATURES, CLASSES), backend=backend)
        trainer(callbacks=list(callbacks), max_epochs=2).fit(module)
        return counts

    assert frames(EvalGuard(data="ignore", metrics=None, sync="ignore")) == frames() > 0
