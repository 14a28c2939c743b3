"""The `modes` check on a real Trainer: what it finds, what it says, what it leaves alone."""

from __future__ import annotations

import contextlib
import copy
import inspect
import warnings
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lightning.pytorch.callbacks import BackboneFinetuning, StochasticWeightAveraging
from torch import nn

from lightning_evalguard import (
    EvalGuard,
    EvalGuardError,
    EvalGuardWarning,
    Finding,
    allow,
)
from lightning_evalguard.checks.modes.effect import effect_of
from models import modes as zoo

STAGES = ("validate", "test", "predict")
Make = Callable[..., pl.Trainer]


def line_of(cls: type, marker: str) -> str | None:
    """``file:line`` of the line of `cls`, or of one of its bases, that ends in `marker`."""
    for base in cls.__mro__:
        if base.__module__ != zoo.__name__:
            continue
        lines, first = inspect.getsourcelines(base)
        for offset, line in enumerate(lines):
            if line.rstrip().endswith(f"# <- {marker}"):
                return f"{zoo.__file__}:{first + offset}"
    return None


def evaluate(trainer: pl.Trainer, stage: str, module: pl.LightningModule) -> None:
    options = {"verbose": False} if stage != "predict" else {}
    getattr(trainer, stage)(module, zoo.loader(), **options)


def ours(told: Any) -> list[Any]:
    return [w for w in told if issubclass(w.category, EvalGuardWarning)]


def breach(guard: EvalGuard) -> Finding:
    """The one finding of this check; other checks may have found what came of it."""
    (found,) = [f for f in guard.report.findings if f.check == "modes"]
    return found


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("bug", zoo.IN_EVALUATION)
def test_a_module_awake_in_an_evaluation_stops_the_first_batch(
    bug: type[zoo.Honest], stage: str, trainer: Make
) -> None:
    guard, module = EvalGuard(weights="ignore"), bug()  # nothing trains them here
    before = [m.training for m in module.modules()]
    with pytest.raises(EvalGuardError) as raised:
        evaluate(trainer(callbacks=[guard]), stage, module)
    found = breach(guard)
    assert raised.value.report is guard.report
    assert (found.check, found.stage, found.subject) == ("modes", stage, bug.subject)
    assert found.certain
    assert guard.report.checked["batches"] <= 1
    assert found.location == (line_of(bug, stage) or line_of(bug, "here"))
    assert [m.training for m in module.modules()][: len(before)] == before


@pytest.mark.parametrize("bug", zoo.IN_EVALUATION)
def test_a_module_awake_in_the_sanity_check_stops_the_fit(
    bug: type[zoo.Honest], trainer: Make
) -> None:
    guard = EvalGuard()
    with pytest.raises(EvalGuardError, match="during the sanity check"):
        trainer(callbacks=[guard]).fit(bug(), zoo.loader(), zoo.loader(seed=1))
    assert breach(guard).stage == "sanity_check"


@pytest.mark.parametrize("stage", STAGES)
def test_a_callback_that_wakes_the_model_is_named(stage: str, trainer: Make) -> None:
    guard = EvalGuard()
    with pytest.raises(EvalGuardError):
        evaluate(trainer(callbacks=[zoo.WakingCallback(), guard]), stage, zoo.Honest())
    assert breach(guard).location == line_of(zoo.WakingCallback, "here")
    assert breach(guard).subject == ""


@pytest.mark.parametrize("bug", zoo.IN_TRAINING)
def test_a_module_asleep_in_training_stops_the_first_step(
    bug: type[zoo.Honest], trainer: Make
) -> None:
    guard = EvalGuard()
    with pytest.raises(EvalGuardError, match="during training"):
        trainer(callbacks=[guard]).fit(bug(), zoo.loader(), zoo.loader(seed=1))
    found = breach(guard)
    assert (found.check, found.stage, found.subject) == ("modes", "fit", bug.subject)
    assert found.location == line_of(bug, "here")
    assert guard.report.checked["training_steps"] <= 1


