"""Whose weights are scored: loads are watched without a trace, what was never trained is named."""

from __future__ import annotations

import copy
import inspect
import pickle
import traceback
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn

from lightning_evalguard import EvalGuard, EvalGuardWarning, Finding
from lightning_evalguard.checks.weights import files, loads
from models.program import CLASSES, FEATURES, Classifier
from models.weights import HIDDEN, TwoLayers, checkpoint

Fit = Callable[..., pl.Trainer]


def guard() -> EvalGuard:
    rest = (
        "modes",
        "grad",
        "state",
        "stochastic",
        "batch",
        "data",
        "scores",
        "selection",
        "sync",
    )
    return EvalGuard(metrics=None, weights="warn", **dict.fromkeys(rest, "ignore"))  # type: ignore[arg-type]


def findings(act: Callable[[EvalGuard], Any]) -> list[Finding]:
    """What a guard finds in a run; each of them is warned of too."""
    watching = guard()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", EvalGuardWarning)
        act(watching)
    assert len(said) == len(watching.report.findings)
    return watching.report.findings


@pytest.fixture
def tested(trainer: Fit) -> Callable[[pl.LightningModule], list[Finding]]:
    """``tested(module)``: what is found as it is tested on its own."""

    def test(module: pl.LightningModule, **kwargs: Any) -> list[Finding]:
        def act(watching: EvalGuard) -> None:
            trainer(callbacks=[watching]).test(module, verbose=False, **kwargs)

        return findings(act)

    return test


# --- the watch ----------------------------------------------------------------------------------


def test_a_load_is_seen_with_its_line_and_its_shares() -> None:
    model = TwoLayers()
    model.load_state_dict(checkpoint(head="fc"), strict=False)
    load = loads.loads_of(model)
    assert load is not None
    assert load.site is not None
    assert load.site.location.startswith(__file__)
    assert (load.given, load.expected, load.matched) == (4, 4, 2)
    assert (load.elements, load.expected_elements) == (144, 195)
    assert load.unused == ("fc.weight", "fc.bias")


def test_the_watch_leaves_the_method_its_signature_and_tracebacks_alone() -> None:
    assert nn.Module.load_state_dict.__module__ == "torch.nn.modules.module"
    assert list(inspect.signature(nn.Module.load_state_dict).parameters) == [
        "self", "state_dict", "strict", "assign",
    ]  # fmt: skip
    with pytest.raises(RuntimeError) as caught:
        nn.Linear(2, 2).load_state_dict({})
    files = {frame.filename for frame in traceback.extract_tb(caught.tb)}
    assert not any("lightning_evalguard" in name for name in files)


def test_what_a_load_returns_prints_compares_and_pickles_as_before() -> None:
    model = nn.Linear(2, 2)
    keys = model.load_state_dict({"weight": torch.ones(2, 2)}, strict=False)
    assert keys == (["bias"], [])
    assert pickle.loads(pickle.dumps(keys)) == keys
    assert copy.deepcopy(keys) == keys
    assert (
        repr(model.load_state_dict(model.state_dict()))
        == "<All keys matched successfully>"
    )


def test_watching_twice_is_watching_once() -> None:
    made = nn.modules.module._IncompatibleKeys
    loads.watch_loads()
    assert nn.modules.module._IncompatibleKeys is made


def test_a_load_draws_no_number_and_keeps_no_model_alive() -> None:
    before = torch.get_rng_state()
    model = nn.Sequential(nn.Identity())
    model.load_state_dict({})
    assert torch.equal(torch.get_rng_state(), before)
    linear = nn.Linear(2, 2)
    linear.load_state_dict({}, strict=False)
    weight, at = linear.weight, id(linear.weight)
    assert loads.missed(weight) is not None
    del linear, weight
    assert loads._marks._at[at].same.gone


def test_a_loaded_module_can_be_converted_by_swapping() -> None:
    linear, fresh = nn.Linear(2, 2), nn.Linear(2, 2)
    linear.load_state_dict(nn.Linear(2, 2).state_dict())
    fresh.load_state_dict({}, strict=False)
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        linear.double()
        fresh.double()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    assert loads.loaded(linear.weight)
    assert not loads.loaded(fresh.weight)


def test_a_module_with_a_load_of_its_own_is_understood() -> None:
    class Own(TwoLayers):
        def load_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
            return super().load_state_dict(dict(state_dict), strict=False)

    model = Own()
    model.load_state_dict({"fc.weight": torch.ones(2)})
    assert loads.missed(model.head.weight) is not None


