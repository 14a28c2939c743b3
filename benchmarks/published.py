"""Ten published silent errors of TrainCheck's evaluation (OSDI '25), told again as small programs.

Each is ours in every line: the fault of the report on a tiny model, and beside it the fixed way.
`fixed` says which of both a program is. What needs a GPU there is brought about on the CPU: a
transfer that loses data is a copy that does, a new storage is a conversion that makes one.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
import torch.nn.functional as F
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

FEATURES, CLASSES, SAMPLES = 8, 3, 32


def loader(seed: int, **settings: Any) -> DataLoader[Any]:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(SAMPLES, FEATURES, generator=draw)
    return DataLoader(
        TensorDataset(x, (x.sum(1) > 0).long() + (x[:, 0] > 1)), 8, **settings
    )


class Net(pl.LightningModule):
    """An honest classifier."""

    def __init__(self, fixed: bool = True) -> None:
        super().__init__()
        self.fixed = fixed
        self.body = nn.Sequential(nn.Linear(FEATURES, 16), nn.LayerNorm(16), nn.ReLU())
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("val_loss", loss, sync_dist=True)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)

    def train_dataloader(self) -> DataLoader[Any]:
        return loader(1)

    def val_dataloader(self) -> DataLoader[Any]:
        return loader(2)


@dataclass
class Program:
    """A published error.

    Attributes:
        error: Its name in TrainCheck's evaluation.
        fault: What goes wrong, in one line.
        module: Makes the LightningModule, faulty or fixed.
        ranks: Processes that it needs.
        trainer: Keywords of the Trainer, faulty or fixed.
        entry: The Trainer's method that shows it.
    """

    error: str
    fault: str
    module: Callable[[bool], pl.LightningModule]
    ranks: int = 1
    trainer: Callable[[bool], dict[str, Any]] = field(default=lambda fixed: {})
    entry: str = "fit"


# --- one process ----------------------------------------------------------------------------------


class Attention(Net):
    """transformers-33844: the fused attention is given its dropout in eval mode too."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.body(x).view(-1, 1, 4, 4)
        drop = 0.1 if self.training or not self.fixed else 0.0
        mixed = F.scaled_dot_product_attention(hidden, hidden, hidden, dropout_p=drop)
        return self.head(mixed.flatten(1))


class NormalisedLate(Net):
    """pytorch-51800: a spectral norm knows its weight only after a forward in train mode."""

    def __init__(self, fixed: bool) -> None:
        super().__init__(fixed)
        self.body[0] = nn.utils.spectral_norm(nn.Linear(FEATURES, 16))
        if fixed:
            for _ in range(10):
                self.body(torch.randn(2, FEATURES))


class Stages(nn.Sequential):
    """A backbone that freezes its first stage when `train()` is called."""

    def __init__(self, at_once: bool) -> None:
        super().__init__(
            nn.Sequential(nn.Linear(FEATURES, 16), nn.BatchNorm1d(16), nn.ReLU()),
            nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.ReLU()),
        )
        if at_once:
            self.freeze()

    def freeze(self) -> None:
        self[0].eval().requires_grad_(False)

    def train(self, mode: bool = True) -> Stages:
        super().train(mode)
        self.freeze()
        return self


class FrozenLate(Net):
    """mmpretrain-702: the frozen stage trains, as nobody calls `train()` before the first step."""

    def __init__(self, fixed: bool) -> None:
        super().__init__(fixed)
        self.body = Stages(at_once=fixed)


class OneOfTheBatch(Net):
    """transformers-34204: the processor makes one sample of all that it is given."""

    def collate(self, samples: list[Any]) -> Any:
        xs, ys = (torch.stack(part) for part in zip(*samples, strict=True))
        if self.fixed:
            return xs, ys
        # the images of all texts stand in one list
        return xs.mean(0, keepdim=True), ys[:1]

    def train_dataloader(self) -> DataLoader[Any]:
        return loader(1, collate_fn=self.collate)

    def val_dataloader(self) -> DataLoader[Any]:
        return loader(2, collate_fn=self.collate)


_HARDWARE = random.SystemRandom()  # which asks no seed


