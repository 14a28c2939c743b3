"""Honest programs as people write them: what a default guard must leave alone, bit for bit."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_evalguard import EvalGuard

PROGRAMS: dict[str, Callable[[Path], Program]] = {}

_MADE = torch.Generator().manual_seed(3)
TRAIN = TensorDataset(
    torch.randn(24, 8, generator=_MADE), torch.randint(0, 3, (24,), generator=_MADE)
)
VAL = TensorDataset(
    torch.randn(18, 8, generator=_MADE), torch.randint(0, 3, (18,), generator=_MADE)
)


class Honest(pl.LightningModule):
    """A body that knows its mode, and a head."""

    def __init__(self, body: nn.Module | None = None) -> None:
        super().__init__()
        self.body = body or nn.Sequential(
            nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.2)
        )
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


@dataclass
class Program:
    """What is run: a module, its loaders, other callbacks, and what the trainer is given."""

    module: pl.LightningModule
    train: Any = None
    val: Any = None
    callbacks: list[Any] = field(default_factory=list)
    trainer: dict[str, Any] = field(default_factory=dict)
    then: Callable[[pl.Trainer, pl.LightningModule], Any] | None = None


def honest(make: Callable[[Path], Program | pl.LightningModule]) -> Any:
    """Register ``fn(folder) -> Program | LightningModule``."""

    def made(folder: Path) -> Program:
        program = make(folder)
        return program if isinstance(program, Program) else Program(program)

    assert make.__name__ not in PROGRAMS
    PROGRAMS[make.__name__] = made
    return make


class Values(pl.Callback):
    """Keeps what was logged at the end of each evaluation."""

    def __init__(self) -> None:
        self.values: list[dict[str, Tensor]] = []

    def on_validation_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> None:
        self.values.append({k: v.clone() for k, v in trainer.callback_metrics.items()})

    on_test_end = on_validation_end


def _once(
    make: Callable[[Path], Program], folder: Path, guard: EvalGuard | None
) -> dict[str, Any]:
    """Everything that a run leaves."""
    folder.mkdir(parents=True, exist_ok=True)
    pl.seed_everything(0, verbose=False)
    program = make(folder)
    values = Values()
    trainer = pl.Trainer(**{
        "max_epochs": 2, "accelerator": "cpu", "logger": False, "default_root_dir": folder,
        "enable_checkpointing": False, "enable_progress_bar": False,
        "enable_model_summary": False,
        "callbacks": [*program.callbacks, values, *([guard] if guard else [])], **program.trainer,
    })  # fmt: skip
    train = program.train if program.train is not None else DataLoader(TRAIN, 4)
    val = program.val if program.val is not None else DataLoader(VAL, 4)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        trainer.fit(program.module, train, val)
        more = program.then(trainer, program.module) if program.then else None
    said = [str(w.message) for w in heard if "EvalGuard" in w.category.__name__]
    return {
        "said": said,
        "values": values.values,
        "weights": {k: v.clone() for k, v in program.module.state_dict().items()},
        "modes": [m.training for m in program.module.modules()],
        "more": more,
        "generators": (
            torch.random.get_rng_state(),
            random.random(),
            np.random.random(),
        ),
        "files": {path.name: path.read_bytes() for path in folder.rglob("*.txt")},
    }


def disturbances(make: Callable[[Path], Program], folder: Path) -> list[str]:
    """What a default guard does to a program, or says of it, and should not."""
    bare = _once(make, folder / "bare", None)
    assert bare.pop("said") == []
    guard = EvalGuard(sync="ignore", record=None)
    guarded = _once(make, folder / "guarded", guard)
    wrong = guarded.pop("said")
    wrong += [f"found: {f}" for f in guard.report.findings if not wrong]
    for name, before in bare.items():
        if not _same(before, guarded[name]):
            wrong.append(
                f"changed {name}: {str(before)[:200]} -> {str(guarded[name])[:200]}"
            )
    return wrong


def _same(a: Any, b: Any) -> bool:
    """Whether `b` is `a`, but for keys that a guard logs besides."""
    if isinstance(a, Tensor):
        return a.shape == b.shape and torch.equal(a.nan_to_num(), b.nan_to_num())
    if isinstance(a, dict):
        return all(key in b and _same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b)
