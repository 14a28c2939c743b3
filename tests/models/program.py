"""What a program of the zoo is: a tiny LightningModule, and what a guard must say of it."""

from __future__ import annotations

import ast
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

MARK = "# <- here"
SAMPLES, BATCH, FEATURES, CLASSES = 16, 8, 8, 3


@dataclass
class Program:
    """One way in which an evaluation lies.

    Attributes:
        module: The LightningModule that does it; what is wrong stands in its docstring, and the
            culprit's line ends in ``# <- here``.
        check: Name of the check that finds it.
        subject: Qualified name of the module or tensor that the finding names; None: no matter.
        certain: False for a suspicion.
        entry: Trainer's method that shows it.
        stage: Stage of the first evaluation that shows it.
        inside: Whether the culprit's line runs within the evaluation, in a step or a hook. Where it
            is the loop that does it, a finding may come without a line, but not with another one.
        needs_sanity: Whether it goes wrong only if an evaluation comes before training.
        also: Other checks that are right to speak too.
        guard: Keywords of `EvalGuard` that this program needs.
        trainer: Keywords of the Trainer that this program needs.
        near_misses: Honest ways of writing the same thing.
        marked: The class that holds the marked line, where the module does not.
    """

    module: type[Classifier]
    check: str
    subject: str | None
    certain: bool = True
    entry: str = "fit"
    stage: str = "sanity_check"
    inside: bool = True
    needs_sanity: bool = False
    also: frozenset[str] = frozenset()
    guard: dict[str, Any] = field(default_factory=dict)
    trainer: dict[str, Any] = field(default_factory=dict)
    near_misses: list[type[Classifier]] = field(default_factory=list)
    marked: type[Any] | None = None

    @property
    def sanity(self) -> bool:
        """Whether the sanity check shows it, and the first validation without one does too."""
        return self.stage == "sanity_check" and not self.needs_sanity

    @functools.cached_property
    def location(self) -> str:
        """``file:line`` of the marked line."""
        holder = self.marked or self.module
        path = inspect.getsourcefile(holder)
        first, last, lines = _classes(str(path))[holder.__qualname__]
        marked = [
            number
            for number in range(first, last + 1)
            if lines[number - 1].rstrip().endswith(MARK)
        ]
        if len(marked) != 1:
            raise ValueError(
                f"{self.module.__name__}: {len(marked)} lines marked, expected 1"
            )
        return f"{inspect.getsourcefile(self.module)}:{marked[0]}"


@functools.cache
def _classes(path: str) -> dict[str, tuple[int, int, list[str]]]:
    """By its qualified name, each class's first and last line, and the lines of its file."""
    text = Path(path).read_text(encoding="utf-8")
    lines, spans = text.splitlines(), {}

    def look(node: ast.AST, inside: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef):
                name = inside + child.name
                spans[name] = child.lineno, child.end_lineno or child.lineno, lines
                look(child, f"{name}.")
            elif isinstance(child, ast.FunctionDef):
                look(child, f"{inside}{child.name}.<locals>.")
            elif isinstance(child, ast.stmt):
                look(child, inside)

    look(ast.parse(text), "")
    return spans


PROGRAMS: list[Program] = []
M = TypeVar("M", bound="type[Classifier]")


def bug(
    check: str, subject: str | None = "", *, also: tuple[str, ...] = (), **expected: Any
) -> Callable[[M], M]:
    """Add a program to the zoo; the keywords are `Program`'s."""

    def add(module: M) -> M:
        PROGRAMS.append(
            Program(module, check, subject, also=frozenset(also), **expected)
        )
        return module

    return add


def near_miss(module: M) -> M:
    """The honest way of writing the bug that stands above."""
    PROGRAMS[-1].near_misses.append(module)
    return module


def samples(seed: int = 0) -> TensorDataset:
    made = torch.Generator().manual_seed(seed)
    x = torch.randn(SAMPLES, FEATURES, generator=made, dtype=torch.float32)
    return TensorDataset(x, torch.randint(CLASSES, (SAMPLES,), generator=made))


class Classifier(pl.LightningModule):
    """An honest linear classifier that brings its own data; programs override a piece of it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        return F.cross_entropy(self(x), y)

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        logits = self(x)
        self.log("val_loss", F.cross_entropy(logits, y))
        return {"preds": logits}

    def test_step(self, batch: Any, batch_idx: int) -> Any:
        return self.validation_step(batch, batch_idx)

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return self(batch[0])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self) -> Any:
        return DataLoader(samples(1), batch_size=BATCH)

    def val_dataloader(self) -> Any:
        return DataLoader(samples(2), batch_size=BATCH)

    def test_dataloader(self) -> Any:
        return self.val_dataloader()

    def predict_dataloader(self) -> Any:
        return self.val_dataloader()
