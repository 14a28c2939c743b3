"""The sync check: each idiom found at its line with its count, each near-miss silent."""

from __future__ import annotations

import _thread
import ctypes
import gc
import importlib.util
import os
import runpy
import subprocess
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
import torchmetrics
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import sync_idioms as table
import words
from lightning_evalguard import EvalGuard, EvalGuardError, EvalGuardWarning, allow
from lightning_evalguard.checks.sync.check import SyncCheck
from lightning_evalguard.checks.sync.debug_mode import DebugMode
from lightning_evalguard.checks.sync.listeners import caller
from lightning_evalguard.checks.sync.overrides import SUPPORTED, WaitWatch

pytestmark = pytest.mark.skipif(not SUPPORTED, reason="torch >= 2.9 has get_kernel")

RIG = Path(__file__).parents[1] / "rigs" / "cuda_without_gpu" / "run"


class Honest(pl.LightningModule):
    """Labelled points: x (8, 4) float32, y (8,) int64 in 0..3; nothing waits."""

    batches = 4

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_loss", F.cross_entropy(self(x), y))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-3)

    def points(self, seed: int) -> DataLoader[Any]:
        n = 8 * self.batches
        draw = torch.Generator().manual_seed(seed)
        data = TensorDataset(torch.randn(n, 4, generator=draw), torch.arange(n) % 4)
        return DataLoader(data, batch_size=8)

    def train_dataloader(self) -> DataLoader[Any]:
        return self.points(0)

    def val_dataloader(self) -> DataLoader[Any]:
        return self.points(1)


Fit = Callable[..., pl.Trainer]


