"""The zoo of the tests as a list of cases: a program with a planted bug, and its honest twins."""

from __future__ import annotations

import inspect
import random
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from models import PROGRAMS, modes

Module = type[pl.LightningModule]


@dataclass
class Case:
    """One planted bug.

    Attributes:
        check: The kind of the bug: the check of the guard that is made for it.
        subject: Qualified name of the module or tensor that is to blame; "": no matter.
        location: ``file:line`` of the bug.
        twins: Honest ways of writing the same thing.
        data: Loaders that the Trainer is given; the others bring their own.
    """

    name: str
    check: str
    module: Module
    subject: str
    location: str
    twins: list[Module]
    entry: str = "fit"
    trainer: dict[str, Any] = field(default_factory=dict)
    guard: dict[str, Any] = field(default_factory=dict)
    data: Callable[[], tuple[Any, ...]] = tuple

    def run(self, module: pl.LightningModule, *callbacks: pl.Callback) -> None:
        """Run `module` as this case is run."""
        quiet = {"verbose": False} if self.entry in ("validate", "test") else {}
        with tempfile.TemporaryDirectory() as folder:
            settings: dict[str, Any] = {
                "accelerator": "cpu",
                "devices": 1,
                "max_epochs": 1,
                "logger": False,
                "enable_checkpointing": False,
                "enable_progress_bar": False,
                "enable_model_summary": False,
                "default_root_dir": folder,
            }
            trainer = pl.Trainer(callbacks=list(callbacks), **(settings | self.trainer))
            getattr(trainer, self.entry)(module, *self.data(), **quiet)

    def batch(self, module: pl.LightningModule, training: bool = False) -> Any:
        """The first batch that this case trains or evaluates on."""
        if given := self.data():
            loader = given[0 if training else 1]
        else:
            loader = module.train_dataloader() if training else module.val_dataloader()
        while isinstance(loader, (list, tuple, dict)):
            loader = next(iter(loader.values() if isinstance(loader, dict) else loader))
        return next(iter(loader))


def seed() -> None:
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)


def _mode_cases() -> list[Case]:
    """The programs whose modules are in the wrong mode; their twins are honest models."""
    honest = [module for module in modes.HONEST if module.allow is None]
    cases = []
    for module in (*modes.IN_EVALUATION, *modes.IN_TRAINING):
        twins = honest if not cases else honest[:1]
        cases.append(
            Case(
                name=module.__name__,
                check="modes",
                module=module,
                subject=module.subject,
                location=_marked(module),
                twins=list(twins),
                data=lambda: (modes.loader(seed=0), modes.loader(seed=1)),
            )
        )
    return cases


def _marked(module: type) -> str:
    """Where the line marked ``# <- here`` stands; "" where the fault has no line of its own."""
    for base in module.__mro__:
        if base.__module__ != module.__module__:
            continue
        lines, first = inspect.getsourcelines(base)
        for offset, line in enumerate(lines):
            if line.rstrip().endswith("# <- here"):
                return f"{modes.__file__}:{first + offset}"
    return ""


def cases() -> list[Case]:
    """Every bug of the zoo."""
    planted = _mode_cases()
    for program in PROGRAMS:
        planted.append(
            Case(
                name=program.module.__name__,
                check=program.check,
                module=program.module,
                subject=program.subject or "",
                location=program.location,
                twins=list(program.near_misses),
                entry=program.entry,
                trainer=program.trainer,
                guard=program.guard,
            )
        )
    return planted


def quiet() -> None:
    """No word of torch or Lightning that has nothing to do with the bugs."""
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*The number of training batches.*")
    for category in (DeprecationWarning, FutureWarning):
        warnings.filterwarnings("ignore", category=category)
    torch.set_num_threads(1)
