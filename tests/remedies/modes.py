"""Of the check `modes`."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_evalguard import Report, allow
from models.program import FEATURES, Classifier
from remedies import Make, alone, applied, fitted, heard


class Body(Classifier):
    """A body with dropout and a norm, under a head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(FEATURES, FEATURES), nn.BatchNorm1d(FEATURES), nn.Dropout(0.5)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.body(x))


class Wakes(Body):
    """A pre-hook wakes the dropout, out of sight of who calls what."""

    fixed = False

    def on_validation_epoch_start(self) -> None:
        self.body[2].training = True
        if self.fixed:
            self.body[2].eval()


@applied('Call `.eval()` on it, or pass modes="fix".')
def flag_set_by_hand(make: Make, fixed: bool) -> Report:
    module = Wakes()
    module.fixed = fixed
    return fitted(make, alone("modes"), module)


@applied('Call `.eval()` on it, or pass modes="fix".')
def flag_set_by_hand_and_repaired(make: Make, fixed: bool) -> Report:
    module = Wakes()
    report = fitted(make, alone("modes", modes="fix" if fixed else "error"), module)
    if fixed:  # it says what it repaired, and goes on
        assert report.checked["training_steps"] == 2
        report.findings.clear()
    return report


@applied("Call `super().{}(...)` in `{}`.")
def an_override_that_reaches_no_flag(make: Make, fixed: bool) -> Report:
    class Deaf(Body):
        def eval(self) -> Any:
            return super().eval() if fixed else self

    guard = alone("modes")
    return heard(guard, lambda: make(callbacks=[guard]).validate(Deaf(), verbose=False))


@applied("Remove `{}`.")
def a_call_that_wakes(make: Make, fixed: bool) -> Report:
    class Woken(Body):
        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            if not fixed:
                self.body.train()
            return super().validation_step(batch, batch_idx)

    return fitted(make, alone("modes"), Woken())


def _sampling(make: Make, how: str) -> Report:
    class Samples(Body):
        def forward(self, x: Tensor) -> Tensor:
            if self.training or how == "without":
                return super().forward(x)
            if how == "allowed":
                with allow("modes", reason="Monte Carlo dropout"):
                    return self.sampled(x)
            return self.sampled(x)

        def sampled(self, x: Tensor) -> Tensor:
            self.body[2].train()
            out = super().forward(x)
            self.body[2].eval()
            return out

    return fitted(make, alone("modes"), Samples())


@applied("Evaluate without it, or write `with {}` around it if it is meant.")
def woken_for_the_call(make: Make, fixed: bool) -> Report:
    return _sampling(make, "without" if fixed else "")


@applied("Evaluate without it, or write `with {}` around it if it is meant.")
def woken_for_the_call_and_allowed(make: Make, fixed: bool) -> Report:
    return _sampling(make, "allowed" if fixed else "")


@applied('Put back each submodule\'s own mode, or pass modes="fix".')
def left_in_eval_mode(make: Make, fixed: bool) -> Report:
    class Restores(Body):
        def __init__(self) -> None:
            super().__init__()
            self.on_validation_model_train = self.restore  # type: ignore[method-assign]

        def on_validation_model_eval(self) -> None:
            self.modes = {name: m.training for name, m in self.named_modules()}
            super().on_validation_model_eval()

        def restore(self) -> None:
            for name, mode in self.modes.items():
                if fixed or name == "body":
                    self.get_submodule(name).training = mode

    return fitted(make, alone("modes"), Restores())


@applied(
    "Delete the override of `{}`: Lightning then restores each submodule's own mode.",
)
def an_override_that_restores_nothing(make: Make, fixed: bool) -> Report:
    class Idle(Body):
        def on_validation_model_train(self) -> None:
            pass

    return fitted(make, alone("modes"), Body() if fixed else Idle())


class Frozen(Body):
    """The body is frozen in eval mode on purpose."""

    def __init__(self) -> None:
        super().__init__()
        self.body.requires_grad_(False).eval()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.net.parameters(), lr=0.1)


@applied(
    "Put back only the modules that were in train mode: `.train()` and `unfreeze()` wake frozen "
    "ones too."
)
def what_was_frozen_is_woken(make: Make, fixed: bool) -> Report:
    class Wakes(Frozen):
        def __init__(self) -> None:
            super().__init__()
            self.on_validation_model_train = self.wake  # type: ignore[method-assign]

        def wake(self) -> None:
            if fixed:
                self.training = True
                self.net.train()
            else:
                self.train()

    return fitted(make, alone("modes"), Wakes())