@pytest.mark.parametrize("sanity", [0, 2])
@pytest.mark.parametrize("bug", zoo.IN_TRAINING[-2:])
def test_modes_not_put_back_after_the_last_validation_are_found_at_the_end(
    bug: type[zoo.Honest], sanity: int, trainer: Make
) -> None:
    guard = EvalGuard()
    with pytest.raises(EvalGuardError, match="as before it"):
        trainer(callbacks=[guard], num_sanity_val_steps=sanity).fit(
            bug(), zoo.loader(), zoo.loader(seed=1)
        )


def test_a_callback_that_samples_and_forgets_is_found_on_the_next_step(
    trainer: Make,
) -> None:
    guard = EvalGuard()
    with pytest.raises(EvalGuardError):
        trainer(callbacks=[zoo.SamplingCallback(), guard]).fit(
            zoo.Honest(), zoo.loader(), zoo.loader(seed=1)
        )
    assert breach(guard).location == line_of(zoo.SamplingCallback, "here")
    assert guard.report.checked["training_steps"] == 2


def test_a_frozen_part_woken_between_two_epochs_is_found(trainer: Make) -> None:
    class WakesLater(zoo.FrozenBackbone):
        def on_train_epoch_start(self) -> None:
            if self.current_epoch == 1:
                self.backbone.train()

    guard = EvalGuard()
    with pytest.raises(EvalGuardError, match="although its parameters are frozen"):
        trainer(callbacks=[guard], max_epochs=2).fit(
            WakesLater(), zoo.loader(), zoo.loader(seed=1)
        )
    assert {f.subject for f in guard.report.findings} == {"backbone.1", "backbone.3"}


def test_a_refit_after_an_exception_trains_in_train_mode(trainer: Make) -> None:
    class Fails(zoo.Honest):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            raise KeyError("a user's bug")

    unguarded, guarded = Fails(), Fails()
    for module, guards in ((unguarded, []), (guarded, [EvalGuard()])):
        with pytest.raises(KeyError):
            trainer(callbacks=guards).fit(module, zoo.loader(), zoo.loader(seed=1))
    assert not unguarded.training  # Lightning alone leaves it so
    assert all(m.training for m in guarded.modules())
    with pytest.raises(EvalGuardError, match="while its parameters train"):
        trainer(callbacks=[EvalGuard()], num_sanity_val_steps=0).fit(
            unguarded, zoo.loader(), zoo.loader(seed=1)
        )


@pytest.mark.parametrize("honest", zoo.HONEST)
def test_an_honest_program_is_silent(
    honest: type[zoo.Honest], trainer: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    guard = EvalGuard(allow=honest.allow)
    run = trainer(callbacks=[guard], max_epochs=2)
    run.fit(honest(), zoo.loader(), zoo.loader(seed=1))
    assert guard.report.findings == []
    assert guard.report.checked["training_steps"] == 8
    assert guard.report.checked["evaluations"] == 3
    assert guard.report.checked["batches"] == 10
    assert capsys.readouterr().out == ""


class _Finetuning(pl.callbacks.BaseFinetuning):
    def freeze_before_training(self, pl_module: pl.LightningModule) -> None:
        self.freeze(pl_module.backbone)

    def finetune_function(
        self, pl_module: pl.LightningModule, epoch: int, optimizer: Any
    ) -> None:
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.backbone, optimizer)


def _averaging() -> list[pl.Callback]:
    averaging = [StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=1)]
    ema = getattr(pl.callbacks, "EMAWeightAveraging", None)  # Lightning >= 2.6
    return [*averaging, ema()] if ema is not None else averaging


