"""A step that takes from its batch, or adds to it, is run again on what it was given."""

from __future__ import annotations

from collections import UserDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_evalguard import EvalGuard, evaluating
from lightning_evalguard.instruments.given import Given


@dataclass
class Batch:
    """A batch with fields that a step may set."""

    x: Tensor
    y: Tensor | None
    extra: list[Any] = field(default_factory=list)


class Encoding(UserDict[str, Any]):
    """As tokenizers return them."""


class Slots:
    """A batch without a ``__dict__``."""

    __slots__ = ("x", "y")

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y


def _popped(batch: Any) -> tuple[Tensor, Tensor]:
    y = batch.pop("y")
    return batch["x"], y


def _deleted(batch: Any) -> tuple[Tensor, Tensor]:
    x, y = batch["x"], batch["y"]
    del batch["y"], batch["x"]
    return x, y


def _updated(batch: Any) -> tuple[Tensor, Tensor]:
    assert "hidden" not in batch
    batch.update(hidden=batch["x"] * 2, x=None)
    return batch["hidden"] / 2, batch["y"]


def _popped_from_a_list(batch: Any) -> tuple[Tensor, Tensor]:
    y = batch.pop()
    return batch.pop(), y


def _appended(batch: Any) -> tuple[Tensor, Tensor]:
    assert len(batch) == 2
    batch.append(batch[0].sum())
    return batch[0], batch[1]


def _assigned(batch: Any) -> tuple[Tensor, Tensor]:
    assert not batch.extra
    x, y = batch.x, batch.y
    batch.y = None
    batch.extra.append(x.mean())
    return x, y


def _unslotted(batch: Any) -> tuple[Tensor, Tensor]:
    y = batch.y
    del batch.y
    return batch.x, y


def _from_within(batch: Any) -> tuple[Tensor, Tensor]:
    inner = batch["inputs"].pop("x")
    return inner, batch["labels"].popleft()


FORMS: dict[
    str, tuple[Callable[[Any], Any], Callable[[Any], tuple[Tensor, Tensor]]]
] = {
    "popped": (lambda b: {"x": b[0], "y": b[1]}, _popped),
    "deleted": (lambda b: {"x": b[0], "y": b[1]}, _deleted),
    "updated": (lambda b: {"x": b[0], "y": b[1]}, _updated),
    "popped from a list": (list, _popped_from_a_list),
    "appended": (list, _appended),
    "assigned": (lambda b: Batch(*b), _assigned),
    "unslotted": (lambda b: Slots(*b), _unslotted),
    "popped from an encoding": (lambda b: Encoding(x=b[0], y=b[1]), _popped),
    "from within": (
        lambda b: {"inputs": {"x": b[0]}, "labels": deque([b[1]])},
        _from_within,
    ),
}


class Taking(pl.LightningModule):
    """Takes its samples out of its batch; `mixes` centres them by the batch."""

    def __init__(
        self, take: Callable[[Any], tuple[Tensor, Tensor]], mixes: bool
    ) -> None:
        super().__init__()
        self.net = nn.Linear(4, 3)
        self.take, self.mixes = take, mixes
        self.left: list[str] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x - x.mean(0) if self.mixes else x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = self.take(batch)
        return F.cross_entropy(self(x), y)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = self.take(batch)
        self.log("val_loss", F.cross_entropy(self(x), y), batch_size=len(x))

    def on_validation_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        held = batch if isinstance(batch, (list, dict, UserDict)) else None
        self.left.append(
            str(held) if held is not None else str(getattr(batch, "y", "gone"))
        )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def _fitted(name: str, mixes: bool, guarded: bool = True) -> tuple[EvalGuard, Taking]:
    make, take = FORMS[name]
    made = torch.Generator().manual_seed(0)
    rows = TensorDataset(torch.randn(16, 4, generator=made), torch.arange(16) % 3)

    def collate(samples: list[tuple[Tensor, Tensor]]) -> Any:
        x, y = zip(*samples, strict=True)
        return make((torch.stack(x), torch.stack(y)))

    torch.manual_seed(1)
    module = Taking(take, mixes)
    guard = EvalGuard(batch="warn", data="ignore", sync="ignore", record=None)
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
        callbacks=[guard] if guarded else [],
    )  # fmt: skip
    loaders = [DataLoader(rows, 4, collate_fn=collate) for _ in range(2)]
    trainer.fit(module, *loaders)
    return guard, module


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FORMS)
def test_a_step_that_takes_from_its_batch_is_run_again(name: str) -> None:
    guard, module = _fitted(name, mixes=True)
    assert [f.check for f in guard.report.findings] == ["batch"]
    assert not [
        note
        for note in guard.report.notes
        if "not run" in note or "does not run" in note
    ]
    _, bare = _fitted(name, mixes=True, guarded=False)
    assert module.left == bare.left
    assert torch.equal(module.net.weight, bare.net.weight)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FORMS)
def test_an_honest_step_that_takes_from_its_batch_is_silent(name: str) -> None:
    guard, _ = _fitted(name, mixes=False)
    assert guard.report.findings == []
    assert guard.report.checked["replayed_steps"] == 1
    assert not [
        note
        for note in guard.report.notes
        if "not run" in note or "does not run" in note
    ]


def test_a_step_whose_containers_stay_is_known_as_such() -> None:
    batch = {"x": torch.ones(2), "more": [torch.zeros(2)]}
    given = Given((batch, 0))
    batch["x"].add_(1)
    assert not given.is_changed
    batch["more"].append(torch.ones(1))
    assert given.is_changed
    with given.as_before():
        assert len(batch["more"]) == 1
        batch["more"].clear()
    assert len(batch["more"]) == 2


def test_a_model_that_pops_from_its_input_is_evaluated_in_a_block() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(4, 3)

        def forward(self, inputs: dict[str, Tensor]) -> Tensor:
            x = inputs.pop("x")
            return self.net(x - x.mean(0))

    model, inputs = Model(), {"x": torch.randn(8, 4)}
    with (
        pytest.warns(UserWarning, match="rest of the batch"),
        evaluating(model, audit="full", batch="warn"),
    ):
        model(inputs)
    assert inputs == {}