@pytest.mark.parametrize(
    ("rename", "remedy"),
    [
        (lambda k: f"model.{k}", 'k.removeprefix("model.")'),
        (lambda k: f"_orig_mod.module.{k}", 'k.removeprefix("_orig_mod.module.")'),
    ],
)
def test_a_prefix_that_makes_the_keys_match_is_named(
    rename: Callable[[str], str], remedy: str, tested: Callable[..., list[Finding]]
) -> None:
    model = TwoLayers()
    state = {rename(k): v for k, v in checkpoint().items()}
    model.load_state_dict(state, strict=False)
    (found,) = tested(model)
    assert remedy in found.remedy
    assert "matched 0 of 4 keys (0% of the elements)" in found.fact


def test_the_prefix_that_is_named_makes_it_right(
    tested: Callable[..., list[Finding]],
) -> None:
    model = TwoLayers()
    state_dict = {"model." + k: v for k, v in checkpoint().items()}
    model.load_state_dict(state_dict, strict=False)
    (found,) = tested(model)
    code = found.remedy.split("`")[1]
    model.load_state_dict(eval(code, {"state_dict": state_dict}))
    assert tested(model) == []


def test_a_prefix_that_is_missing_is_named(
    tested: Callable[..., list[Finding]],
) -> None:
    class Wrapped(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(FEATURES, CLASSES))  # type: ignore[assignment]

    model = Wrapped()
    model.load_state_dict(
        nn.Sequential(nn.Linear(FEATURES, CLASSES)).state_dict(), strict=False
    )
    (found,) = tested(model)
    assert '{"net." + k: v for k, v in state_dict.items()}' in found.remedy


# --- an evaluation on its own -------------------------------------------------------------------


class ByHand(TwoLayers):
    """The author's own initialisation is all that the weights ever saw."""

    def __init__(self) -> None:
        super().__init__()
        for layer in (self.body, self.head):
            torch.nn.init.xavier_normal_(layer.weight)
            torch.nn.init.zeros_(layer.bias)


@pytest.mark.parametrize("kind", [TwoLayers, ByHand])
def test_a_test_of_an_untrained_model_is_named(
    kind: type[TwoLayers], trainer: Fit
) -> None:
    def act(watching: EvalGuard) -> None:
        trainer(callbacks=[watching]).test(kind(), verbose=False)

    (found,) = findings(act)
    assert "is scored as it was initialised" in found.fact
    assert found.switch == 'EvalGuard(weights="ignore")'


@pytest.mark.parametrize("entry", ["validate", "predict"])
def test_an_untrained_model_before_its_training_is_a_note(
    entry: str, trainer: Fit
) -> None:
    watching = guard()
    run = getattr(trainer(callbacks=[watching]), entry)
    run(TwoLayers(), **({} if entry == "predict" else {"verbose": False}))
    assert watching.report.findings == []
    assert any("as it was initialised" in note for note in watching.report.notes)


def test_a_test_after_a_fit_is_silent(trainer: Fit) -> None:
    def act(watching: EvalGuard) -> None:
        model = TwoLayers()
        made = trainer(callbacks=[watching])
        made.fit(model)
        made.test(model, verbose=False)

    assert findings(act) == []


@pytest.mark.parametrize("fused", [False, True])
def test_a_test_after_a_fit_without_a_guard_is_silent(
    fused: bool, trainer: Fit, tested: Callable[..., list[Finding]]
) -> None:
    class Adam(TwoLayers):
        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), 0.01, fused=fused)

    model = Adam()
    trainer(max_epochs=4).fit(model)
    assert tested(model) == []


def test_a_checkpoint_of_the_trainer_is_a_load(
    trainer: Fit, tested: Callable[..., list[Finding]], tmp_path: Any
) -> None:
    made = trainer()
    made.fit(TwoLayers())
    made.save_checkpoint(tmp_path / "a.ckpt")
    assert tested(TwoLayers(), ckpt_path=tmp_path / "a.ckpt", weights_only=False) == []
    model = TwoLayers.load_from_checkpoint(tmp_path / "a.ckpt")
    assert tested(model) == []


def test_what_load_from_checkpoint_returns_must_be_used(
    trainer: Fit, tested: Callable[..., list[Finding]], tmp_path: Any
) -> None:
    made, model = trainer(), TwoLayers()
    made.fit(model)
    made.save_checkpoint(tmp_path / "a.ckpt")
    other = TwoLayers()
    TwoLayers.load_from_checkpoint(tmp_path / "a.ckpt")
    (found,) = tested(other)
    assert "nothing loaded or trained" in found.fact


def test_a_head_made_new_after_the_fit_is_named(
    trainer: Fit, tested: Callable[..., list[Finding]]
) -> None:
    model = TwoLayers()
    trainer(max_epochs=3, callbacks=[guard()]).fit(model)
    model.head = nn.Linear(HIDDEN, CLASSES)
    (found,) = tested(model)
    assert found.subject == "head"


