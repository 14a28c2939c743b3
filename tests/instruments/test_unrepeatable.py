"""What cannot be undone is not run again: files and iterators end as in the bare run."""

from __future__ import annotations

import array
import hashlib
import io
import itertools
import os
import queue
import random
import sqlite3
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

from lightning_evalguard import EvalGuard

COUNTER = 0
NUMBERS: Iterator[int] = iter(())
RECORDS: dict[int, list[int]] = {}


def data() -> TensorDataset:
    made = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(16, 4, generator=made), torch.arange(16) % 3)


class Honest(pl.LightningModule):
    """A classifier whose step does something more; `state()` is what that leaves behind."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.net = nn.Linear(4, 3)
        self.folder = folder
        self.begin()

    def begin(self) -> None:
        """Make what the step needs."""

    def act(self, batch_idx: int) -> None:
        """What the step does besides."""

    def state(self) -> Any:
        """What it leaves behind."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.act(batch_idx)
        self.log("loss", F.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Iterates(Honest):
    """Takes from an iterator that it made by hand."""

    def on_validation_epoch_start(self) -> None:
        self.more = iter(DataLoader(data(), 2))

    def act(self, batch_idx: int) -> None:
        next(self.more)

    def state(self) -> Any:
        return len(list(self.more))


class Generates(Honest):
    """Takes from a generator in a list."""

    def begin(self) -> None:
        self.streams = [(n * n for n in range(100))]

    def act(self, batch_idx: int) -> None:
        next(self.streams[0])

    def state(self) -> Any:
        return next(self.streams[0])


class CountsGlobally(Honest):
    """Counts in a global."""

    def begin(self) -> None:
        global COUNTER
        COUNTER = 0

    def act(self, batch_idx: int) -> None:
        global COUNTER
        COUNTER += 1

    def state(self) -> Any:
        return COUNTER


class CountsInItsClass(Honest):
    """Counts in an attribute of its class."""

    calls = 0

    def begin(self) -> None:
        type(self).calls = 0

    def act(self, batch_idx: int) -> None:
        CountsInItsClass.calls += 1

    def state(self) -> Any:
        return type(self).calls


class TakesFromAGlobal(Honest):
    """Takes from an iterator that is a global."""

    def begin(self) -> None:
        global NUMBERS
        NUMBERS = itertools.count()

    def act(self, batch_idx: int) -> None:
        next(NUMBERS)

    def state(self) -> Any:
        return next(NUMBERS)


class Slotted:
    __slots__ = ("seen",)

    def __init__(self) -> None:
        self.seen = 0


class CountsInASlot(Honest):
    """Counts in an object that has slots."""

    def begin(self) -> None:
        self.tally = Slotted()

    def act(self, batch_idx: int) -> None:
        self.tally.seen += 1

    def state(self) -> Any:
        return self.tally.seen


class KeepsMuch(Honest):
    """Writes into a list of lists that is longer than a walk looks into."""

    def begin(self) -> None:
        self.histories: list[list[int]] = [[] for _ in range(20_000)]

    def act(self, batch_idx: int) -> None:
        self.histories[15_000].append(batch_idx)

    def state(self) -> Any:
        return self.histories[15_000]


class WritesAFile(Honest):
    """Appends to a file."""

    def act(self, batch_idx: int) -> None:
        with (self.folder / "log.txt").open("a") as file:
            file.write(f"{batch_idx}\n")

    def state(self) -> Any:
        return (self.folder / "log.txt").read_text()


class WritesToAnOpenFile(Honest):
    """Writes to a file that it holds open."""

    def begin(self) -> None:
        self.file = (self.folder / "held.txt").open("w")

    def act(self, batch_idx: int) -> None:
        self.file.write(f"{batch_idx}\n")

    def state(self) -> Any:
        self.file.close()
        return (self.folder / "held.txt").read_text()


class SavesTensors(Honest):
    """Saves to a path that is numbered by what is there already."""

    def act(self, batch_idx: int) -> None:
        torch.save(
            torch.ones(1), self.folder / f"{len(list(self.folder.iterdir()))}.pt"
        )

    def state(self) -> Any:
        return sorted(path.name for path in self.folder.iterdir())


class Queues(Honest):
    """Takes from a queue."""

    def begin(self) -> None:
        self.todo: queue.Queue[int] = queue.Queue()
        for number in range(100):
            self.todo.put(number)

    def act(self, batch_idx: int) -> None:
        self.todo.get_nowait()

    def state(self) -> Any:
        return self.todo.qsize()


class AsksADatabase(Honest):
    """Fetches from a cursor and inserts a row."""

    def begin(self) -> None:
        self.database = sqlite3.connect(":memory:")
        self.database.execute("create table steps (batch int)")

    def act(self, batch_idx: int) -> None:
        self.database.execute("insert into steps values (?)", (batch_idx,))

    def state(self) -> Any:
        rows = self.database.execute("select * from steps").fetchall()
        self.database.close()
        return rows


class StartsAProcess(Honest):
    """Has a process write for it."""

    def act(self, batch_idx: int) -> None:
        os.system(f"echo {batch_idx} >> {self.folder / 'out.txt'}")

    def state(self) -> Any:
        return (self.folder / "out.txt").read_text()


class SetsTheEnvironment(Honest):
    """Counts in the environment."""

    def begin(self) -> None:
        os.environ["STEPS"] = ""

    def act(self, batch_idx: int) -> None:
        os.environ["STEPS"] += "x"

    def state(self) -> Any:
        return os.environ.pop("STEPS")


class DrawsInPrivate(Honest):
    """Draws from generators of its own, one of them behind a default argument."""

    def begin(self) -> None:
        self.random, self.numpy = random.Random(0), np.random.default_rng(0)
        self.torch = torch.Generator().manual_seed(0)

        own = random.Random(1)

        def draw(own: random.Random = own) -> float:
            return own.random()

        self.draw = draw

    def act(self, batch_idx: int) -> None:
        self.random.random()
        self.draw()
        self.numpy.random()
        torch.rand(1, generator=self.torch)

    def state(self) -> Any:
        return (
            self.random.random(),
            self.draw(),
            self.numpy.random(),
            self.torch.get_state().sum(),
        )


class AsksTheSystem(Honest):
    """Draws from the system's entropy, which has no state."""

    def begin(self) -> None:
        self.source = random.SystemRandom()

    def act(self, batch_idx: int) -> None:
        self.source.random()


class ClosesOver(Honest):
    """Takes from an iterator in a closure and counts in another."""

    def begin(self) -> None:
        numbers, calls = iter(range(100)), 0

        def take() -> tuple[int, int]:
            nonlocal calls
            calls += 1
            return next(numbers), calls

        self.take = take

    def act(self, batch_idx: int) -> None:
        self.take()

    def state(self) -> Any:
        return self.take()


class Tells(pl.Callback):
    def __init__(self) -> None:
        self.steps, self.names = 0, iter("abcdefghijklmnop")


class TellsACallback(Honest):
    """Counts in a callback, and takes from an iterator there."""

    def act(self, batch_idx: int) -> None:
        for callback in self.trainer.callbacks:
            if isinstance(callback, Tells):
                callback.steps += 1
                next(callback.names)

    def state(self) -> Any:
        tells = next(c for c in self.trainer.callbacks if isinstance(c, Tells))
        return tells.steps, next(tells.names)


class HoldsWhatItLeavesAlone(Honest):
    """Holds an iterator, an open file and a queue for training; its validation names none."""

    def begin(self) -> None:
        self.stream, self.todo = iter(range(100)), queue.Queue[int]()
        self.notes = (self.folder / "notes.txt").open("w")

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        next(self.stream)
        self.notes.write("x")
        return super().training_step(batch, batch_idx)

    def state(self) -> Any:
        self.notes.close()
        return next(self.stream), (self.folder / "notes.txt").read_text()


class IteratesWithin(Honest):
    """Makes its iterators and generators in the step."""

    def act(self, batch_idx: int) -> None:
        next(iter(DataLoader(data(), 2)))
        sum(n for n in range(10))
        next(itertools.count())


class Cycle:
    """An iterator written in python, which can be put back."""

    def __init__(self) -> None:
        self.at = 0

    def __iter__(self) -> Cycle:
        return self

    def __next__(self) -> int:
        self.at += 1
        return self.at


class IteratesInPython(Honest):
    """Takes from an iterator whose state is an attribute."""

    def begin(self) -> None:
        self.cycle = Cycle()

    def act(self, batch_idx: int) -> None:
        next(self.cycle)

    def state(self) -> Any:
        return self.cycle.at


class ReadsAFile(Honest):
    """Reads a file that it opens itself."""

    def act(self, batch_idx: int) -> None:
        Path(__file__).read_text()


LOG = io.StringIO()
PACKED = bytearray()


class WritesInMemory(Honest):
    """Writes to streams and arrays that lie in memory: of its module, and of its own."""

    def begin(self) -> None:
        LOG.seek(0)
        LOG.truncate()
        PACKED.clear()
        self.places, self.raw = array.array("i"), io.BytesIO()

    def act(self, batch_idx: int) -> None:
        print(batch_idx, file=LOG)
        PACKED.append(batch_idx)
        self.places.append(batch_idx)
        self.raw.write(b"x")

    def state(self) -> Any:
        return LOG.getvalue(), bytes(PACKED), list(self.places), self.raw.getvalue()


class HashesOn(Honest):
    """Hashes all that it sees."""

    def begin(self) -> None:
        self.sums = {"all": hashlib.sha256()}

    def act(self, batch_idx: int) -> None:
        self.sums["all"].update(b"x")

    def state(self) -> Any:
        return self.sums["all"].hexdigest()


class CompressesOn(Honest):
    """Compresses all that it sees."""

    def begin(self) -> None:
        self.packer = zlib.compressobj()

    def act(self, batch_idx: int) -> None:
        self.packer.compress(b"x")

    def state(self) -> Any:
        return self.packer.flush()


class BuildsATree(Honest):
    """Adds to a tree of elements."""

    def begin(self) -> None:
        self.tree = ElementTree.Element("steps")

    def act(self, batch_idx: int) -> None:
        ElementTree.SubElement(self.tree, "step")

    def state(self) -> Any:
        return len(self.tree)


class WritesIntoAView(Honest):
    """Writes into the memory of something else."""

    def begin(self) -> None:
        self.view = memoryview(bytearray(1))

    def act(self, batch_idx: int) -> None:
        self.view[0] += 1

    def state(self) -> Any:
        return bytes(self.view)


class ShowsProgress(Honest):
    """A progress bar in a method that the step could call, whose package runs a monitor."""

    def begin(self) -> None:
        self.shown = len(list(tqdm(range(3), disable=False, file=io.StringIO())))
        assert tqdm.monitor is not None

    def act(self, batch_idx: int) -> None:
        if batch_idx < 0:
            self.begin()

    def state(self) -> Any:
        return self.shown


class ShowsProgressWithin(Honest):
    """A progress bar in the step."""

    def begin(self) -> None:
        self.shown = 0

    def act(self, batch_idx: int) -> None:
        for _ in tqdm(range(3), desc="samples"):
            self.shown += 1

    def state(self) -> Any:
        return self.shown


class HoldsABar(Honest):
    """Moves a progress bar of its own."""

    def begin(self) -> None:
        self.bar = tqdm(total=100, file=io.StringIO())

    def act(self, batch_idx: int) -> None:
        self.bar.update()

    def state(self) -> Any:
        return self.bar.n


TOUCHING = [
    Iterates, Generates, TakesFromAGlobal, WritesAFile, WritesToAnOpenFile, SavesTensors, Queues,
    AsksADatabase, StartsAProcess, ClosesOver, TellsACallback, HashesOn, CompressesOn,
    BuildsATree, WritesIntoAView, HoldsABar,
]  # fmt: skip
PUT_BACK = [
    CountsGlobally, CountsInItsClass, CountsInASlot, KeepsMuch, SetsTheEnvironment, DrawsInPrivate,
    AsksTheSystem, HoldsWhatItLeavesAlone, IteratesWithin, IteratesInPython, ReadsAFile,
    WritesInMemory, ShowsProgress, ShowsProgressWithin,
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*drew random numbers")
@pytest.mark.parametrize("program", [*TOUCHING, *PUT_BACK], ids=lambda p: p.__name__)
def test_a_guarded_run_leaves_what_the_bare_run_leaves(
    program: type[Honest], trainer: Callable[..., pl.Trainer], tmp_path: Path
) -> None:
    def run(name: str, *callbacks: pl.Callback) -> tuple[Any, ...]:
        (tmp_path / name).mkdir()
        pl.seed_everything(0, verbose=False)
        module = program(tmp_path / name)
        made = trainer(callbacks=[Tells(), *callbacks], max_epochs=2)
        made.fit(module, DataLoader(data(), 4, shuffle=True), DataLoader(data(), 4))
        weights = [p.tolist() for p in module.parameters()]
        generators = torch.get_rng_state().tolist(), random.getstate(), np.random.rand()
        return module.state(), weights, generators, float(made.callback_metrics["loss"])

    guard = EvalGuard(sync="ignore", scores="ignore", data="ignore", metrics=None)
    assert run("bare") == run("guarded", guard)
    findings = [
        f for f in guard.report.findings if f.check != "stochastic" or f.certain
    ]
    assert findings == []
    notes = [n for n in guard.report.notes if n.startswith("a step was not run again")]
    if program in PUT_BACK:
        assert guard.report.checked["replayed_steps"] >= 1, notes
    else:
        assert notes
        assert guard.report.checked["replayed_steps"] == 0
