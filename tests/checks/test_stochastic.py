"""What an evaluation draws is found and named; what is inert, seeded or allowed stays silent."""

from __future__ import annotations

import functools
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import words
from lightning_evalguard import (
    EvalGuard,
    EvalGuardError,
    EvalGuardWarning,
    Report,
    allow,
)
from lightning_evalguard.checks.check import Moment
from lightning_evalguard.checks.stochastic.check import StochasticCheck

Make = Callable[..., pl.Trainer]
HERE = "tests/checks/test_stochastic.py"


class Step(pl.LightningModule):
    """Runs `forward` on 8 samples of 8 features."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(8, 8)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.net(batch[0]).square().mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("loss", self(batch[0]).square().mean())

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def loader() -> DataLoader[Any]:
    made = torch.Generator().manual_seed(0)
    return DataLoader(TensorDataset(torch.randn(16, 8, generator=made)), 8)


def guarded(
    trainer: Make, module: pl.LightningModule, entry: str = "fit", **kwargs: Any
) -> Report:
    guard = EvalGuard(
        data="ignore",
        **({"stochastic": "warn", "metrics": None, "sync": "ignore"} | kwargs),
    )
    made = trainer(callbacks=[guard])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lightning_evalguard.rulings.warn", lambda *_: None)
        if entry == "fit":
            made.fit(module, loader(), loader())
        elif entry == "predict":
            made.predict(module, loader())
        else:
            made.validate(module, loader(), verbose=False)
    return guard.report


def said(report: Report) -> list[str]:
    """The findings, without the line numbers."""
    lines = [words.said(f) for f in report.findings]
    return [line.replace(f":{f.location.rpartition(':')[2]}", "", 1) if f.location else line
            for line, f in zip(lines, report.findings, strict=True)]  # fmt: skip


def model(
    forward: Callable[[Any, Tensor], Tensor], **attributes: Any
) -> pl.LightningModule:
    """A module with that `forward` and those attributes."""
    made = type(
        "Model", (Step,), {"forward": lambda self, x: forward(self, self.net(x))}
    )()
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


# the words


def test_functional_dropout_is_named_with_its_line_and_its_mend(trainer: Make) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5)

    report = guarded(trainer, model(forward))
    assert said(report) == [
        f"{HERE} in `Model` (the whole model): `F.dropout(x, 0.5)` drew random numbers in eval "
        "mode. Scores change from run to run. Pass training=self.training. [stochastic]"
    ]
    assert report.findings[0].certain
    assert report.findings[0].stage == "sanity_check"


def test_equal_draws_of_twelve_layers_are_one_finding(trainer: Make) -> None:
    class Layer(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(x, x, x, dropout_p=0.1)

    layers = nn.Sequential(*[Layer() for _ in range(12)])
    report = guarded(
        trainer, model(lambda self, x: layers(x[None, None]), layers=layers)
    )
    assert said(report) == [
        f"{HERE} in `layers` (Layer): `F.scaled_dot_product_attention(x, x, x, dropout_p=0.1)` "
        "drew random numbers in eval mode (12x). "
        "Scores change from run to run. Pass dropout_p=p if self.training else 0.0. "
        "[stochastic]"
    ]


def test_sampling_is_a_suspicion_that_prints_what_allows_it(trainer: Make) -> None:
    class Sampler(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.randn_like(x)

    def vae() -> pl.LightningModule:
        return model(lambda self, x: self.sampler(x), sampler=Sampler())

    report = guarded(trainer, vae())
    assert said(report) == [
        f"{HERE} in `sampler` (Sampler): `torch.randn_like(x)` drew random numbers in eval mode. "
        "Scores change from run to run. Draw only in training: `if self.training:`. [stochastic]"
    ]
    assert not report.findings[0].certain
    assert guarded(trainer, vae(), allow={"stochastic": ["sampler"]}).findings == []


def test_a_line_of_python_is_named_where_no_operator_draws(trainer: Make) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        if random.random() < 2:  # always
            x = x * 2
        noise = np.random.rand(8)
        return x + torch.from_numpy(noise).float()

    assert said(guarded(trainer, model(forward))) == [
        f"{HERE} in `Model` (the whole model): `if random.random() < 2:` moved Python's global "
        "generator in eval mode. Scores change from run to run. "
        "Draw only in training: `if self.training:`. [stochastic]",
        f"{HERE} in `Model` (the whole model): `noise = np.random.rand(8)` moved NumPy's global "
        "generator in eval mode. Scores change from run to run. "
        "Draw only in training: `if self.training:`. [stochastic]",
    ]


def test_what_no_generator_shows_is_found_by_running_the_step_twice(
    trainer: Make,
) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return x * self.draws.random()

    report = guarded(trainer, model(forward, draws=np.random.default_rng(0)))
    assert said(report) == [
        f"{HERE} in `Model` (the whole model): `x * self.draws.random()` returned different "
        "values when replayed with the same batch and seeds. Scores change from run to run. "
        "Draw only in training: "
        "`if self.training:`. [stochastic]"
    ]


# where modules hide

dropout = nn.Dropout(0.5)


def kept_in_a_closure() -> Callable[[Tensor], Tensor]:
    hidden = nn.Dropout(0.5)
    return lambda x: hidden(x)


HIDDEN: dict[str, tuple[Callable[[Any, Tensor], Tensor], dict[str, Any], str]] = {
    "list": (
        lambda self, x: self.drops[0](x),
        {"drops": [nn.Dropout(0.5)]},
        "`drops[0]` (Dropout)|Make `self.drops` an nn.ModuleList.",
    ),
    "dict": (
        lambda self, x: self.drops["a"](x),
        {"drops": {"a": nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5))}},
        "`drops['a'].1` (Dropout)|Make `self.drops` an nn.ModuleDict.",
    ),
    "partial": (
        lambda self, x: self.call(x),
        {"call": functools.partial(nn.Dropout(0.5))},
        "`call.func` (Dropout)|Assign it to an attribute of the model.",
    ),
    "closure": (
        lambda self, x: self.call(x),
        {"call": kept_in_a_closure()},
        "`call.<closure hidden>` (Dropout)|Assign it to an attribute of the model.",
    ),
    "global": (
        lambda self, x: dropout(x),
        {},
        "`<global dropout>` (Dropout)|Assign it to an attribute of the model.",
    ),
    "created": (
        lambda self, x: nn.Dropout(0.5)(x),
        {},
        "`<created in <lambda>>` (Dropout)|Create it in `__init__`.",
    ),
}


@pytest.mark.parametrize("name", HIDDEN)
def test_a_module_out_of_reach_is_named_where_it_hides(
    name: str, trainer: Make
) -> None:
    forward, attributes, words = HIDDEN[name]
    where, remedy = words.split("|")
    (line,) = said(guarded(trainer, model(forward, **attributes)))
    assert f" in {where}: " in line
    why = "Scores change from run to run."
    assert line.endswith(
        f"drew random numbers in eval mode. {why} {remedy} [stochastic]"
    )


# near misses


def seeded(self: Any, x: Tensor) -> Tensor:
    return x + torch.randn(8, generator=torch.Generator().manual_seed(0))


def forked(self: Any, x: Tensor) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return x + torch.randn_like(x)


def reseeded(self: Any, x: Tensor) -> Tensor:
    self.draws.manual_seed(1)
    return x + torch.randn(8, generator=self.draws)


def timed(self: Any, x: Tensor) -> Tensor:
    began = time.perf_counter()
    y = x * 2
    self.log("milliseconds", time.perf_counter() - began)
    torch.tensor(time.perf_counter() - began)
    return y


def padded(self: Any, x: Tensor) -> Tensor:
    room = torch.empty(8, 16)
    room[:, :8] = x
    return room[:, :8] * 2


def cached(self: Any, x: Tensor) -> Tensor:
    if "scale" not in self.cache:
        self.cache["scale"] = torch.full((8,), 2.0)
    return x * self.cache["scale"]


def allowed_here(self: Any, x: Tensor) -> Tensor:
    with allow("stochastic", reason="test-time augmentation"):
        return F.dropout(x) + random.random()


def nothing(self: Any, x: Tensor) -> Tensor:
    return F.dropout(x, 0.0) + F.dropout(x, training=False)


HONEST: list[tuple[Callable[[Any, Tensor], Tensor], dict[str, Any]]] = [
    (seeded, {}),
    (forked, {}),
    (reseeded, {"draws": torch.Generator()}),
    (timed, {}),
    (padded, {}),
    (cached, {"cache": {}}),
    (allowed_here, {}),
    (nothing, {}),
]


@pytest.mark.parametrize(
    ("forward", "attributes"), HONEST, ids=[f.__name__ for f, _ in HONEST]
)
@pytest.mark.parametrize("entry", ["fit", "validate"])
def test_what_is_the_same_each_time_is_silent(
    forward: Callable[[Any, Tensor], Tensor],
    attributes: dict[str, Any],
    entry: str,
    trainer: Make,
) -> None:
    assert said(guarded(trainer, model(forward, **attributes), entry)) == []


def test_layers_of_torch_in_eval_are_silent(trainer: Make) -> None:
    layers = nn.Sequential(
        nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 8, 0.5, batch_first=True), 2
        ),
        nn.Dropout(0.5),
        nn.AlphaDropout(0.5),
        nn.RReLU(),
        nn.InstanceNorm1d(8),
        nn.BatchNorm1d(8),
    )
    lstm = nn.LSTM(8, 8, 2, dropout=0.5, batch_first=True)

    def forward(self: Any, x: Tensor) -> Tensor:
        return self.lstm(self.layers(x[:, None].expand(-1, 8, -1)))[0]

    report = guarded(trainer, model(forward, layers=layers, lstm=lstm))
    assert said(report) == []


# when it is looked at


def test_without_a_sanity_check_the_first_step_that_draws_is_run_again(
    trainer: Make,
) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)

    for entry in ("validate", "predict"):
        report = guarded(trainer, model(forward), entry)
        assert [f.expression for f in report.findings] == ["torch.rand_like(x)"]
        assert report.checked["replayed_steps"] == 1


def test_noise_that_starts_later_is_found_when_it_starts(trainer: Make) -> None:
    class Later(Step):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            x = batch[0]
            if batch_idx == 1:
                x = x + torch.randn_like(x)
            self.log("loss", self.net(x).mean())

    report = guarded(trainer, Later())
    assert [f.expression for f in report.findings] == ["torch.randn_like(x)"]
    assert report.checked["replayed_steps"] == 2


def test_what_is_meant_is_explained_once_and_not_run_again_at_every_batch(
    trainer: Make,
) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)

    report = guarded(
        trainer, model(forward), allow={"stochastic": ["*/test_stochastic.py"]}
    )
    assert report.findings == []
    assert report.checked["replayed_steps"] == 1


def test_without_replays_a_moved_generator_is_still_reported(trainer: Make) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return F.dropout(x)

    report = guarded(trainer, model(forward), audit="off")
    assert said(report) == [
        "`model` (the whole model): the step moved torch's global generator. "
        "Scores change from run to run. "
        "Draw only in "
        "training: `if self.training:`. [stochastic]"
    ]


def test_a_debugger_keeps_its_trace_function(
    trainer: Make, monkeypatch: pytest.MonkeyPatch
) -> None:

    def forward(self: Any, x: Tensor) -> Tensor:
        return x * (1 + random.random())

    def traced(*_: Any) -> None:
        return None

    before = sys.gettrace()
    sys.settrace(traced)
    try:
        report = guarded(trainer, model(forward))
        assert sys.gettrace() is traced
    finally:
        sys.settrace(before)
    assert any("moved Python's global generator" in line for line in said(report))


def test_certain_findings_stop_the_run_and_suspicions_warn(trainer: Make) -> None:
    guard = EvalGuard(data="ignore", metrics=None, sync="ignore")
    with pytest.raises(EvalGuardError, match=r"Pass training=self\.training"):
        trainer(callbacks=[guard]).fit(
            model(lambda self, x: F.dropout(x)), loader(), loader()
        )
    guard = EvalGuard(data="ignore", metrics=None, sync="ignore")
    with pytest.warns(EvalGuardWarning, match="randn_like") as warned:
        trainer(callbacks=[guard]).fit(
            model(lambda self, x: x + torch.randn_like(x)), loader(), loader()
        )
    (ours,) = [w for w in warned if w.category is EvalGuardWarning]
    assert Path(ours.filename).name == "test_stochastic.py"


def test_a_checks_state_is_let_go_when_the_run_ends() -> None:
    check, now = StochasticCheck(), Moment("validate")
    root = model(lambda self, x: x, draws=torch.Generator())
    check.open(root, now)
    check.start(now)
    check.before_step(now, ())
    check.after_step(now, None)
    check.close(now)
    assert not [v for v in vars(check).values() if isinstance(v, (nn.Module, Tensor))]
    assert check.before is None
    assert check._private == []
