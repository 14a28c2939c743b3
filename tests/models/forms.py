"""What a form of a validation step must give, and what a bare guard made of it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from lightning_evalguard import EvalGuard

FORMS: dict[str, Form] = {}


@dataclass
class Form:
    """One way to write a step, with what it must give.

    Attributes:
        step: Called with the module and the items of the batch, or the batch that is no tuple.
        must: ``equal``: the matrix is the noted truth's; ``reported``: there is none, and a warning
            says so; ``none``: there is none, and nothing is said.
        says: What a finding or warning must say; nothing else may be said.
        notes: What a note of the report must say.
    """

    step: Callable[..., Any]
    must: str = "equal"
    says: str = ""
    notes: str = ""
    n: int = 11
    batch: int = 4
    classes: int = 3
    row: Callable[[int, torch.Generator], Any] | None = None
    collate: Any = None
    build: Callable[[Any], None] | None = None
    epochs: int = 1
    loaders: int = 1
    key: str = "val"
    keywords: dict[str, Any] = field(default_factory=dict)


def form(
    must: str = "equal", **how: Any
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register ``fn(self, *batch) -> what validation_step returns``.

    A step notes its truth with ``self.true(preds, target)``: labels of any shape, or booleans for
    answers of yes or no.
    """

    def add(step: Callable[..., Any]) -> Callable[..., Any]:
        assert step.__name__ not in FORMS, step.__name__
        FORMS[step.__name__] = Form(step, must, **how)
        return step

    return add


class Rows(Dataset[Any]):
    """Samples that a seed makes."""

    def __init__(
        self, n: int, seed: int, row: Callable[[int, torch.Generator], Any]
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.rows = [row(i, generator) for i in range(n)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.rows[index]


class Stepping(pl.LightningModule):
    """Runs a form's step."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.net = nn.Linear(6, form.classes)
        self.step = form.step
        self.truths: list[tuple[Tensor, Tensor]] = []
        self.dataloader_idx = 0
        if form.build:
            form.build(self)

    def true(self, preds: Tensor, target: Tensor) -> None:
        """Note what this step answers, and what is right."""
        if (
            not self.trainer.sanity_checking
            and self.current_epoch == self.trainer.max_epochs - 1
        ):
            self.truths.append((preds.detach().clone(), target.detach().clone()))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.net(torch.zeros(2, 6)).sum() * 0

    def validation_step(
        self, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> Any:
        self.dataloader_idx = dataloader_idx
        items = batch if isinstance(batch, (list, tuple)) else (batch,)
        return self.step(self, *items)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


def _scores(i: int, generator: torch.Generator, classes: int) -> Any:
    target = (
        int(torch.randint(0, classes, (), generator=generator)) if classes > 1 else 0
    )
    return torch.randn(6, generator=generator) * 3, target


@dataclass
class Outcome:
    """What a guarded run of a form gave."""

    guard: EvalGuard
    module: Stepping
    logged: dict[str, Tensor]
    said: list[str]


def run(form: Form, guarded: bool) -> Outcome:
    """One fit of a form's module."""
    row = form.row or (lambda i, g: _scores(i, g, form.classes))
    torch.manual_seed(1)
    module = Stepping(form)
    guard = EvalGuard(data="ignore", sync="ignore", record=None, **form.keywords)
    trainer = pl.Trainer(
        max_epochs=form.epochs, limit_train_batches=1, accelerator="cpu", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[guard] if guarded else [],
    )  # fmt: skip
    train, *sets = (Rows(form.n, 7 + i, row) for i in range(1 + form.loaders))
    loaders = [DataLoader(rows, form.batch, collate_fn=form.collate) for rows in sets]
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        trainer.fit(
            module,
            DataLoader(train, form.batch, collate_fn=form.collate),
            loaders if len(loaders) > 1 else loaders[0],
        )
    said = [str(w.message) for w in heard if "EvalGuard" in type(w.message).__name__]
    logged = {key: value.clone() for key, value in trainer.callback_metrics.items()}
    return Outcome(guard, module, logged, said)


def problems(form: Form) -> list[str]:
    """What a bare guard makes of a form, and should not."""
    bare, outcome = run(form, guarded=False), run(form, guarded=True)
    changed = [
        key
        for key, value in bare.logged.items()
        if not torch.equal(value.nan_to_num(), outcome.logged[key].nan_to_num())
    ]
    wrong = [f"{', '.join(changed)} changed"] if changed else []
    wrong += _wrong_matrix(form, outcome)
    said = outcome.said
    texts = [
        f"warned: {text[:300]}"
        for text in said
        if not form.says or form.says not in text
    ]
    if form.must == "reported":
        texts = [text for text in texts if "no confusion matrix" not in text]
    wrong += texts
    if form.says and not any(form.says in text for text in said):
        wrong.append(f"nothing said {form.says!r}")
    notes = [note for note in outcome.guard.report.notes if note.startswith("val")]
    if form.notes and not any(form.notes in note for note in notes):
        wrong.append(f"no note said {form.notes!r}: {notes}")
    return wrong


def _wrong_matrix(form: Form, outcome: Outcome) -> list[str]:
    result = outcome.guard.report.confusion.get(form.key)
    notes = [n for n in outcome.guard.report.notes if n.startswith("val")]
    if form.must == "none":
        return [f"counted {result.matrix} {notes}"] if result is not None else []
    if form.must == "reported":
        if result is not None:
            return [f"counted {result.matrix}, {notes}"]
        said = any("no confusion matrix" in text for text in outcome.said)
        return [] if said else [f"not reported: {notes}"]
    if result is None:
        return [f"no matrix: {notes}"]
    want = expected(form, outcome.module.truths)
    got = result.matrix
    assert got is not None
    if want.shape == got.shape and torch.equal(want, got.long()):
        return []
    return [f"counted {got.tolist()}, expected {want.tolist()}; {notes}"]


def expected(form: Form, truths: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The matrix of what a form's steps noted: ``(C, C)``, or ``(L, 2, 2)`` of many answers."""
    if truths[0][0].dtype == torch.bool and truths[0][0].ndim == 2:
        preds = torch.cat([p for p, _ in truths]).T.long()
        target = torch.cat([t for _, t in truths]).T.long()
        return torch.stack(
            [_matrix(p, t, 2) for p, t in zip(preds, target, strict=True)]
        )
    preds = torch.cat([p.reshape(-1).long() for p, _ in truths])
    target = torch.cat([t.reshape(-1).long() for _, t in truths])
    return _matrix(preds, target, max(form.classes, 2))


def _matrix(preds: Tensor, target: Tensor, size: int) -> Tensor:
    kept = (target >= 0) & (target < size)
    flat = target[kept] * size + preds[kept]
    return torch.bincount(flat, minlength=size * size).reshape(size, size)


def mean_accuracy(preds: Tensor, target: Tensor) -> Tensor:
    """Of one batch."""
    return (preds == target).float().mean()


__all__ = ["FORMS", "F", "Form", "form", "mean_accuracy", "problems"]
