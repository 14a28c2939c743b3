"""A training script with a breach on rank 1 alone, as Lightning's launchers start it.

Run as ``python ranks_launched.py STRATEGY BATCH FOLDER [catch]``: each rank writes what it raised,
and how long after the breach.
"""

from __future__ import annotations

import logging
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader

from lightning_evalguard import EvalGuard, EvalGuardError
from ranks_in_trainer import Net, data, wake

strategy, batch, folder, *catch = sys.argv[1:]


def breach(net: Net) -> None:
    wake(net)
    Path(folder, "breach").write_text(str(time.time()))


class Told(pl.Callback):
    """Writes what ends the run on this rank, also where a launcher keeps the exception."""

    def __init__(self, guard: EvalGuard) -> None:
        self.guard = guard

    def setup(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str
    ) -> None:
        loop = trainer.validate_loop
        run = loop.run

        def told() -> Any:
            try:
                return run()
            except EvalGuardError as error:
                since = time.time() - float(Path(folder, "breach").read_text())
                Path(folder, f"{trainer.global_rank}.txt").write_text(
                    f"{since}\n{error}"
                )
                raise

        loop.run = told  # type: ignore[method-assign]


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    guard = EvalGuard()
    trainer = pl.Trainer(
        accelerator="cpu", devices=2, strategy=strategy, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[guard, Told(guard)],
    )  # fmt: skip
    net = Net("validation_step", int(batch), breach)
    try:
        trainer.validate(net, DataLoader(data(), 4), verbose=False)
    except Exception as error:
        if not catch:
            raise
        Path(folder, f"caught{trainer.global_rank}").write_text(type(error).__name__)
        time.sleep(3)  # alive


if __name__ == "__main__":
    main()