@pytest.mark.parametrize(
    "callback",
    [_Finetuning(), BackboneFinetuning(1, verbose=False), *_averaging()],
    ids=lambda c: type(c).__name__,
)
def test_lightnings_own_callbacks_are_silent(
    callback: pl.Callback, trainer: Make
) -> None:
    guard = EvalGuard()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*", UserWarning, "lightning")
        warnings.filterwarnings("error", category=EvalGuardWarning)
        trainer(callbacks=[guard, copy.deepcopy(callback)], max_epochs=3).fit(
            zoo.Honest(), zoo.loader(), zoo.loader(seed=1)
        )
    assert guard.report.findings == []


def test_compiled_modules_and_mixed_precision_are_silent(trainer: Make) -> None:
    class Compiled(zoo.Honest):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = torch.compile(self.backbone, backend="eager")

    guard = EvalGuard()
    trainer(callbacks=[guard], max_epochs=2, precision="bf16-mixed").fit(
        Compiled(), zoo.loader(), zoo.loader(seed=1)
    )
    assert guard.report.findings == []


def test_a_lazy_module_that_the_first_step_materialises_is_silent(
    trainer: Make,
) -> None:
    class Lazy(zoo.Honest):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = nn.Sequential(nn.LazyLinear(8), nn.BatchNorm1d(8))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            self(torch.zeros(2, 4))
            return super().configure_optimizers()

    guard = EvalGuard()
    trainer(callbacks=[guard]).fit(Lazy(), zoo.loader(), zoo.loader(seed=1))
    notes = [note for note in guard.report.notes if not note.startswith("syncs:")]
    assert guard.report.findings == notes[1:] == []


def test_one_guard_serves_validate_then_fit_then_a_second_trainer(
    trainer: Make,
) -> None:
    guard, module = EvalGuard(), zoo.Honest()
    first = trainer(callbacks=[guard])
    first.validate(module, zoo.loader(), verbose=False)
    first.fit(module, zoo.loader(), zoo.loader(seed=1))
    trainer(callbacks=[guard]).fit(module, zoo.loader(), zoo.loader(seed=1))
    assert guard.report.findings == []
    assert guard.report.checked["evaluations"] == 5


def test_a_frozen_batch_norm_in_train_mode_is_a_suspicion(trainer: Make) -> None:
    class Drifts(zoo.Honest):
        def __init__(self) -> None:
            super().__init__()
            self.backbone.requires_grad_(False)

    guard = EvalGuard()
    with pytest.warns(EvalGuardWarning, match="running statistics still move"):
        trainer(callbacks=[guard], max_epochs=2).fit(
            Drifts(), zoo.loader(), zoo.loader(seed=1)
        )
    assert breach(guard).subject == "backbone.1"
    assert not breach(guard).certain
    silent = EvalGuard(allow={"modes": ["backbone*"]})
    trainer(callbacks=[silent]).fit(Drifts(), zoo.loader(), zoo.loader(seed=1))
    assert silent.report.findings == []


def test_expected_modes_replace_the_judgement(trainer: Make) -> None:
    guard = EvalGuard()
    guard.expect_modes(eval=["backbone*"])
    trainer(callbacks=[guard]).fit(
        zoo.PartLoadedInEval(), zoo.loader(), zoo.loader(seed=1)
    )
    assert guard.report.findings == []
    broken = EvalGuard()
    broken.expect_modes(eval=["backbone*"])
    with pytest.raises(EvalGuardError, match="as expect_modes says"):
        trainer(callbacks=[broken]).fit(zoo.Honest(), zoo.loader(), zoo.loader(seed=1))


def test_monte_carlo_dropout_is_one_switch_away(trainer: Make) -> None:
    class Samples(zoo.Honest):
        def predict_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            self.backbone[3].train()
            return super().predict_step(batch, batch_idx)

    class Declares(zoo.Honest):
        def predict_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            with allow("modes", reason="Monte Carlo dropout"):
                self.backbone[3].train()
                return super().predict_step(batch, batch_idx)

    for module, named in ((Samples(), {"modes": ["backbone.3"]}), (Declares(), None)):
        guard = EvalGuard(allow=named)
        evaluate(trainer(callbacks=[guard]), "predict", module)
        assert guard.report.findings == []
        assert all(m.training for m in module.modules())