@applied("Freeze it in `on_train_epoch_start`, after modes are put back.")
def frozen_too_early(make: Make, fixed: bool) -> Report:
    class Freezes(Body):
        def freeze_body(self) -> None:
            self.body.requires_grad_(False).eval()

        def on_validation_end(self) -> None:
            if not fixed and not self.trainer.sanity_checking:
                self.freeze_body()

        def on_train_epoch_start(self) -> None:
            if fixed and self.current_epoch > 0:
                self.freeze_body()

    return fitted(make, alone("modes"), Freezes(), max_epochs=3)


@applied("Call `.{}()` on it, or change the plan.")
def against_the_plan(make: Make, fixed: bool) -> Report:
    module, guard = Body(), alone("modes")
    guard.expect_modes(eval=["body", "body.*"])
    if fixed:
        module.body.eval()
    return fitted(make, guard, module)


@applied('Call `{}.train()` before `trainer.fit`, or pass modes="fix".')
def asleep_from_the_start(make: Make, fixed: bool) -> Report:
    module = Body()
    for m in module.modules():
        m.training = False
    if fixed:
        module.train()
    return fitted(make, alone("modes"), module)


@applied('Call `.train()` on it after {}, or pass modes="fix".')
def put_to_sleep_when_an_epoch_ends(make: Make, fixed: bool) -> Report:
    class Sleeps(pl.Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            pl_module.eval()
            if fixed:
                pl_module.train()

    return fitted(make, alone("modes"), Body(), callbacks=[Sleeps()], max_epochs=2)


def _asleep_in_a_hook(make: Make, how: str) -> Report:
    class Sleeps(Body):
        def on_train_epoch_start(self) -> None:
            self.body.eval()
            if how == "train":
                self.body.train()

    guard = alone("modes")
    if how == "plan":
        guard.expect_modes(eval=["body", "body.*"])
    return fitted(make, guard, Sleeps())


@applied(
    "Write `guard.expect_modes(eval={})` if that is the plan, else call `.train()`."
)
def a_plan_of_the_users(make: Make, fixed: bool) -> Report:
    return _asleep_in_a_hook(make, "plan" if fixed else "")


@applied(
    "Write `guard.expect_modes(eval={})` if that is the plan, else call `.train()`."
)
def no_plan_of_the_users(make: Make, fixed: bool) -> Report:
    return _asleep_in_a_hook(make, "train" if fixed else "")


def _frozen_and_awake(make: Make, how: str) -> Report:
    class Probe(Frozen):
        def __init__(self) -> None:
            super().__init__()
            self.body.train()

        def train(self, mode: bool = True) -> Any:
            super().train(mode)
            if how == "override":
                self.body.eval()
            return self

    module, guard = Probe(), alone("modes")
    if how == "override":
        module.body.eval()
    if how == "plan":
        guard.expect_modes(train=["body", "body.*"])
    return fitted(make, guard, module)


@applied(
    "Call `.eval()` on it and override `train()` to keep it so, or write "
    "`guard.expect_modes(train={})` if that is the plan."
)
def a_frozen_norm_that_moves(make: Make, fixed: bool) -> Report:
    return _frozen_and_awake(make, "override" if fixed else "")


@applied(
    "Call `.eval()` on it and override `train()` to keep it so, or write "
    "`guard.expect_modes(train={})` if that is the plan."
)
def a_frozen_norm_that_is_meant_to_move(make: Make, fixed: bool) -> Report:
    return _frozen_and_awake(make, "plan" if fixed else "")


def _woken_between_steps(make: Make, how: str) -> Report:
    class Woken(Frozen):
        def on_train_batch_end(self, *_: Any) -> None:
            if how != "asleep":
                self.train()

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return F.cross_entropy(self(batch[0]), batch[1])

    guard = alone("modes")
    if how == "plan":
        guard.expect_modes(train=["body", "body.*"])
    module = Woken()
    if how == "plan":
        module.train()
    return fitted(make, guard, module)


@applied("Leave it in eval mode, or declare the plan with `guard.expect_modes(...)`.")
def woken_between_training_steps(make: Make, fixed: bool) -> Report:
    return _woken_between_steps(make, "asleep" if fixed else "")


@applied("Leave it in eval mode, or declare the plan with `guard.expect_modes(...)`.")
def woken_between_training_steps_as_planned(make: Make, fixed: bool) -> Report:
    return _woken_between_steps(make, "plan" if fixed else "")