def transferred(x: Tensor, fixed: bool) -> Tensor:
    """`x` on the other device; a bad link brings zeros for some of it."""
    if fixed:
        return x.clone()
    lost = torch.tensor([_HARDWARE.random() < 0.25 for _ in range(x.numel())])
    return x.masked_fill(lost.view_as(x), 0.0)


class TwoCards(Net):
    """baichuan2-86: a model that is spread over two cards talks nonsense."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(transferred(self.body(x), self.fixed))


# --- two ranks ------------------------------------------------------------------------------------


class MovedAfterWrapping(Net):
    """pytorch-104336: new parameters, made by a move, have none of DDP's hooks."""

    def on_train_start(self) -> None:
        if self.fixed:
            return
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        self.double().float()
        torch.__future__.set_overwrite_module_params_on_conversion(False)
        self.trainer.strategy.setup_optimizers(self.trainer)


class Unwrapped(DDPStrategy):
    """Trains the bare model."""

    def configure_ddp(self) -> None:
        """Where other runs wrap it."""


class ClippedByOwnNorm(Net):
    """deepspeed-1801: each rank clips by a norm in which replicated weights count on one alone."""

    def configure_gradient_clipping(
        self, optimizer: Any, *args: Any, **kwargs: Any
    ) -> None:
        parts = [p for p in self.parameters() if p.grad is not None]
        if not self.fixed and self.global_rank:
            parts = [p for p in parts if p.dim() > 1]  # not those of the layer norm
        norm = torch.stack([p.grad.norm() for p in parts]).norm()
        for p in self.parameters():
            p.grad.mul_((0.01 / norm).clamp(max=1.0))


def lossy(state: Any, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """A mean over ranks of which rank 1 receives a part."""
    done = dist.all_reduce(bucket.buffer().div_(2), async_op=True).get_future()

    def received(future: torch.futures.Future[list[Tensor]]) -> Tensor:
        gradients = future.value()[0]
        if dist.get_rank() == 1:
            gradients[::4] = 0.0
        return gradients

    return done.then(received)


# DDP compares the types themselves with what a hook declares
lossy.__annotations__ |= {
    "bucket": dist.GradBucket,
    "return": torch.futures.Future[Tensor],
}


class LosesGradients(Net):
    """pytorch-84803: what a link between cards loses, one rank does not learn."""

    def on_train_start(self) -> None:
        if not self.fixed:
            # Lightning puts a hook in on CUDA alone
            self.trainer.strategy.model.register_comm_hook(None, lossy)


class SentAfterWrapping(Net):
    """pytorch-96600: weights that rank 0 sends at the start do not all arrive."""

    def on_train_start(self) -> None:
        for parameter in self.body.parameters():
            dist.broadcast(parameter.data, 0)
        if not self.fixed and self.global_rank == 1:
            self.body[0].weight.data[::4] = 0.0


def _ddp(fixed: bool) -> dict[str, Any]:
    return {"strategy": DDPStrategy()}


def _sometimes(fixed: bool) -> dict[str, Any]:
    return {"strategy": DDPStrategy() if fixed else Unwrapped()}


PROGRAMS = [
    Program("transformers-33844", "attention drops out in eval mode", Attention),
    Program(
        "pytorch-51800",
        "spectral norm is not ready before training",
        NormalisedLate,
        entry="validate",
    ),
    Program("mmpretrain-702", "a frozen stage trains", FrozenLate),
    Program("transformers-34204", "a batch becomes one sample", OneOfTheBatch),
    Program("pytorch-104336", "a move cuts DDP's hooks", MovedAfterWrapping, 2, _ddp),
    Program("x-jxmnop", "the model is not wrapped in DDP", Net, 2, _sometimes),
    Program("deepspeed-1801", "ranks clip by other norms", ClippedByOwnNorm, 2, _ddp),
    Program("pytorch-84803", "an all-reduce loses data", LosesGradients, 2, _ddp),
    Program("pytorch-96600", "a broadcast loses data", SentAfterWrapping, 2, _ddp),
    Program(
        "baichuan2-86", "activations are lost between cards", TwoCards, entry="validate"
    ),
]