@pytest.mark.parametrize("bug", [zoo.SubmoduleLeftOn, zoo.WokenInEveryStep])
def test_fix_sets_the_flags_and_warns_once(
    bug: type[zoo.Honest], trainer: Make
) -> None:
    class Honest(bug):  # type: ignore[valid-type, misc]
        calls = 0

        def train(self, mode: bool = True) -> Any:
            type(self).calls += 1
            return super().train(mode)

    guard, module = (
        EvalGuard(modes="fix", state="ignore", stochastic="ignore"),
        Honest(),
    )
    with pytest.warns(EvalGuardWarning, match="Repaired for this run") as told:
        evaluate(trainer(callbacks=[guard]), "validate", module)
    assert len(ours(told)) == 1
    wake_ups = 4 if bug is zoo.WokenInEveryStep else 0
    assert Honest.calls == wake_ups + 1  # the user's own, and Lightning's eval()
    assert all(m.training for m in module.modules())


@pytest.mark.parametrize("bug", zoo.IN_TRAINING)
def test_fix_repairs_training_too(bug: type[zoo.Honest], trainer: Make) -> None:
    guard, module = EvalGuard(modes="fix"), bug()
    with pytest.warns(EvalGuardWarning, match="Repaired"):
        trainer(callbacks=[guard]).fit(module, zoo.loader(), zoo.loader(seed=1))
    trains = [m for m in module.modules() if effect_of(m) is not None]
    frozen = issubclass(bug, zoo.FrozenBackbone)
    assert [m.training for m in trains] == [not frozen] * 2


def test_a_warning_points_at_the_line_and_comes_once(trainer: Make) -> None:
    guard = EvalGuard(modes="warn")
    with pytest.warns(EvalGuardWarning) as told:
        evaluate(trainer(callbacks=[guard]), "validate", zoo.SubmoduleLeftOn())
    (record,) = ours(told)
    assert f"{record.filename}:{record.lineno}" == line_of(zoo.SubmoduleLeftOn, "here")
    assert breach(guard).count == 8  # before and after each of four batches


def test_ignore_looks_at_nothing(trainer: Make) -> None:
    guard = EvalGuard(modes="ignore")
    evaluate(trainer(callbacks=[guard]), "validate", zoo.SubmoduleLeftOn())
    assert guard.report.findings == []


@pytest.mark.parametrize(
    "moment", ["on_validation_epoch_start", "validation_step", "on_validation_end"]
)
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_inside_an_evaluation_puts_every_mode_back(
    error: type[BaseException], moment: str, trainer: Make
) -> None:
    def fail(self: Any, *_: Any) -> None:
        raise error

    module = type("Fails", (zoo.FrozenBackbone,), {moment: fail})()
    before = [m.training for m in module.modules()]
    # up to Lightning 2.4 Ctrl-C ends the run and raises nothing
    with contextlib.suppress(SystemExit), pytest.raises(error):
        evaluate(trainer(callbacks=[EvalGuard()]), "validate", module)
        raise error
    assert [m.training for m in module.modules()] == before


def test_everything_patched_is_put_back(trainer: Make) -> None:
    original, run = nn.Module.train, trainer(callbacks=[EvalGuard(), EvalGuard()])
    hooks = len(torch.nn.modules.module._global_module_registration_hooks)
    run.fit(zoo.Honest(), zoo.loader(), zoo.loader(seed=1))
    with pytest.raises(EvalGuardError):
        run.validate(zoo.WokenInEveryStep(), zoo.loader())
    assert nn.Module.train is original
    assert len(torch.nn.modules.module._global_module_registration_hooks) == hooks
    loops = (
        run.validate_loop,
        run.test_loop,
        run.predict_loop,
        run.fit_loop.epoch_loop.val_loop,
    )
    assert not any("run" in vars(loop) for loop in loops)
    assert not any(name.endswith("_step") for name in vars(run.strategy))


# properties


