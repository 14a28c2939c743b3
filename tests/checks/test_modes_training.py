"""What stops training, what is a plan, and what has no effect, on a real Trainer."""

from __future__ import annotations

import gc
import re
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_evalguard import EvalGuard, EvalGuardError, EvalGuardWarning
from lightning_evalguard.checks.modes.effect import effect_of, read_by_others
from models import modes as zoo
from models import plans

Make = Callable[..., pl.Trainer]


def fit(
    make: Make, module: pl.LightningModule, *callbacks: Any, **guarding: Any
) -> EvalGuard:
    """Train for two epochs under a guard of the modes alone."""
    others = (
        "state",
        "stochastic",
        "batch",
        "data",
        "sync",
        "weights",
        "scores",
        "selection",
    )
    guard = EvalGuard(metrics=None, **dict.fromkeys(others, "ignore"), **guarding)
    run = make(callbacks=[*callbacks, guard], max_epochs=2)
    run.fit(module, zoo.loader(), zoo.loader(seed=1))
    return guard


@pytest.mark.parametrize("program", plans.SILENT)
def test_a_part_in_eval_mode_that_cannot_learn_is_silent(
    program: Any, trainer: Make
) -> None:
    assert fit(trainer, program()).report.findings == []


@pytest.mark.parametrize("program", plans.STOPPED)
def test_a_part_that_learns_in_the_wrong_mode_stops_training(
    program: Any, trainer: Make
) -> None:
    with pytest.raises(EvalGuardError, match=r"\[modes\]"):
        fit(trainer, program())


PLANS = [
    (plans.Sleeps, None),
    (plans.BackboneInATrain, None),
    (plans.NormsInAHook, None),
    (zoo.Honest, plans.SleepsByACallback),
    (zoo.Honest, plans.Finetunes),
]


@pytest.mark.parametrize(("program", "callback"), PLANS)
def test_a_plan_is_a_suspicion_and_what_it_prints_declares_it(
    program: Any, callback: Any, trainer: Make
) -> None:
    callbacks = [callback()] if callback is not None else []
    with pytest.warns(EvalGuardWarning, match="if that is the plan"):
        guard = fit(trainer, program(), *callbacks)
    (found,) = guard.report.findings
    assert not found.certain
    said = re.search(r"guard\.expect_modes\(.*?\)", found.remedy)
    assert said is not None
    others = (
        "state",
        "stochastic",
        "batch",
        "data",
        "sync",
        "weights",
        "scores",
        "selection",
    )
    declared = EvalGuard(metrics=None, **dict.fromkeys(others, "ignore"))
    eval(said.group(), {"guard": declared})
    callbacks = [callback()] if callback is not None else []
    run = trainer(callbacks=[*callbacks, declared], max_epochs=2)
    run.fit(program(), zoo.loader(), zoo.loader(seed=1))
    assert declared.report.findings == []


@pytest.mark.parametrize("program", [plans.Sleeps, plans.BackboneInATrain])
def test_fix_leaves_a_plan_alone(program: Any, trainer: Make) -> None:
    module = program()
    with pytest.warns(EvalGuardWarning, match="if that is the plan") as said:
        fit(trainer, module, modes="fix")
    assert not any("Repaired" in str(w.message) for w in said)
    assert not module.backbone[1].training
    assert module.backbone[1].num_batches_tracked == 0


@pytest.mark.parametrize("program", [plans.Unheard, plans.Teaches, plans.Averages])
def test_what_does_not_learn_and_acts_as_in_training_is_a_suspicion(
    program: Any, trainer: Make
) -> None:
    with pytest.warns(EvalGuardWarning, match="but in train mode"):
        guard = fit(trainer, program())
    assert [f.certain for f in guard.report.findings] == [False]


@pytest.mark.parametrize(
    "program", [plans.TeachesInEval, plans.AveragesUnused, zoo.Teacher]
)
def test_a_teacher_in_eval_mode_or_not_used_is_silent(
    program: Any, trainer: Make
) -> None:
    assert fit(trainer, program()).report.findings == []


# in an evaluation