def watch(
    fit: Fit, module: pl.LightningModule, *callbacks: pl.Callback, **kwargs: Any
) -> EvalGuard:
    """Train under a guard that watches every step, and give the guard."""
    guard = EvalGuard(metrics=None, audit="off", sync_steps=(0, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EvalGuardWarning)
        fit(module, guard, *callbacks, num_sanity_val_steps=0, **kwargs)
    return guard


def sites(guard: EvalGuard, owner: str, stage: str = "fit") -> dict[str, float]:
    """Expression -> how often a step."""
    found: Counter[str] = Counter()
    for sync in guard.report.syncs:
        if sync.owner == owner and sync.stage == stage:
            found[sync.expression] += sync.per_step
    return dict(found)


# The table


HOOKS = """
import contextlib
import lightning.pytorch as pl
from sync_idioms import MODULES, names
from test_sync import Honest

globals().update(MODULES)
quiet = contextlib.suppress({quiet})


class Planted(Honest):
    batches = 1

    def training_step(self, batch, batch_idx):
        x, y = self.given = batch
        self.plant_in_training_step(x, y)
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        self.plant_in_validation_step(*batch)

    def test_step(self, batch, batch_idx):
        self.plant_in_test_step(*batch)

    test_dataloader = Honest.train_dataloader

    def on_before_optimizer_step(self, optimizer):
        self.plant_in_on_before_optimizer_step(*self.given)
"""
PLACES = (
    "training_step",
    "validation_step",
    "test_step",
    "on_before_optimizer_step",
    "callback",
)


def plant(
    folder: Path, idioms: list[str], quiet: str = ""
) -> tuple[Any, dict[int, str]]:
    """A module whose hooks run the idioms: itself, and line number -> ``place: idiom``."""
    text = HOOKS.format(quiet=quiet)
    for place in PLACES:
        body = table.program(
            idioms, "        " if place != "callback" else "            "
        )
        if place == "callback":
            text += "\n\nclass Elsewhere(pl.Callback):\n"
            arguments = "self, trainer, module, outputs, batch, batch_idx"
            text += f"    def on_train_batch_end({arguments}):\n"
            text += "        x, y = batch\n        if True:\n" + body
        else:
            text += f"\n    def plant_in_{place}(self, x, y):\n" + body
    file = folder / "planted.py"
    file.write_text(text)
    where, at = {}, ""
    for number, line in enumerate(text.splitlines(), 1):
        for place in PLACES:
            if line.strip().startswith((f"def plant_in_{place}(", f"class {place}")):
                at = place
        at = "callback" if line.startswith("class Elsewhere") else at
        if line.strip() in idioms and at:
            where[number] = f"{at}: {line.strip()}"
    spec = importlib.util.spec_from_file_location("planted", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module, where


def heard(guard: EvalGuard, where: dict[int, str]) -> dict[str, float]:
    found: Counter[str] = Counter()
    for sync in guard.report.syncs:
        file, _, line = sync.location.rpartition(":")
        if file.endswith("planted.py"):
            assert sync.owner == "user"
            found[where[int(line)]] += sync.per_step
    return dict(found)


@pytest.mark.filterwarnings("ignore")  # what torch thinks of some of the idioms
def test_each_idiom_is_found_at_its_line_and_each_near_miss_is_silent(
    fit: Fit, trainer: Callable[..., pl.Trainer], tmp_path: Path
) -> None:
    waits = {
        s: table.ON_CPU.get(s, n)
        for s, n, _ in table.WAITS
        if s not in table.SYNCHRONIZE
    }
    module, where = plant(tmp_path, [*waits, *table.FREE])
    guard = watch(fit, module.Planted(), module.Elsewhere())
    tested = EvalGuard(metrics=None, audit="off", sync_steps=(0, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EvalGuardWarning)
        trainer(callbacks=[tested]).test(module.Planted(), verbose=False)
    found = heard(guard, where) | heard(tested, where)
    expected = {f"{p}: {s}": float(n) for p in PLACES for s, n in waits.items() if n}
    assert sorted(found.items() - expected.items()) == []  # precision
    assert sorted(expected.items() - found.items()) == []  # recall
    assert {f.location for f in guard.report.findings if f.check == "sync"} == {
        s.location for s in guard.report.syncs if s.owner == "user"
    }


# What is said, and what stays silent


class ReadsItsLoss(Honest):
    """The oldest slow-down there is."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.seen.append(loss.item())
        return loss


def line_of(cls: type, text: str) -> str:
    lines = Path(__file__).read_text().splitlines()
    start = next(
        i for i, line in enumerate(lines) if line.startswith(f"class {cls.__name__}(")
    )
    at = next(i for i, line in enumerate(lines[start:], start + 1) if text in line)
    return f"{__file__}:{at}"


def test_a_bare_guard_warns_once_at_the_users_line(fit: Fit) -> None:
    with pytest.warns(EvalGuardWarning) as told:
        fit(ReadsItsLoss(), EvalGuard(metrics=None), max_epochs=2)
    told_of = [w for w in told if issubclass(w.category, EvalGuardWarning)]
    assert [f"{w.filename}:{w.lineno}" for w in told_of] == [
        line_of(ReadsItsLoss, ".item()")
    ]
    assert words.said(told_of[0].message).endswith(
        "`loss.item()` would make the host wait for the device, 1.0 per training step. "
        "The device runs out of work. Keep the "
        "tensor; read it once after the last batch, or log it with self.log. [sync]"
    )


def test_error_stops_at_the_end_of_the_first_window(fit: Fit) -> None:
    module = ReadsItsLoss()
    with pytest.raises(EvalGuardError, match="host wait") as caught:
        fit(module, EvalGuard(metrics=None, sync="error"))
    assert len(module.seen) == 1
    assert [s.expression for s in caught.value.report.syncs] == ["loss.item()"]


def test_allow_silences_the_finding_and_keeps_the_record(fit: Fit) -> None:
    class Meant(Honest):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            with allow("sync", reason="the scheduler wants a number"):
                loss.item()
            return loss

    guard = EvalGuard(metrics=None, sync="error")
    fit(Meant(), guard)
    assert [(s.expression, s.allowed) for s in guard.report.syncs] == [
        ("loss.item()", True)
    ]


class Careful(Honest):
    """Reads on the host what lives there: data, lengths, statistics after the last batch."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[Tensor] = []
        self.weights = torch.tensor([0.5, 0.5])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.losses.append(loss.detach())
        order = torch.randperm(4).tolist()
        share = torch.rand(1).item() + self.weights.sum().item() + order[0]
        return loss * share

    def on_train_epoch_end(self) -> None:
        self.mean = torch.stack(self.losses).mean().item()

    def on_validation_epoch_end(self) -> None:
        self.best = float(self.trainer.callback_metrics["val_loss"])

    def train_dataloader(self) -> DataLoader[Any]:
        class Reads(Dataset[Any]):
            def __len__(self) -> int:
                return 16

            def __getitem__(self, i: int) -> Any:
                point = torch.full((4,), float(i))
                return point + point.mean().item(), int(torch.tensor(i % 4))

        return DataLoader(Reads(), batch_size=8)


def test_what_lives_on_the_host_is_read_in_silence(fit: Fit) -> None:
    guard = EvalGuard(metrics=None, sync="error", sync_steps=(0, 1))
    fit(Careful(), guard, max_epochs=2)
    assert sites(guard, "user") == sites(guard, "user", "validate") == {}


class Step(Honest):
    """A training step that is one function ``(module, x, y) -> loss``."""

    def __init__(self, step: Callable[..., Tensor]) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 4, batch_first=True)
        self.encoder = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
        self.embed = nn.Embedding(4, 4, max_norm=1.0)
        self.norm = nn.BatchNorm1d(4)
        self.average = torch.optim.swa_utils.AveragedModel(self.layer)
        self.average.requires_grad_(False)
        self.register_buffer("queue", torch.zeros(16, 4))
        self.step = step
        self.slow = torch.zeros(())

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.step(self, *batch)


def packed(self: Step, x: Tensor, y: Tensor) -> Tensor:
    lengths = [3, 3, 2, 2, 2, 1, 1, 1]
    given = nn.utils.rnn.pack_padded_sequence(x[:, None].repeat(1, 3, 1), lengths, True)
    out, _ = nn.utils.rnn.pad_packed_sequence(self.lstm(given)[0], batch_first=True)
    return F.cross_entropy(out[:, 0], y)


def masked_attention(self: Step, x: Tensor, y: Tensor) -> Tensor:
    mask = nn.Transformer.generate_square_subsequent_mask(8, device=x.device)
    padding = torch.arange(8, device=x.device)[None] >= 6
    return self.encoder(
        x[None], src_mask=mask, src_key_padding_mask=padding.float()
    ).mean()


def mixup(self: Step, x: Tensor, y: Tensor) -> Tensor:
    share = torch.distributions.Beta(0.4, 0.4).sample().item()
    order = torch.randperm(len(x), device=x.device)
    logits = self.layer(share * x + (1 - share) * x[order])
    return F.cross_entropy(logits, y, label_smoothing=0.1) * share


def contrast(self: Step, x: Tensor, y: Tensor) -> Tensor:
    keys = F.normalize(self.layer(x))
    self.queue.copy_(torch.cat([keys.detach(), self.queue[:8]]))
    self.slow = (
        0.9 * self.slow.to(x.device, non_blocking=True) + 0.1 * keys.detach().mean()
    )
    same = (y[:, None] == y[None]).float()
    return -(F.log_softmax(keys @ keys.t(), -1) * same).sum() / same.sum()


def embedded(self: Step, x: Tensor, y: Tensor) -> Tensor:
    self.average.update_parameters(self.layer)
    hard = x.gather(1, y[:, None]) + F.one_hot(y, 4) * self.embed(y)
    noise = torch.randn_like(hard) * torch.where(hard > 0, 1.0, 0.0)
    noise[noise > 1] = 1.0
    chosen = torch.multinomial(hard.detach().abs() + 1, 1)
    return F.mse_loss(self.norm(self.layer(hard + noise)), x) + 0 * chosen.sum()


def checkpointed(self: Step, x: Tensor, y: Tensor) -> Tensor:
    out = torch.utils.checkpoint.checkpoint(self.layer, x, use_reentrant=False)
    return F.cross_entropy(out, y) + torch.linalg.vector_norm(out) * 1e-3


def manual(self: Step, x: Tensor, y: Tensor) -> Tensor:
    inner = torch.optim.Adam(self.encoder.parameters(), 1e-3)
    with torch.enable_grad():
        self.encoder(x[None]).mean().backward()
    torch.nn.utils.clip_grad_norm_(self.encoder.parameters(), 1.0)
    inner.step()
    inner.zero_grad()
    return F.cross_entropy(self.layer(x), y)


@pytest.mark.parametrize(
    "step",
    [packed, masked_attention, mixup, contrast, embedded, checkpointed, manual],
    ids=lambda step: step.__name__,
)
def test_an_honest_step_is_silent(fit: Fit, step: Callable[..., Tensor]) -> None:
    guard = EvalGuard(metrics=None, audit="off", sync="error", sync_steps=(0, 1))
    fit(Step(step), guard, num_sanity_val_steps=0)
    assert sites(guard, "user") == {}


def test_a_part_of_the_batch_that_a_hook_may_leave_on_the_host_is_not_judged(
    fit: Fit,
) -> None:
    class Keeps(Honest):
        def transfer_batch_to_device(
            self, batch: Any, device: Any, dataloader_idx: int
        ) -> Any:
            return batch[0].to(device, non_blocking=True), batch[1]

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            batch[1].tolist()
            return super().training_step(batch, batch_idx)

    assert sites(watch(fit, Keeps()), "user") == {}


def test_the_guards_own_replay_of_a_step_is_not_counted(fit: Fit) -> None:
    class Reads(Honest):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            super().validation_step(batch, batch_idx)
            batch[0].mean().item()

    guard = EvalGuard(metrics=None, audit="full", sync_steps=(0, 1))
    with pytest.warns(EvalGuardWarning, match="1.0 per validation step"):
        fit(Reads(), guard)
    assert sites(guard, "user", "validate") == {"batch[0].mean().item()": 1.0}


@pytest.mark.parametrize(
    ("sync_steps", "operators", "windows"),
    [
        ((2, 50), 300, [0, 1, 50, 100, 200, 400]),
        ((2, 50), 6000, [0, 1, 400]),
        ((1, 40), 6000, [0, 40, 80, 160, 320]),
    ],
    ids=["of few operators", "of many", "of many, and more is asked for"],
)
def test_windows_are_the_first_steps_and_on_the_cpu_ever_rarer_ones(
    sync_steps: tuple[int, int], operators: int, windows: list[int]
) -> None:
    check, counted = SyncCheck(sync_steps), []
    for n in range(500):
        if n < sync_steps[0] or check._is_due(n):
            counted.append(n)
            check._watch = check._watch or _FakeDevice(operators)
    assert counted == windows


class _FakeDevice:
    on_cpu = True

    def __init__(self, operators: int) -> None:
        self.operators = operators


@pytest.mark.parametrize("steps", [(2,), (-1, 50), (2, 0)])
def test_a_wrong_choice_of_windows_is_refused(steps: Any) -> None:
    with pytest.raises(ValueError, match="sync_steps="):
        EvalGuard(sync_steps=steps)


def test_below_torch_2_9_the_report_says_that_nothing_was_watched(
    fit: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightning_evalguard.checks.sync.check.SUPPORTED", False)
    guard = watch(fit, ReadsItsLoss())
    assert guard.report.syncs == []
    assert "is below 2.9" in str(guard.report)


# Whose it is


def test_lightnings_own_syncs_stand_under_its_name(fit: Fit, tmp_path: Path) -> None:
    class Logs(Honest):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            self.log("bar", loss, prog_bar=True)
            self.log("half", 0.5)
            return loss

    guard = watch(
        fit,
        Logs(),
        pl.callbacks.EarlyStopping("val_loss"),
        pl.callbacks.ModelCheckpoint(tmp_path, monitor="val_loss"),
        gradient_clip_val=1.0,
        enable_progress_bar=True,
        enable_checkpointing=True,
    )
    assert sites(guard, "user") == {}
    assert [f for f in guard.report.findings if f.check == "sync"] == []
    found = sites(guard, "lightning")
    # a number becomes a tensor on the device
    assert found['self.log("half", 0.5)'] == 1.0
    assert found["value.item()"] == 2.0  # the bar reads each metric twice
    assert set(found) == {'self.log("half", 0.5)', "value.item()"}


def metric(name: str, **kwargs: Any) -> torchmetrics.Metric:
    return getattr(torchmetrics.classification, f"Multiclass{name}")(
        num_classes=4, **kwargs
    )


# As the CUDA runtime sees it: `bincount` and `unique` wait inside, an `ignore_index` twice more.
@pytest.mark.parametrize(
    ("name", "settings", "ops"),
    [
        ("Accuracy", {}, {"bincount": 1}),
        ("Accuracy", {"validate_args": False}, {"bincount": 1}),
        ("Accuracy", {"ignore_index": 0}, {"bincount": 1, "nonzero": 2}),
        ("ConfusionMatrix", {}, {"bincount": 1}),
        ("ConfusionMatrix", {"validate_args": False}, {"bincount": 1}),
        ("ConfusionMatrix", {"ignore_index": 0}, {"bincount": 1, "nonzero": 2}),
        ("AUROC", {}, {"unique": 1}),
        ("AUROC", {"validate_args": False}, {}),
        ("AUROC", {"ignore_index": 0}, {"unique": 1, "nonzero": 2}),
    ],
)
def test_torchmetrics_syncs_stand_under_its_name_at_the_users_line(
    fit: Fit, name: str, settings: dict[str, Any], ops: dict[str, int]
) -> None:
    class Measures(Honest):
        def __init__(self) -> None:
            super().__init__()
            self.metric = metric(name, **settings)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.metric.update(self(batch[0]), batch[1])

    guard = watch(fit, Measures())
    assert [f for f in guard.report.findings if f.check == "sync"] == []
    found: Counter[str] = Counter()
    for sync in guard.report.syncs:
        assert (sync.owner, sync.stage) == ("torchmetrics", "validate")
        assert sync.expression == "self.metric.update(self(batch[0]), batch[1])"
        assert sync.via.startswith("torchmetrics/")
        mend = (
            "validate_args=False" if sync.op == "unique" else "the guard's own matrix"
        )
        assert mend in sync.remedy
        assert sync.remedy in str(sync)
        found[sync.op] += int(sync.per_step)
    assert found == ops


class Means(Honest):
    """A mean of losses, whose check for NaN waits unless it is switched off."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.mean = torchmetrics.MeanMetric(**settings)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.mean.update(self(batch[0]).mean())


class Compares(Honest):
    """A metric that takes no `validate_args`."""

    def __init__(self) -> None:
        super().__init__()
        self.metric = torchmetrics.regression.TweedieDevianceScore(1.5)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        positive = self(batch[0]).abs().flatten() + 1
        self.metric.update(positive, positive)


def test_a_setting_that_avoids_a_wait_is_named_where_the_metric_takes_it(
    fit: Fit,
) -> None:
    syncs = watch(fit, Compares()).report.syncs
    assert {sync.owner for sync in syncs} == {"torchmetrics"}
    for sync in syncs:
        assert "validate_args" not in sync.remedy, sync

    syncs = watch(fit, Means()).report.syncs
    assert {sync.remedy for sync in syncs} == {
        'Pass nan_strategy="disable" to the metric.'
    }
    assert watch(fit, Means(nan_strategy="disable")).report.syncs == []


def test_checks_inside_libraries_stand_at_the_users_line_with_their_mend(
    fit: Fit,
) -> None:
    class Checks(Honest):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            mean, scale = self(batch[0])[:, :2].chunk(2, 1)
            # Said aloud: torch.compile switches the default off for the whole process.
            normal = torch.distributions.Normal(mean, scale.exp(), validate_args=True)
            return -normal.log_prob(batch[0][:, :1]).mean()

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            nn.utils.clip_grad_norm_(self.parameters(), 1.0, error_if_nonfinite=True)

    class Fixed(Honest):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            mean, scale = self(batch[0])[:, :2].chunk(2, 1)
            normal = torch.distributions.Normal(mean, scale.exp(), validate_args=False)
            return -normal.log_prob(batch[0][:, :1]).mean()

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            nn.utils.clip_grad_norm_(self.parameters(), 1.0)

    found = {
        f.expression: f
        for f in watch(fit, Checks()).report.findings
        if f.check == "sync"
    }
    normal = found.pop(
        "torch.distributions.Normal(mean, scale.exp(), validate_args=True)"
    )
    score = found.pop("normal.log_prob(batch[0][:, :1])")
    (clip,) = found.values()
    assert "2.0 per training step" in normal.fact
    assert "1.0 per training step" in score.fact
    assert normal.remedy == score.remedy == "Pass validate_args=False."
    assert clip.remedy == "Pass error_if_nonfinite=False."
    assert [f for f in watch(fit, Fixed()).report.findings if f.check == "sync"] == []


def test_the_gradient_scaler_reads_once_a_step(fit: Fit) -> None:
    class Scales(Honest):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.scaler = torch.amp.GradScaler("cpu")

        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizer = self.optimizers().optimizer
            optimizer.zero_grad()
            self.scaler.scale(F.cross_entropy(self(batch[0]), batch[1])).backward()
            self.scaler.step(optimizer)
            self.scaler.update()

    (found,) = [f for f in watch(fit, Scales()).report.findings if f.check == "sync"]
    assert found.expression == "self.scaler.step(optimizer)"
    assert "1.0 per training step" in found.fact
    assert found.remedy.startswith("Train in bfloat16")


def test_the_guards_own_confusion_state_waits_for_nothing(fit: Fit) -> None:
    guard = EvalGuard(audit="off", sync="error", sync_steps=(0, 1))

    class Tells(Honest):
        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            x, y = batch
            return {
                "preds": self(x).argmax(-1),
                "target": y,
                "loss": F.cross_entropy(self(x), y),
            }

    fit(Tells(), guard)
    assert sites(guard, "lightning_evalguard", "validate") == {}


# Nothing is left behind


def state_of_torch() -> list[Any]:
    """What the watch replaces, as it stands."""
    methods = (
        "cpu",
        "to",
        "tolist",
        "numpy",
        "__array__",
        "__repr__",
        "__format__",
        "new_tensor",
    )
    kernels = [
        torch._C._dispatch_dump(f"aten::{op}").split("CPU:")[-1]
        for op in ("_local_scalar_dense", "nonzero", "_unique2", "bincount", "equal")
    ]
    modes = torch.utils._python_dispatch._get_current_dispatch_mode_stack()
    backward = torch.autograd._engine_run_backward
    return [*(vars(Tensor).get(m) for m in methods), backward, *kernels, *modes]


class _Stops(Honest):
    error: BaseException = RuntimeError("stop")

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        raise self.error


@pytest.mark.parametrize("error", [RuntimeError("stop"), KeyboardInterrupt()])
def test_an_exception_in_a_window_leaves_torch_as_it_was(
    fit: Fit, error: BaseException
) -> None:
    before = state_of_torch()
    module = _Stops()
    module.error = error
    with pytest.raises((RuntimeError, SystemExit, KeyboardInterrupt)):
        fit(module, EvalGuard(metrics=None))
    assert state_of_torch() == before


def test_overlapping_watches_may_stop_in_any_order() -> None:
    before = state_of_torch()
    heard: list[str] = []
    first, second = (
        WaitWatch("cpu", lambda op, f, s, n=n: heard.append(n)) for n in ("1", "2")
    )
    value = torch.ones(())
    first.open([value])
    second.open([value])
    value.item()
    first.stop()
    value.item()
    second.stop()
    value.item()
    assert heard == ["1", "2", "2"]
    assert state_of_torch() == before


def test_two_guards_and_a_trainer_inside_another(
    fit: Fit, trainer: Callable[..., Any]
) -> None:
    class Nested(pl.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            inner = trainer(callbacks=[EvalGuard(metrics=None, sync="ignore")])
            inner.validate(Honest(), verbose=False)

    before = state_of_torch()
    guards = [EvalGuard(metrics=None, audit="off", sync_steps=(0, 1)) for _ in range(2)]
    with pytest.warns(EvalGuardWarning):
        fit(ReadsItsLoss(), *guards, Nested(), num_sanity_val_steps=0)
    assert [sites(g, "user") for g in guards] == [{"loss.item()": 1.0}] * 2
    assert state_of_torch() == before


def test_another_mode_entered_in_a_window_survives_its_end() -> None:
    class Other(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ):
            return func(*args, **(kwargs or {}))

    before = state_of_torch()
    watch, other = WaitWatch("cpu", lambda *_: None), Other()
    watch.open([])
    with other:
        watch.stop()
        assert torch.utils._python_dispatch._get_current_dispatch_mode_stack() == [
            other
        ]
    assert state_of_torch() == before


def test_another_thread_is_not_watched(fit: Fit) -> None:
    class Reads(pl.Callback):
        def on_train_batch_end(
            self, trainer: Any, module: Any, outputs: Any, *_: Any
        ) -> None:
            thread = threading.Thread(target=lambda: outputs["loss"].item())
            thread.start()
            thread.join()

    assert sites(watch(fit, Honest(), Reads()), "user") == {}


def test_workers_forked_inside_a_window_watch_nothing() -> None:
    watch = WaitWatch("cpu", lambda *_: None)
    watch.open([])
    child = os.fork() if hasattr(os, "fork") else None
    if child == 0:
        modes = torch.utils._python_dispatch._get_current_dispatch_mode_stack()
        os._exit(0 if not modes else 1)
    watch.stop()
    if child is not None:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_our_own_failure_is_told_and_surfaces_in_no_item(
    fit: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise LookupError("lost")

    monkeypatch.setattr("lightning_evalguard.checks.sync.check.where_of", fails)
    before = state_of_torch()
    with pytest.warns(EvalGuardWarning, match="LookupError: lost"):
        fit(ReadsItsLoss(), EvalGuard(metrics=None, sync="error"))
    assert state_of_torch() == before


# It changes nothing


class Busy(Honest):
    """Attention, batch norm, dropout, autocast, vmap, a copy and a pickle of what it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
        self.norm = nn.BatchNorm1d(4)
        self.copies: list[Any] = []

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            x = self.encoder(x[None])[0]
        x = torch.vmap(lambda row: row * row.sum())(x.float())
        self.copies.append((torch.save, vars(x.detach())))
        return self.layer(self.norm(x))


def test_training_is_the_same_bit_for_bit(fit: Fit) -> None:
    weights = []
    for steps in ((0, 10**9), (0, 1)):
        torch.manual_seed(0)
        module = Busy()
        fit(
            module,
            EvalGuard(
                metrics=None,
                audit="off",
                sync_steps=steps,
                data="ignore",
                scores="ignore",
            ),
            max_epochs=2,
        )
        weights.append([p.detach().clone() for p in module.parameters()])
        assert not any(attributes for _, attributes in module.copies)
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


class Formulas(Honest):
    """Its gradients torch computes by other formulas below a dispatch mode."""

    def __init__(self, loss: Callable[[Any, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.loss = loss
        self.fill = nn.Parameter(torch.zeros(()))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return self.loss(self, self(x), y)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.layer.weight.grad.norm().item()


LOSSES: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "mixed precisions": lambda m, z, y: F.binary_cross_entropy_with_logits(
        z, F.one_hot(y, 4).float(), pos_weight=torch.tensor(0.6)
    ),
    "prod": lambda m, z, y: ((z.prod(1) - y) ** 2).mean(),
    "masked_fill": lambda m, z, y: (
        torch.randn(512, 64)
        * z.repeat(64, 16).masked_fill(z.repeat(64, 16) > 0.1, m.fill)
    ).mean(),
    "the same precision": lambda m, z, y: F.binary_cross_entropy_with_logits(
        z, F.one_hot(y, 4).to(z.dtype), pos_weight=torch.tensor(0.6)
    ),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_a_backward_pass_whose_bits_a_watch_would_move_is_left_alone(
    fit: Fit, loss: str
) -> None:
    weights = []
    for steps in ((0, 10**9), (0, 1)):
        torch.manual_seed(0)
        module = Formulas(LOSSES[loss])
        guard = EvalGuard(metrics=None, audit="off", sync_steps=steps, data="ignore")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", EvalGuardWarning)
            precision = "64-true" if "precision" in loss else "32-true"
            fit(
                module, guard, max_epochs=2, precision=precision, num_sanity_val_steps=0
            )
        weights.append([p.detach().clone() for p in module.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
    assert sites(guard, "user")["self.layer.weight.grad.norm().item()"] == 1.0
    noted = [
        note for note in guard.report.notes if "backward pass was not watched" in note
    ]
    assert len(noted) == (loss != "the same precision")


def test_parameters_can_be_swapped_inside_a_window(fit: Fit) -> None:
    class Swaps(Honest):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            other = nn.Parameter(self.layer.weight.detach().clone())
            torch.utils.swap_tensors(self.layer.weight, other)
            torch.utils.swap_tensors(self.layer.weight, other)
            return super().training_step(batch, batch_idx)

    assert watch(fit, Swaps()).report.syncs == []


@pytest.mark.parametrize(
    "backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]
)
def test_a_compiled_module_is_compiled_whole_and_once(fit: Fit, backend: str) -> None:
    import torch._dynamo.utils as dynamo

    class Compiled(Honest):
        def __init__(self) -> None:
            super().__init__()
            self.step = torch.compile(self._step, fullgraph=True, backend=backend)

        def _step(self, x: Tensor, y: Tensor) -> Tensor:
            one = torch.ones(4, device=x.device).to(x.device)
            return F.cross_entropy(
                self.layer(x.to(torch.float32)) * one.cpu().to(x.device), y
            )

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = self.step(*batch)
            loss.item()
            return loss

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.step(*batch).item()

    frames = []
    for steps in ((0, 10**9), (0, 1)):
        torch._dynamo.reset()
        dynamo.counters.clear()
        guard = EvalGuard(metrics=None, audit="off", sync_steps=steps)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fit(Compiled(), guard, num_sanity_val_steps=0)
        frames.append(
            dict(dynamo.counters["frames"]) | dict(dynamo.counters["graph_break"])
        )
    assert frames[0] == frames[1]
    assert sites(guard, "user") == {"loss.item()": 1.0}
    assert sites(guard, "user", "validate") == {"self.step(*batch).item()": 1.0}


def test_the_example_prints_its_five_and_the_fixed_one_none(
    capsys: pytest.CaptureFixture[str],
) -> None:
    runpy.run_path(
        str(Path(__file__).parents[2] / "examples" / "syncs.py"), run_name="__main__"
    )
    planted, _, fixed = capsys.readouterr().out.partition("Fixed: ")
    assert planted.count("[user]") == 5
    assert fixed.strip() == "0 syncs"


def test_steps_under_inference_mode_are_watched_and_keep_their_bits(
    trainer: Callable[..., pl.Trainer],
) -> None:
    class Recurrent(Honest):
        def __init__(self) -> None:
            super().__init__()
            self.gru = nn.GRU(4, 4, batch_first=True)
            self.seen: list[Tensor] = []

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.seen.append(self.gru(batch[0].unsqueeze(0))[0].clone())
            self.seen[-1].sum().item()

    def outputs(*guards: EvalGuard) -> list[Tensor]:
        torch.manual_seed(0)
        module = Recurrent()
        trainer(callbacks=list(guards)).validate(module, verbose=False)
        return module.seen

    # nothing trained it: that is not asked here
    quiet = {"data": "ignore", "weights": "ignore"}
    guard = EvalGuard(metrics=None, sync_steps=(0, 1), **quiet)
    with pytest.warns(EvalGuardWarning, match="would make the host wait"):
        watched = outputs(guard)
    assert all(torch.equal(a, b) for a, b in zip(outputs(), watched, strict=True))
    assert sites(guard, "user", "validate") == {"self.seen[-1].sum().item()": 1.0}
    assert guard.report.notes == []


# On a device: a real one, or CUDA's dispatch code on the stand-in for its runtime

on_a_device = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
    pytest.mark.filterwarnings("ignore"),
]
gpu = {"accelerator": "gpu"}


def on_the_rig() -> bool:
    return "libfc" in os.environ.get("LD_PRELOAD", "")


class TestOnADevice:
    pytestmark = on_a_device

    def test_each_idiom_that_waits_is_heard_and_no_other(self) -> None:
        table_says = {source: (heard, waited) for source, heard, waited in table.WAITS}
        assert len(table.WAITS) >= 80
        assert len(table.FREE) >= 60
        for source, heard, waited in table.run_each("cuda"):
            expected = table_says.get(source, (0, 0))
            assert (source, heard) == (source, expected[0])
            if on_the_rig():
                assert (source, bool(waited)) == (source, bool(expected[1]))
            if on_the_rig() and torch.__version__.startswith("2.14."):
                assert (source, waited) == (source, expected[1])

    def test_the_planted_table_has_the_same_sites_and_counts_as_on_the_cpu(
        self, fit: Fit, tmp_path: Path
    ) -> None:
        waits = {s: n for s, n, _ in table.WAITS}
        quiet = "Exception" if on_the_rig() else ""  # values are garbage there
        module, where = plant(tmp_path, [*waits, *table.FREE], quiet)
        guard = watch(fit, module.Planted(), module.Elsewhere(), **gpu)
        found = heard(guard, where)
        # what CUDA's own switch hears in all of it has a line
        assert [
            note for note in guard.report.notes if "set_sync_debug_mode" in note
        ] == []
        assert torch.cuda.get_sync_debug_mode() == 0
        places = [p for p in PLACES if p != "test_step"]
        expected = {f"{p}: {s}": float(n) for p in places for s, n in waits.items()}
        assert sorted(found.items() - expected.items()) == []
        assert sorted(expected.items() - found.items()) == []

    def test_an_honest_module_is_silent(self, fit: Fit) -> None:
        guard = EvalGuard(metrics=None, audit="off", sync="error", sync_steps=(0, 1))
        fit(Honest(), guard, num_sanity_val_steps=0, **gpu)
        assert guard.report.syncs == []

    def test_a_hook_in_the_backward_pass_is_heard_on_autograds_thread(
        self, fit: Fit
    ) -> None:
        class Hooked(Honest):
            def training_step(self, batch: Any, batch_idx: int) -> Tensor:
                loss = super().training_step(batch, batch_idx)
                loss.register_hook(lambda grad: grad * grad.sum().item())
                return loss

        assert sites(watch(fit, Hooked(), **gpu), "user") == {"grad.sum().item()": 1.0}

    def test_what_the_backward_pass_waits_for_on_its_own_thread_is_autograds(
        self, fit: Fit
    ) -> None:
        class Masked(Honest):
            def training_step(self, batch: Any, batch_idx: int) -> Tensor:
                values = self(batch[0])
                with allow("sync", reason="the test is about the way back"):
                    return values[values > 0].sum()

        guard = watch(fit, Masked(), **gpu)
        heard = [
            s for s in guard.report.syncs if s.owner == "autograd" and s.stage == "fit"
        ]
        assert [(s.location, s.op, s.per_step) for s in heard] == [("", "nonzero", 1.0)]
        assert str(heard[0]).startswith(
            "`the backward pass` (nonzero), 1.0 per training step"
        )

    def test_cudas_own_switch_hears_what_nobody_else_does_and_is_put_back(self) -> None:
        number, shown = torch.ones(1, device="cuda"), warnings.showwarning
        ear, watch_ = DebugMode(), WaitWatch("cuda", lambda op, frame, seconds: None)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            before = list(warnings.filters), warnings.showwarning
            ear.open()
            number.item()
            warnings.warn("the user's own", stacklevel=1)
            watch_.open(())
            number.item()
            watch_.stop()
            ear.close()
            assert (list(warnings.filters), warnings.showwarning) == before
        assert ear.unattributed == 1
        assert [str(w.message) for w in said] == ["the user's own"]
        assert torch.cuda.get_sync_debug_mode() == 0
        assert warnings.showwarning is shown

    def test_the_time_that_the_host_waited_is_measured(self, fit: Fit) -> None:
        class Waits(Honest):
            def training_step(self, batch: Any, batch_idx: int) -> Tensor:
                loss = super().training_step(batch, batch_idx)
                keep_busy()
                loss.item()
                loss.item()
                return loss

        def keep_busy() -> None:
            if not on_the_rig():
                torch.cuda._sleep(100_000_000)
                return
            rig = ctypes.CDLL(os.environ["LD_PRELOAD"])
            rig.fc_set_kernel_us.argtypes = [ctypes.c_double]
            rig.fc_set_kernel_us(20_000.0)  # one kernel of 20 ms
            torch.zeros(1, device="cuda").add_(1)
            rig.fc_set_kernel_us(0.0)

        guard = watch(fit, Waits(), **gpu)
        cost = {
            s.location: s.milliseconds for s in guard.report.syncs if s.owner == "user"
        }
        first, second = (cost[place] for place in sorted(cost))
        assert first is not None
        assert second is not None
        # who comes first waits for all that was queued
        assert first > 15.0 > 5.0 > second


class Converts(Honest):
    """Converts a part that has gradients, in the way in which torch swaps tensors."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        before = torch.__future__.get_swap_module_params_on_conversion()
        torch.__future__.set_swap_module_params_on_conversion(True)
        try:
            self.layer.to(torch.float64)
            self.layer.to(torch.float32)
        finally:
            torch.__future__.set_swap_module_params_on_conversion(before)
        return super().training_step(batch, batch_idx)


def test_a_step_may_convert_its_module_by_a_swap(fit: Fit) -> None:
    assert watch(fit, Converts()).report.syncs == []


class CountsItsGraphs(Honest):
    """Writes down how many graphs of earlier steps are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: list[int] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.alive.append(self.layer.weight._use_count())
        loss = super().training_step(batch, batch_idx)
        loss.item()
        return loss


def test_no_graph_outlives_its_step_until_the_collector_comes(fit: Fit) -> None:
    module = CountsItsGraphs()
    gc.disable()
    try:
        watch(fit, module)
    finally:
        gc.enable()
    assert set(module.alive) == {1}


def test_a_kernel_that_nobody_in_python_called_has_no_caller() -> None:
    callers, done = [], threading.Event()

    def kernel() -> None:
        callers.append(caller())
        done.set()

    _thread.start_new_thread(kernel, ())  # as on the autograd engine's threads
    assert done.wait(5)
    assert callers == [None]


@pytest.mark.cuda
def test_on_cudas_dispatch_code_without_a_gpu() -> None:
    python = os.environ.get("EVALGUARD_CUDA_PYTHON") or sys.executable
    build = subprocess.run(
        [python, "-c", "import torch; print(torch.version.cuda)"],
        capture_output=True,
        text=True,
    )
    if build.stdout.strip() in ("", "None"):
        pytest.skip("no CUDA build of torch: name its python in EVALGUARD_CUDA_PYTHON")
    if not list(Path("/usr/local").glob("cuda*/include/cuda_runtime_api.h")):
        pytest.skip("no CUDA headers on this machine")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU: the tests marked gpu have run on it")
    root = Path(__file__).parents[2]
    tests = [
        python,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-m",
        "gpu",
        __file__,
    ]
    ran = subprocess.run(
        ["bash", str(RIG), *tests],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "7 passed" in ran.stdout


@pytest.mark.skipif(not SUPPORTED, reason="torch is too old to be listened to")
def test_a_number_that_a_graph_saved_can_be_read_while_it_is_listened() -> None:
    product = torch.ones(3, requires_grad=True) * 2
    node: Any = product.grad_fn
    watch = WaitWatch("cpu", lambda op, frame, seconds: None)
    watch.open([])
    try:
        assert node._saved_other.item() == 2
        assert float(node._saved_other) == 2.0
    finally:
        watch.stop()