def _together(parts: list[Callable[[], nn.Module]]) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*(part() for part in parts))


_LEAVES = st.sampled_from(
    [
        lambda: nn.Linear(4, 4),
        lambda: nn.BatchNorm1d(4),
        lambda: nn.Dropout(0.5),
        lambda: nn.Tanh(),
        lambda: nn.Dropout(0.0),
    ]
)
_TREES = st.recursive(
    _LEAVES,
    lambda parts: st.lists(parts, min_size=1, max_size=3).map(_together),
    max_leaves=6,
)


class _AnyTree(pl.LightningModule):
    def __init__(
        self, tree: nn.Module, flags: list[bool], fails: type[BaseException] | None
    ) -> None:
        super().__init__()
        self.tree, self.out, self.fails = tree, nn.Linear(4, 3), fails
        for module, flag in zip(self.modules(), flags, strict=False):
            module.training = flag

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self.out(self.tree(batch[0])), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        if self.fails is not None and batch_idx == 1:
            raise self.fails
        self.tree(batch[0])

    test_step = predict_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(
    make=_TREES,
    flags=st.lists(st.booleans(), min_size=24, max_size=24),
    entry=st.sampled_from(["fit", "validate", "test", "predict"]),
    fails=st.sampled_from([None, RuntimeError, KeyboardInterrupt]),
)
def test_any_tree_in_any_modes_gets_every_mode_back(
    make: Callable[[], nn.Module],
    flags: list[bool],
    entry: str,
    fails: type[BaseException] | None,
    trainer: Make,
) -> None:
    module = _AnyTree(make(), flags, fails)
    before = [m.training for m in module.modules()]
    run = trainer(callbacks=[EvalGuard(modes="warn")])
    loaders = (zoo.loader(), zoo.loader(seed=1)) if entry == "fit" else (zoo.loader(),)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            getattr(run, entry)(module, *loaders)
        except (RuntimeError, KeyboardInterrupt, SystemExit):
            assert fails is not None
    assert [m.training for m in module.modules()] == before


@settings(max_examples=10, suppress_health_check=list(HealthCheck))
@given(make=_TREES, seed=st.integers(0, 2**16))
def test_training_is_bit_identical_with_and_without_the_guard(
    make: Callable[[], nn.Module], seed: int, trainer: Make
) -> None:
    def weights(guards: list[pl.Callback]) -> list[torch.Tensor]:
        torch.manual_seed(seed)
        module = _AnyTree(make(), [], None)
        trainer(callbacks=guards, max_epochs=2).fit(
            module, zoo.loader(), zoo.loader(seed=1)
        )
        return [*module.state_dict().values(), torch.get_rng_state()]

    pairs = zip(weights([]), weights([EvalGuard()]), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    ("module", "effect"),
    [
        (nn.Dropout(0.1), "certain"),
        (nn.Dropout(0.0), None),
        (nn.BatchNorm2d(3), "certain"),
        (nn.BatchNorm2d(3, track_running_stats=False), None),
        (nn.InstanceNorm1d(3), None),
        (nn.LSTM(2, 2, 2, dropout=0.1), "certain"),
        (nn.LSTM(2, 2, dropout=0.0), None),
        (nn.MultiheadAttention(4, 2, dropout=0.1), "certain"),
        (nn.MultiheadAttention(4, 2), None),
        (nn.RReLU(), "certain"),
        (nn.TransformerEncoderLayer(4, 2), None),
        (nn.LayerNorm(3), None),
        (nn.CrossEntropyLoss(), None),
    ],
)
def test_only_mode_sensitive_modules_are_judged(
    module: nn.Module, effect: str | None
) -> None:
    assert effect_of(module) == effect


def test_a_forward_that_reads_training_may_be_mode_sensitive() -> None:
    class DropPath(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * torch.rand(()) if self.training else x

    class Inherits(DropPath):
        pass

    assert effect_of(DropPath()) == effect_of(Inherits()) == "possible"
