"""Each way of writing in a process of its own: how often is it written, and is there a hook?

Prints a line for each: its name, how often the steps wrote, how many steps there were, and whether
an audit hook was put in. With names after the folder, these alone, without the kernel's count.
"""

from __future__ import annotations

import io
import logging
import os
import pickle
import socket
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_evalguard import EvalGuard
from lightning_evalguard.instruments import effects

Write = Callable[[Path], None]
OPENS = partial(open, mode="a")
SENDERS: list[socket.socket] = []


def opened(path: Path) -> None:
    with open(path, "a") as file:
        file.write("x")


def held(path: Path) -> None:
    with OPENS(path) as file:
        file.write("x")


def mapped(path: Path) -> None:
    for file in map(open, [path], ["a"]):
        file.write("x")
        file.close()


def raw(path: Path) -> None:
    with io.FileIO(path, "a") as file:
        file.write(b"x")


def pickled(path: Path) -> None:
    """Native code opens the file and writes to it."""
    with io.FileIO(path, "a") as file:
        pickle.dump(None, file)


def by_path(path: Path) -> None:
    before = path.read_text() if path.exists() else ""
    path.write_text(before + "x")


def by_descriptor(path: Path) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(file, b"x")
    os.close(file)


def renamed(path: Path) -> None:
    made = path.parent / f"{len(list(path.parent.iterdir()))}.tmp"
    made.touch()
    os.rename(made, made.with_suffix(f".{len(list(path.parent.iterdir()))}"))
    opened(path)


def of_numpy(path: Path) -> None:
    before = path.stat().st_size if path.exists() else 0
    np.zeros(before + 1, np.uint8).tofile(path)


def sent(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
        one.sendto(b"x", str(path) + ".socket")


def sent_by_native_code(path: Path) -> None:
    """A partial calls the socket's method, of which no call of Python's tells."""
    partial(SENDERS[0].sendto, b"x")(str(path) + ".socket")


def nothing(path: Path) -> None:
    """An honest step."""


def shown(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("this line is read from its file", stacklevel=1)


WAYS: tuple[Write, ...] = (
    opened,
    held,
    mapped,
    raw,
    pickled,
    by_path,
    by_descriptor,
    renamed,
    of_numpy,
    sent,
    sent_by_native_code,
    nothing,
    shown,
)


class Writes(pl.LightningModule):
    def __init__(self, path: Path, write: Write) -> None:
        super().__init__()
        self.net, self.path, self.write = nn.Linear(4, 3), path, write
        self.steps = 0

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.write(self.path)
        self.log("loss", F.cross_entropy(self.net(batch[0]), batch[1]))

    def on_validation_batch_end(self, *args: Any) -> None:
        self.steps += 1

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def run(folder: Path, write: Write) -> None:
    path = folder / "written"
    receiver = None
    if write in (sent, sent_by_native_code):
        receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        receiver.bind(str(path) + ".socket")
        receiver.setblocking(False)
        SENDERS.append(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
    model = Writes(path, write)
    made = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.randn(16, 4, generator=made), torch.arange(16) % 3)
    trainer = pl.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[EvalGuard(record=None)],
    )
    trainer.fit(model, DataLoader(data, 8, shuffle=True), DataLoader(data, 8))
    written = path.stat().st_size if path.exists() else 0
    if write is pickled:
        written //= len(pickle.dumps(None))
    while receiver is not None:
        try:
            receiver.recv(8)
        except BlockingIOError:
            break
        written += 1
    row = f"{write.__name__} {written} {model.steps} {effects._installed}\n"
    os.write(1, row.encode())


def main(folder: Path, *names: str) -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    torch.set_num_threads(1)
    if names:  # as on a kernel that does not count writes
        effects._WRITE_CALLS = folder / "absent"
    for write in WAYS:
        if names and write.__name__ not in names:
            continue
        own = folder / write.__name__
        own.mkdir()
        child = os.fork()
        if not child:
            try:
                sys.stderr = open(os.devnull, "w")  # noqa: SIM115
                run(own, write)
            finally:
                os._exit(0)
        os.waitpid(child, 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
