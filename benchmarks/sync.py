"""What watching for syncs costs: whole fits with and without it, in pairs.

    python benchmarks/sync.py mlp 200 11     # model, steps, pairs
    python benchmarks/sync.py bert 60 3
    python benchmarks/sync.py bert 14 0  # one watched step alone
    python benchmarks/sync.py bert 60 7 gpu

Both fits of a pair see the same data and seeds; their weights are compared bit for bit. The ratio
is taken of wall time and of processor time, which other programs on the machine disturb less. The
last line is the cost of one watched step, from steps of one fit that are watched in turn.
"""

from __future__ import annotations

import gc
import inspect
import logging
import statistics
import sys
import time
import warnings
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_evalguard import EvalGuard

OFF = {"modes": "ignore", "grad": "ignore", "state": "ignore", "stochastic": "ignore"}
OFF |= {"batch": "ignore", "rng": "ignore", "data": "ignore", "metrics": None, "audit": "off"}


class Mlp(pl.LightningModule):
    """Three small layers: the step is bound by launching its operators."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 1e-3)


class Bert(Mlp):
    """Twelve layers of width 768, four sequences of 32 tokens."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(768, 12, 3072, batch_first=True)
        self.embed = nn.Linear(32, 32 * 768)
        self.encoder = nn.TransformerEncoder(layer, 12)
        self.head = nn.Linear(768, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(x).view(-1, 32, 768)).mean(1))


class Clock(pl.Callback):
    """Processor time from each batch start to the next."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def on_train_batch_start(self, *_: Any) -> None:
        self.at.append(time.process_time())


def fit(
    model: type[Mlp], steps: int, accelerator: str, *callbacks: pl.Callback
) -> tuple[float, float, list[Tensor]]:
    gc.collect()  # a Trainer and its module hold each other
    torch.manual_seed(0)
    size = 4 if model is Bert else 8
    data = TensorDataset(torch.randn(steps * size, 32), torch.randint(0, 10, (steps * size,)))
    module = model()
    trainer = pl.Trainer(
        accelerator=accelerator, max_epochs=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=list(callbacks),
    )  # fmt: skip
    wall, cpu = time.perf_counter(), time.process_time()
    trainer.fit(module, DataLoader(data, batch_size=size))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return wall, cpu, [p.detach() for p in module.parameters()]


def guard(**kwargs: Any) -> EvalGuard:
    takes = inspect.signature(EvalGuard).parameters
    return EvalGuard(**{k: v for k, v in OFF.items() if k in takes}, **kwargs)


def main(
    name: str = "mlp", steps: str = "200", pairs: str = "11", accelerator: str = "cpu"
) -> None:
    warnings.simplefilter("ignore")
    for logger in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    torch.set_num_threads(1)
    torch.backends.cuda.enable_flash_sdp(False)  # whose backward pass is not the same twice
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    model, n = {"mlp": Mlp, "bert": Bert}[name], int(steps)
    fit(model, 3, accelerator, guard(sync="ignore"))
    fit(model, 3, accelerator, guard())
    ratios = []
    for k in range(int(pairs)):
        order = [guard(sync="ignore"), guard()]
        runs = [fit(model, n, accelerator, g) for g in (order if k % 2 else order[::-1])]
        bare, watched = runs if k % 2 else runs[::-1]
        assert all(torch.equal(a, b) for a, b in zip(bare[2], watched[2], strict=True))
        ratios.append((watched[0] / bare[0], watched[1] / bare[1]))
    for what, values in zip(("wall", "processor"), zip(*ratios, strict=True), strict=False):
        spread = f"{min(values):.3f} to {max(values):.3f}"
        print(f"{name}: {what} time, median ratio {statistics.median(values):.3f} ({spread})")
    clock = Clock()
    windows = guard(sync_steps=(n // 2, 10**9))
    fit(model, n, accelerator, clock, windows)
    took = [b - a for a, b in zip(clock.at, clock.at[1:])]  # noqa: B905
    inside, outside = took[2 : n // 2 - 1], took[n // 2 + 1 :]
    print(
        f"{name}: a watched step costs {statistics.median(inside) / statistics.median(outside):.2f}"
        f" times a step that is not, {1e3 * statistics.median(inside):.2f} ms"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