class Gate(nn.Module):
    """Reads its mode through a function that it calls."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _gated(x, self)


def _gated(x: torch.Tensor, module: nn.Module) -> torch.Tensor:
    return x * 2 if module.training else x


class Always(nn.Dropout):
    """Monte Carlo dropout: both modes drop."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(x, self.p, True)


class Container(nn.Module):
    """Only asks the trainer what stage it is."""

    def __init__(self) -> None:
        super().__init__()
        self.trainer = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if self.trainer is not None and self.trainer.training else x


class Neighbour(nn.Module):
    """Reads the mode of another one."""

    def __init__(self) -> None:
        super().__init__()
        self.switch = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(x, 0.5, self.switch.training)


def _with_hook() -> nn.Module:
    return nn.utils.spectral_norm(nn.Linear(8, 8))


WITHOUT_EFFECT = [
    nn.Identity, nn.ReLU, nn.GELU, lambda: nn.LayerNorm(8), lambda: nn.Linear(8, 8),
    lambda: nn.Sequential(nn.Linear(8, 8), nn.Tanh()), lambda: nn.Dropout(0.0),
    lambda: nn.BatchNorm1d(8, track_running_stats=False), lambda: Always(0.0), Container,
]  # fmt: skip
WITH_EFFECT = [
    lambda: nn.Dropout(0.1), lambda: nn.BatchNorm1d(8), Gate, _with_hook,
    lambda: nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.1)), Neighbour,
    lambda: torch.nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8)),
]  # fmt: skip


def _woken(make: Callable[[], nn.Module]) -> pl.LightningModule:
    class Wakes(zoo.Honest):
        def __init__(self) -> None:
            super().__init__()
            self.extra = make()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.extra(self.backbone(x)))

        def on_validation_model_eval(self) -> None:
            super().on_validation_model_eval()
            self.extra.train()

    return Wakes()


@pytest.mark.parametrize("make", WITHOUT_EFFECT)
def test_a_mode_without_effect_is_a_note(
    make: Callable[[], nn.Module], trainer: Make
) -> None:
    guard = fit(trainer, _woken(make))
    assert guard.report.findings == []
    assert any(
        "`extra`" in note and "depends on its mode" in note
        for note in guard.report.notes
    )


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.spectral_norm`:FutureWarning")
@pytest.mark.parametrize("make", WITH_EFFECT)
def test_a_mode_with_an_effect_stops_the_evaluation(
    make: Callable[[], nn.Module], trainer: Make
) -> None:
    with pytest.raises(EvalGuardError, match="is in train mode"):
        fit(trainer, _woken(make))


def test_whose_mode_is_read_is_read_from_the_code() -> None:
    neighbour = Neighbour()
    assert effect_of(Gate()) == "possible"
    assert effect_of(Container()) is effect_of(Always(0.5)) is None
    assert read_by_others(dict(neighbour.named_modules())) == {id(neighbour.switch)}


def test_what_follows_from_a_module_in_train_mode_is_counted_under_it(
    trainer: Make,
) -> None:
    class Wakes(zoo.Honest):
        def on_validation_model_eval(self) -> None:
            super().on_validation_model_eval()
            self.backbone.train()

    guard = EvalGuard(modes="warn", metrics=None, sync="ignore", data="ignore")
    with pytest.warns(EvalGuardWarning):
        trainer(callbacks=[guard], max_epochs=2).fit(
            Wakes(), zoo.loader(), zoo.loader(seed=1)
        )
    assert {f.check for f in guard.report.findings} == {"modes"}
    assert any("follows from [modes]" in note for note in guard.report.notes)


@pytest.mark.parametrize("entry", ["fit", "validate", "test", "predict"])
def test_trainer_and_module_are_freed_while_the_guard_lives_on(
    entry: str, trainer: Make
) -> None:
    guard = EvalGuard()

    def run() -> list[weakref.ref[Any]]:
        module, made = zoo.Honest(), trainer(callbacks=[guard])
        loaders = (
            (zoo.loader(), zoo.loader(seed=1)) if entry == "fit" else (zoo.loader(),)
        )
        getattr(made, entry)(module, *loaders)
        return [weakref.ref(made), weakref.ref(module)]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        references = run()
    gc.collect()
    assert [reference() for reference in references] == [None, None]