@pytest.mark.parametrize("entry", ["validate", "test"])
def test_a_head_beside_an_initialisation_of_the_users_is_silent(
    entry: str, trainer: Fit
) -> None:
    class Scaled(TwoLayers):
        """Nothing loaded the body: how it was initialised is no torch constructor's."""

        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(FEATURES, HIDDEN, bias=False)
            nn.init.kaiming_normal_(self.body.weight)

    def act(watching: EvalGuard) -> None:
        getattr(trainer(callbacks=[watching]), entry)(Scaled(), verbose=False)

    assert findings(act) == []


@pytest.mark.parametrize("origin", ["file", "loop"])
def test_a_new_head_on_a_body_from_elsewhere_is_named(
    origin: str, tested: Callable[..., list[Finding]]
) -> None:
    model = TwoLayers()
    if origin == "file":
        model.body = pickle.loads(pickle.dumps(model.body))
    else:
        optimizer = torch.optim.SGD(model.body.parameters(), 0.1)
        for _ in range(20):
            optimizer.zero_grad()
            model.body(torch.randn(4, FEATURES)).square().mean().backward()
            optimizer.step()
    (found,) = tested(model)
    assert found.subject == "head"


def test_a_copy_of_a_trained_model_is_silent(
    trainer: Fit, tested: Callable[..., list[Finding]]
) -> None:
    model = TwoLayers()
    trainer(max_epochs=3).fit(model)
    assert tested(copy.deepcopy(model)) == []
    assert tested(pickle.loads(pickle.dumps(model))) == []


def test_a_backbone_loaded_in_part_and_then_trained_is_silent(trainer: Fit) -> None:
    model = TwoLayers()
    model.load_state_dict(checkpoint(head="fc"), strict=False)

    def act(watching: EvalGuard) -> None:
        made = trainer(callbacks=[watching], max_epochs=2)
        made.fit(model)
        made.test(model, verbose=False)

    assert findings(act) == []


def test_layers_of_many_kinds_are_recognised_as_drawn(
    tested: Callable[..., list[Finding]],
) -> None:
    class Many(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(50, 8)
            self.conv = nn.Conv1d(1, 4, 3, padding=1)
            self.rnn = nn.GRU(4, 6, batch_first=True)
            self.norm = nn.LayerNorm(6)
            self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
            self.net = nn.Linear(6, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.embed((x[:, 0] > 0).long())
            x, _ = self.rnn(self.conv(x.unsqueeze(1)).transpose(1, 2))
            x = self.norm(x)
            x, _ = self.attention(x, x, x)
            return self.net(x.mean(1))

    (found,) = tested(Many())
    assert found.subject == ""
    model = Many()
    model.load_state_dict(Many().state_dict())
    assert tested(model) == []


# --- records ------------------------------------------------------------------------------------


class Tempered(TwoLayers):
    """Its score hangs on an attribute that no checkpoint has."""

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        self.save_hyperparameters()

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.hparams["temperature"]


def validated(folder: Path, module: pl.LightningModule, trainer: Fit) -> list[Finding]:
    def act(watching: EvalGuard) -> None:
        made = trainer(callbacks=[watching], logger=CSVLogger(folder))
        made.validate(module, verbose=False)

    return findings(act)


@pytest.mark.filterwarnings("ignore:Experiment logs directory")
def test_another_score_than_the_record_of_the_fit_says_is_named(
    trainer: Fit, tmp_path: Path
) -> None:
    model = Tempered()

    def act(watching: EvalGuard) -> None:
        made = trainer(callbacks=[watching], logger=CSVLogger(tmp_path), max_epochs=2)
        made.fit(model)

    assert findings(act) == []
    assert validated(tmp_path, model, trainer) == []
    other = Tempered(temperature=3.0)
    other.load_state_dict(model.state_dict())
    (found,) = validated(tmp_path, other, trainer)
    assert found.subject == "val_loss"
    assert "for the same weights on the same samples" in found.fact
    assert "what differs: hyper_parameters.temperature: 1.0, now 3.0" in found.fact
    changed = Tempered(temperature=3.0)
    changed.load_state_dict({k: v + 0.1 for k, v in model.state_dict().items()})
    assert validated(tmp_path, changed, trainer) == []


class Unreadable(OrderedDict[str, Any]):
    """Weights in a mapping of somebody's own, which does not say what it holds."""

    def values(self) -> Any:
        raise KeyError("planted")


def test_a_checkpoint_that_is_not_understood_is_loaded_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "problems", [])
    weights = Unreadable({"weight": torch.ones(2)})
    torch.save(
        {"hyper_parameters": {"lr": 1.0}, "state_dict": weights}, tmp_path / "a.ckpt"
    )
    read = torch.load(tmp_path / "a.ckpt", weights_only=False)
    assert torch.equal(read["state_dict"]["weight"], torch.ones(2))
    assert files.problems == ["a checkpoint was not understood: KeyError: 'planted'"]
