"""The sync check: each idiom found at its line with its count, each near-miss silent."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import sync_idioms as table
import torch
import torch.nn.functional as F
import torchmetrics
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lightning_evalguard import EvalGuard, EvalGuardError, EvalGuardWarning, allow
from lightning_evalguard._waits import SUPPORTED, Watch
from lightning_evalguard.checks.sync import Sync, SyncCheck

pytestmark = pytest.mark.skipif(not SUPPORTED, reason="torch >= 2.9 has get_kernel")

RIG = Path(__file__).parent / "rigs" / "cuda_without_gpu" / "run"


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

    def train_dataloader(self) -> DataLoader[Any]:
        n = 8 * self.batches
        draw = torch.Generator().manual_seed(0)
        data = TensorDataset(torch.randn(n, 4, generator=draw), torch.arange(n) % 4)
        return DataLoader(data, batch_size=8)

    val_dataloader = train_dataloader


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
    batches = 2

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
PLACES = ("training_step", "validation_step", "test_step", "on_before_optimizer_step", "callback")


def plant(folder: Path, idioms: list[str], quiet: str = "") -> tuple[Any, dict[int, str]]:
    """A module whose hooks run the idioms: itself, and line number -> ``place: idiom``."""
    text = HOOKS.format(quiet=quiet)
    for place in PLACES:
        body = table.program(idioms, "        " if place != "callback" else "            ")
        if place == "callback":
            text += "\n\nclass Elsewhere(pl.Callback):\n"
            text += (
                "    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):\n"
            )
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
    waits = {s: table.ON_CPU.get(s, n) for s, n, _ in table.WAITS if s not in table.SYNCHRONIZE}
    module, where = plant(tmp_path, [*waits, *table.FREE])
    guard = watch(fit, module.Planted(), module.Elsewhere())
    tested = EvalGuard(metrics=None, audit="off", sync_steps=(0, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EvalGuardWarning)
        trainer(callbacks=[tested]).test(module.Planted(), verbose=False)  # inference mode
    found = heard(guard, where) | heard(tested, where)
    expected = {f"{p}: {s}": float(n) for p in PLACES for s, n in waits.items() if n}
    assert sorted(found.items() - expected.items()) == []  # precision
    assert sorted(expected.items() - found.items()) == []  # recall
    assert {f.location for f in guard.report.findings if f.check == "sync"} == {
        s.location for s in guard.report.syncs if s.owner == "user"
    }
