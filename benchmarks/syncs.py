"""Lines at which the host waits for the device: who names them, and what a fix is worth.

    python benchmarks/syncs.py [--accelerator gpu] [--seconds 60] [--short]

First the idioms of `tests/sync_idioms.py`, each on a line of its own in a training step: those that
wait, and near-misses that do not. A tool names a line if its report holds file and number. On the
CPU nothing waits, and the guard says what would; of the profiler's events those count that copy to
the host or ask for a size, by the frame they were called from. Then a training step with five such
lines and without them, in turn (`examples/syncs.py` in larger). What the fixes save is time that
comes back, not time spent waiting: a host that does not wait here may wait elsewhere.
"""

from __future__ import annotations

import importlib.util
import logging
import re
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from results import flags, publish
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_evalguard import EvalGuard

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import sync_idioms

_TEXT = """
import contextlib
from sync_idioms import MODULES, names
from syncs import Small

globals().update(MODULES)
quiet = contextlib.suppress(RuntimeError, AssertionError)


class Planted(Small):
    def training_step(self, batch, batch_idx):
        x, y = batch
        self.idioms(x, y)
        return super().training_step(batch, batch_idx)

    def idioms(self, x, y):
"""
# operators of the profiler behind which a host waits on a device
_WAITING = ("_local_scalar_dense", "nonzero", "unique", "bincount", "copy_", "equal")


class Small(pl.LightningModule):
    """Labelled points."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.layer(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 1e-3)

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(TensorDataset(torch.randn(8, 4), torch.arange(8) % 4), 8)


# --- idioms ---------------------------------------------------------------------------------------


def planted(folder: Path, idioms: list[str]) -> tuple[ModuleType, dict[int, str]]:
    """A module that runs the idioms, and the line of each."""
    text = _TEXT + sync_idioms.program(idioms, "        ") + "\n"
    file = folder / "planted.py"
    file.write_text(text)
    lines = {
        n: t.strip() for n, t in enumerate(text.splitlines(), 1) if t.strip() in idioms
    }
    spec = importlib.util.spec_from_file_location("planted", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module, lines


def trainer(accelerator: str, *callbacks: pl.Callback) -> pl.Trainer:
    return pl.Trainer(
        accelerator=accelerator, devices=1, max_epochs=1, logger=False, barebones=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=list(callbacks),
    )  # fmt: skip


def by_guard(module: pl.LightningModule, accelerator: str) -> set[int]:
    """The lines that the guard names."""
    guard = EvalGuard(metrics=None, record=None)
    trainer(accelerator, guard).fit(module)
    places = [s.location for s in guard.report.syncs if s.owner == "user"]
    return {int(p.rpartition(":")[2]) for p in places if "planted.py" in p}


def by_profiler(module: pl.LightningModule, accelerator: str) -> set[int]:
    """The lines in the stacks of the operators that may wait."""
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if accelerator == "gpu":
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    device = "cuda" if accelerator == "gpu" else "cpu"
    module = module.to(device)
    batch = [part.to(device) for part in next(iter(module.train_dataloader()))]
    # without `verbose` events carry no stacks; of a whole fit torch cannot read all of them
    config = torch._C._profiler._ExperimentalConfig(verbose=True)
    with torch.profiler.profile(
        activities=kinds, with_stack=True, experimental_config=config
    ) as profile:
        module.training_step(batch, 0)
    named = set()
    for event in profile.events():
        if event.name.startswith("cuda") and "Synchronize" not in event.name:
            continue
        if event.name.removeprefix("aten::") in _WAITING or "Synchronize" in event.name:
            frames = (
                re.search(r"planted\.py\((\d+)\)", frame) for frame in event.stack
            )
            line = next((frame for frame in frames if frame), None)
            named |= {int(line.group(1))} if line else set()
    return named


def by_debug_mode(module: pl.LightningModule, accelerator: str) -> set[int] | None:
    """The lines that `torch.cuda.set_sync_debug_mode` warns of; None without a GPU."""
    if accelerator != "gpu":
        return None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            trainer(accelerator).fit(module)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return {w.lineno for w in caught if w.filename.endswith("planted.py")}


TOOLS: dict[str, Callable[[pl.LightningModule, str], set[int] | None]] = {
    "EvalGuard()": by_guard,
    "torch.profiler, stacks": by_profiler,
    "set_sync_debug_mode": by_debug_mode,
}


def idioms(accelerator: str, every: int) -> tuple[list[list[str]], dict[str, Any]]:
    heard = {
        source: sync_idioms.ON_CPU.get(source, n) for source, n, _ in sync_idioms.WAITS
    }
    waits = [s for s, n in heard.items() if n and s not in sync_idioms.SYNCHRONIZE][
        ::every
    ]
    free = sync_idioms.FREE[::every]
    rows, raw = [], {}
    with tempfile.TemporaryDirectory() as folder:
        module, lines = planted(Path(folder), [*waits, *free])
        for tool, ask in TOOLS.items():
            named = ask(module.Planted(), accelerator)
            if named is None:
                rows.append([tool, "needs a GPU", ""])
                continue
            found = {source for line, source in lines.items() if line in named}
            right, wrong = found & set(waits), found & set(free)
            rows.append(
                [tool, f"{len(right)} of {len(waits)}", f"{len(wrong)} of {len(free)}"]
            )
            missed = sorted(set(waits) - right)
            raw[tool] = {"waits": len(waits), "missed": missed, "wrong": sorted(wrong)}
    return rows, raw


# --- before and after -----------------------------------------------------------------------------


class Before(pl.LightningModule):
    """A training step that waits at five lines."""

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Sequential(nn.Linear(256, 256), nn.ReLU()) for _ in range(8)]
        self.net = nn.Sequential(*layers, nn.Linear(256, 4))
        self.register_buffer("weight", torch.tensor([1.0, 1.0, 2.0, 2.0]))
        self.losses: list[Any] = []
        self.correct: list[Any] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        logits = self.net(x)
        loss = F.cross_entropy(
            logits, y, torch.tensor([1.0, 1.0, 2.0, 2.0]).to(self.device)
        )
        if torch.isnan(loss):
            raise ValueError("the loss is NaN")
        self.losses.append(loss.item())
        self.correct.append((logits.argmax(-1) == y).cpu().numpy())
        return loss + logits[y > 1].square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-3)


class After(Before):
    """The same training without them."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        logits = self.net(x)
        loss = F.cross_entropy(logits, y, self.weight)
        self.losses.append(loss.detach())
        self.correct.append(logits.argmax(-1) == y)
        hard = (y > 1).float()
        return loss + (logits.square().mean(-1) * hard).sum() / hard.sum().clamp(min=1)

    def on_train_epoch_end(self) -> None:
        if not torch.stack(self.losses).isfinite().all():
            raise ValueError("the loss is NaN")


