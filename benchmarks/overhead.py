"""What a guard costs, beside what people would take instead.

    python benchmarks/overhead.py [--seconds 45] [--only mlp bert] [--traincheck PYTHON] [--short]

Fits of one model follow each other in one process, bare and watched in turn, the order reversed
from round to round, so that a busy machine falls on all alike. A batch is timed from its start to
the next one's, which holds everything that a user waits for; medians over the batches of a fit,
and medians over the rounds of what one fit takes longer than the bare fit of its round. `once` is
what a fit takes longer beyond its batches: the closer look, windows, a profiler's end.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import signal
import statistics
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import DeviceStatsMonitor
from lightning.pytorch.loggers.logger import DummyLogger
from results import flags, publish, versions
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_evalguard import EvalGuard
from lightning_evalguard.checks.registry import CHECKS

BATCH, CLASSES = 16, 10
_PAIRS, _LIMIT = 2, 120  # of scripts, and seconds of each
Make = Callable[[], tuple[nn.Module, Tensor]]


# --- models: a net, and inputs of one batch -------------------------------------------------------


def mlp() -> tuple[nn.Module, Tensor]:
    net = nn.Sequential(
        nn.Linear(32, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, CLASSES)
    )
    return net, torch.randn(BATCH, 32)


class Residual(nn.Module):
    """Two convolutions with batch norm, and a skip."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.body(x)).relu()


def resnet() -> tuple[nn.Module, Tensor]:
    blocks = [Residual(32) for _ in range(8)]
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, CLASSES))
    net = nn.Sequential(nn.Conv2d(3, 32, 3, 2), *blocks, *head)
    return net, torch.randn(BATCH, 3, 32, 32)