def epoch(kind: type[Before], accelerator: str, steps: int) -> float:
    """Milliseconds of a step, over a whole epoch: a wait that is only moved counts."""
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(32 * steps, 256), torch.arange(32 * steps) % 4)
    began = time.perf_counter()
    trainer(accelerator).fit(kind(), DataLoader(data, 32))
    if accelerator == "gpu":
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - began) / steps


def before_and_after(
    accelerator: str, steps: int, seconds: float
) -> dict[str, list[float]]:
    took: dict[str, list[float]] = {"Before": [], "After": []}
    for kind in (Before, After):
        epoch(kind, accelerator, 4)
    began = time.perf_counter()
    while len(took["Before"]) < 3 or time.perf_counter() - began < seconds:
        for kind in (Before, After) if len(took["Before"]) % 2 else (After, Before):
            took[kind.__name__].append(epoch(kind, accelerator, steps))
    return took


def main() -> None:
    parser = flags(__doc__)
    parser.add_argument("--accelerator", default="cpu", choices=("cpu", "gpu"))
    parser.add_argument("--seconds", type=float, default=60)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    torch.set_num_threads(1)
    rows, raw = idioms(options.accelerator, 20 if options.short else 1)
    steps, seconds = (8, 0.0) if options.short else (200, options.seconds)
    took = before_and_after(options.accelerator, steps, seconds)
    before, after = (statistics.median(took[kind]) for kind in ("Before", "After"))
    gained = statistics.median(
        1 - a / b for a, b in zip(took["After"], took["Before"], strict=True)
    )
    where = (
        "the GPU" if options.accelerator == "gpu" else "the CPU, where nothing waits"
    )
    note = (
        f"Five lines fixed: the median training step took {before:.2f} ms before and "
        f"{after:.2f} ms after on {where}; the median over pairs of fits of what came back "
        f"is {gained:.0%}."
    )
    columns = ["tool", "lines that wait, named", "lines that do not, named"]
    raw = {
        "idioms": raw,
        "milliseconds a step": took,
        "accelerator": options.accelerator,
    }
    publish("syncs", options, columns, rows, raw=raw, notes=[note])


if __name__ == "__main__":
    main()