class Bert(nn.Module):
    """Twelve layers over 32 tokens."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, batch_first=True)
        self.embed = nn.Embedding(1000, width)
        self.encoder = nn.TransformerEncoder(layer, 12, enable_nested_tensor=False)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(tokens)).mean(1))


def bert() -> tuple[nn.Module, Tensor]:
    return Bert(), torch.randint(0, 1000, (BATCH, 32))


def modules(count: int = 1000) -> tuple[nn.Module, Tensor]:
    """That many modules, each of which does next to nothing."""
    inner = [nn.Identity() if i % 2 else nn.Dropout(0.0) for i in range(count)]
    return nn.Sequential(
        nn.Linear(32, 32), *inner, nn.Linear(32, CLASSES)
    ), torch.randn(BATCH, 32)


def tensors(count: int = 50_000) -> tuple[nn.Module, Tensor]:
    """An MLP that holds that many frozen tensors beside its own."""
    net, x = mlp()
    frozen = [nn.Parameter(torch.zeros(4), requires_grad=False) for _ in range(count)]
    net.append(nn.Identity())
    net[-1].frozen = nn.ParameterList(frozen)
    return net, x


MODELS: dict[str, tuple[Make, int]] = {  # and the batches of a validation
    "mlp": (mlp, 100),
    "resnet": (resnet, 30),
    "bert": (bert, 30),
    "modules": (modules, 60),
    "tensors": (tensors, 100),
}


# --- what is laid around a fit --------------------------------------------------------------------


class Profiler(pl.Callback):
    """`torch.profiler` around a whole fit."""

    def __init__(self, with_stack: bool) -> None:
        cpu = torch.profiler.ProfilerActivity.CPU
        self.profile = torch.profiler.profile(activities=[cpu], with_stack=with_stack)

    def on_fit_start(self, *_: Any) -> None:
        self.profile.start()

    def on_fit_end(self, *_: Any) -> None:
        self.profile.stop()


class Audit(pl.Callback):
    """torch-audit by `autopatch`, at every step or at each hundredth."""

    def __init__(self, every: int) -> None:
        self.every = every

    def on_train_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> None:
        from torch_audit import autopatch

        first = trainer.optimizers[0]
        self.auditor = autopatch(pl_module, optimizer=first, every_n_steps=self.every)

    def on_fit_end(self, *_: Any) -> None:
        self.auditor.finish()
        self.auditor.unpatch()


def one_check(name: str) -> EvalGuard:
    others = dict.fromkeys(CHECKS - {name}, "ignore")
    policy = {"rng": "warn"} if name == "rng" else {}
    return EvalGuard(metrics=None, record=None, **others, **policy)  # type: ignore[arg-type]


def everything() -> EvalGuard:
    return EvalGuard(rng="warn", audit="full", budget=1.0, sync_steps=(0, 1))


def kinds(of_checks: bool) -> dict[str, Callable[[], list[pl.Callback]]]:
    """Name -> the callbacks of a fit."""
    made: dict[str, Callable[[], list[pl.Callback]]] = {
        "bare": list,
        "EvalGuard()": lambda: [EvalGuard()],
        "everything, every batch": lambda: [everything()],
        "DeviceStatsMonitor": lambda: [DeviceStatsMonitor(cpu_stats=True)],
        "torch.profiler": lambda: [Profiler(with_stack=False)],
        "torch.profiler, stacks": lambda: [Profiler(with_stack=True)],
        "torch-audit, every step": lambda: [Audit(1)],
        "torch-audit, each 100th": lambda: [Audit(100)],
    }
    if of_checks:
        made |= {
            f"{name} alone": (lambda n=name: [one_check(n)]) for name in sorted(CHECKS)
        }
        made["matrix alone"] = lambda: [
            EvalGuard(record=None, **dict.fromkeys(CHECKS, "ignore"))  # type: ignore[arg-type]
        ]
    return made


def missing(kind: str) -> str:
    """Why a kind cannot be measured here; "" if it can."""
    needs = {"torch-audit": "torch_audit", "DeviceStatsMonitor": "psutil"}
    for start, module in needs.items():
        if kind.startswith(start) and importlib.util.find_spec(module) is None:
            return f"{module} is not installed"
    return ""


# --- the measurement ------------------------------------------------------------------------------


class Net(pl.LightningModule):
    """Any net that gives (N, 10) logits, with a loss and an accuracy in its books."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        logits = self.net(batch[0])
        self.log("val_loss", F.cross_entropy(logits, batch[1]))
        self.log("val_acc", (logits.argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        trained = [p for p in self.parameters() if p.requires_grad]
        return torch.optim.SGD(trained, 1e-3)


class Clock(pl.Callback):
    """Seconds from each batch's start to the next one's."""

    def __init__(self) -> None:
        self.took: dict[str, list[float]] = {"train": [], "val": []}
        self.last: dict[str, float] = {}

    def _mark(self, stage: str) -> None:
        now = time.perf_counter()
        if stage in self.last:
            self.took[stage].append(now - self.last[stage])
        self.last[stage] = now

    def on_train_batch_start(self, *_: Any) -> None:
        self._mark("train")

    def on_validation_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if not trainer.sanity_checking:
            self._mark("val")

    def on_train_epoch_start(self, *_: Any) -> None:
        self.last.clear()

    on_validation_epoch_start = on_train_epoch_start


def fit(make: Make, batches: int, callbacks: list[pl.Callback]) -> dict[str, float]:
    """Microseconds of a batch, and seconds of the fit beyond its batches."""
    torch.manual_seed(0)
    net, x = make()
    return timed(Net(net), x, batches, callbacks)


def timed(
    module: pl.LightningModule, x: Tensor, batches: int, callbacks: list[pl.Callback]
) -> dict[str, float]:
    """`fit` of a module that there is, with inputs like `x`."""
    loaders = []
    for part in (max(4, batches // 2), batches):
        inputs = x.repeat(part, *[1] * (x.dim() - 1))
        if inputs.is_floating_point():
            inputs = inputs + torch.randn_like(inputs)
        labels = torch.randint(CLASSES, (len(inputs),))
        loaders.append(DataLoader(TensorDataset(inputs, labels), BATCH))
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            accelerator="cpu", max_epochs=2, logger=DummyLogger(), enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
            log_every_n_steps=1, callbacks=[clock, *callbacks],
        )  # fmt: skip
        began = time.perf_counter()
        trainer.fit(module, *loaders)
        whole = time.perf_counter() - began
    typical = {stage: statistics.median(took) for stage, took in clock.took.items()}
    steady = sum(len(took) * typical[stage] for stage, took in clock.took.items())
    return {stage: 1e6 * t for stage, t in typical.items()} | {"once": whole - steady}


Rounds = dict[str, list[dict[str, float]]]


def measure(make: Make, batches: int, wanted: dict[str, Any], seconds: float) -> Rounds:
    """Fits of each kind in turn, until the time is used up; three rounds at least, one of none."""
    for callbacks in wanted.values():  # the first of each imports and compiles
        fit(make, 4, callbacks())
    rounds: Rounds = {kind: [] for kind in wanted}
    began = time.perf_counter()
    while (
        len(rounds["bare"]) < (3 if seconds else 1)
        or time.perf_counter() - began < seconds
    ):
        order = list(wanted)[:: 1 if len(rounds["bare"]) % 2 else -1]
        for kind in order:
            rounds[kind].append(fit(make, batches, wanted[kind]()))
    return rounds


def added(rounds: Rounds, kind: str, what: str) -> float:
    """The median over rounds of what a kind takes longer than the bare fit."""
    pairs = zip(rounds[kind], rounds["bare"], strict=True)
    return statistics.median(watched[what] - bare[what] for watched, bare in pairs)


def rows_of(model: str, rounds: Rounds) -> Iterator[list[str]]:
    bare = {
        what: statistics.median(r[what] for r in rounds["bare"])
        for what in ("val", "train")
    }
    for kind in rounds:
        cells = []
        for what in ("val", "train"):
            more = added(rounds, kind, what)
            cells += [f"{more:+.0f}", f"{1 + more / bare[what]:.2f}"]
        if kind == "bare":
            cells = [f"{bare['val']:.0f}", "1", f"{bare['train']:.0f}", "1"]
        yield [model, kind, *cells, f"{added(rounds, kind, 'once'):+.2f}"]


_SCRIPT = """import sys
sys.path[:0] = {folders!r}
import overhead
model, x = overhead.quiet({model!r})
overhead.told(model, x, {batches}, {out!r})
"""


def quiet(model: str) -> tuple[pl.LightningModule, Tensor]:
    """What a script of its own fits."""
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net, x = MODELS[model][0]()
    return Net(net), x


def told(module: pl.LightningModule, x: Tensor, batches: int, out: str) -> None:
    """Fit, and write what it took."""
    timed(module, x, 4, [])
    Path(out).write_text(json.dumps(timed(module, x, batches, [])), encoding="utf-8")


def collected(model: str, batches: int, python: Path) -> list[dict[str, float]] | str:
    """How many times as long a batch takes where TrainCheck collects; or why that is not known.

    Scripts of their own run bare and instrumented in turn, in TrainCheck's environment.
    """
    collect = [str(python.parent / "traincheck-collect"), "--pyscript", "script.py"]
    collect += ["--models-to-track", "model", "--output-dir", "traces"]
    ratios = []
    for _ in range(_PAIRS):
        took = []
        for command in ([str(python), "script.py"], collect):
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder, "took.json")
                folders = [str(one) for one in Path(__file__).parents[:2]]
                text = _SCRIPT.format(
                    folders=folders, model=model, batches=batches, out=str(out)
                )
                Path(folder, "script.py").write_text(text, encoding="utf-8")
                said, in_time = _run(command, folder)
                if not in_time:
                    return f"over {_LIMIT} s"
                if not out.exists():
                    last = (said.strip().splitlines() or ["no word"])[-1]
                    return f"failed: {last[:60]}"
                took.append(json.loads(out.read_text(encoding="utf-8")))
        bare, watched = took
        ratios.append({what: watched[what] / bare[what] for what in ("val", "train")})
    return ratios


def _run(command: list[str], folder: str) -> tuple[str, bool]:
    """What a command and those that it starts say, and whether they ended in time."""
    with subprocess.Popen(
        command, cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
        text=True, start_new_session=True,
    ) as process:  # fmt: skip
        try:
            return process.communicate(timeout=_LIMIT)[1], True
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return "", False


def growth(short: bool, seconds: float) -> dict[str, dict[int, Rounds]]:
    """Bare and guarded by powers of ten in modules, tensors and batches."""
    wanted = {kind: kinds(False)[kind] for kind in ("bare", "EvalGuard()")}
    upto = 1 if short else 4
    grown: dict[str, dict[int, Rounds]] = {"modules": {}, "tensors": {}, "batches": {}}
    for power in range(1, upto + 1):
        n = 10**power
        # of so many batches most are not looked at, as in a fit of a user
        deep = 10 if short else 60
        grown["modules"][n] = measure(lambda n=n: modules(n), deep, wanted, seconds)
        grown["tensors"][n] = measure(lambda n=n: tensors(n), deep, wanted, seconds)
        if power < 4:
            grown["batches"][n] = measure(mlp, n, wanted, seconds)
    return grown


Collected = dict[str, list[dict[str, float]] | str]


def small(
    results: dict[str, Rounds], apart: Collected
) -> tuple[list[str], list[list[str]]]:
    """For the README: the ratio of a validation batch, by kind and model."""
    names = [
        k
        for k in next(iter(results.values()))
        if not k.endswith(" alone") and k != "bare"
    ]
    rows = []
    for kind in names:
        row = [kind]
        for rounds in results.values():
            bare = statistics.median(r["val"] for r in rounds["bare"])
            row.append(f"{1 + added(rounds, kind, 'val') / bare:.2f}")
        rows.append(row)
    if apart:
        ratios = [apart.get(model, "") for model in results]
        cells = [
            one
            if isinstance(one, str)
            else f"{statistics.median(r['val'] for r in one):.2f}"
            for one in ratios
        ]
        rows.append(["TrainCheck, collecting", *cells])
    return ["a validation batch takes", *results], rows


def main() -> None:
    parser = flags(__doc__)
    parser.add_argument("--only", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--seconds", type=float, default=45, help="for each model")
    parser.add_argument(
        "--traincheck", type=Path, help="the python of an environment that has it"
    )
    options = parser.parse_args()
    if options.short:
        options.only, options.seconds = ["mlp"], 0
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    torch.set_num_threads(1)
    results: dict[str, Rounds] = {}
    rows: list[list[str]] = []
    for model in options.only:
        make, batches = MODELS[model]
        every = kinds(of_checks=model == "mlp" and not options.short)
        wanted = {kind: made for kind, made in every.items() if not missing(kind)}
        results[model] = measure(
            make, 8 if options.short else batches, wanted, options.seconds
        )
        rows += rows_of(model, results[model])
    apart: Collected = {}
    if options.traincheck:
        apart = {
            m: collected(m, MODELS[m][1], options.traincheck) for m in options.only
        }
    grown = growth(options.short, options.seconds / 15)
    for what, sizes in grown.items():
        for n, rounds in sizes.items():
            rows += [
                row for row in rows_of(f"{n:,} {what}", rounds) if row[1] != "bare"
            ]
    left_out = [why for kind in kinds(False) if (why := missing(kind))]
    columns = [
        "model",
        "kind",
        "validation batch, us",
        "ratio",
        "training step, us",
        "ratio",
    ]
    publish(
        "overhead", options, [*columns, "once a fit, s"], rows,
        raw={"models": results, "growth": grown, "collected": apart},
        notes=[f"Not measured: {', '.join(sorted(set(left_out)))}."] if left_out else [],
        installed=versions("torch-audit", "psutil", "torchmetrics"), small=small(results, apart),
    )  # fmt: skip


if __name__ == "__main__":
    main()
