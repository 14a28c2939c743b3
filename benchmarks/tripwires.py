"""What the guard costs: tripwires per batch, windows per evaluation, the first step that is shown.

    python benchmarks/tripwires.py [name ...]

The guard around an empty step is timed after each real one, whose memory traffic leaves it cold
caches as in an evaluation; medians. Seconds are those of the one thread that does all the work (one
core, CPU), so that a busy machine costs little truth. A window is the start and the stop of an
evaluation together.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lightning_evalguard.checks.batch.check import BatchCheck
from lightning_evalguard.checks.check import Check, Moment
from lightning_evalguard.checks.grad import GradCheck
from lightning_evalguard.checks.modes.check import ModesCheck
from lightning_evalguard.checks.state.check import StateCheck
from lightning_evalguard.checks.stochastic.check import StochasticCheck
from lightning_evalguard.guard import Guard, Replays
from lightning_evalguard.report import Report

Make = Callable[[], tuple[nn.Module, Tensor]]


def mlp() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)), torch.randn(32, 64)


def tiny() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(*[nn.Linear(4, 4) for _ in range(999)]), torch.randn(8, 4)


def norms() -> tuple[nn.Module, Tensor]:
    layers = [
        nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU())
        for _ in range(50)
    ]
    return nn.Sequential(*layers), torch.randn(4, 32, 16, 16)


def bert() -> tuple[nn.Module, Tensor]:
    from transformers import BertConfig, BertModel

    return BertModel(BertConfig()), torch.randint(1000, (2, 32))


MODELS: dict[str, Make] = {"mlp": mlp, "tiny": tiny, "norms": norms, "bert": bert}
CHECKS: dict[str, Callable[[], list[Check]]] = {
    "modes": lambda: [ModesCheck()],
    "grad": lambda: [GradCheck()],
    "state": lambda: [StateCheck()],
    "all": lambda: [ModesCheck(), GradCheck(), StateCheck(), StochasticCheck(), BatchCheck()],
}


def seconds(call: Callable[[], Any]) -> float:
    start = time.thread_time()
    call()
    return time.thread_time() - start


def median(values: list[float]) -> float:
    return statistics.median(values)


def measure(make: Make, checks: list[Check], steps: int) -> dict[str, float]:
    """Median seconds of a bare step, of the guard around one, of windows and of the shown step."""
    torch.manual_seed(0)
    model, x = make()
    model.eval()
    guard = Guard([(c, "error") for c in checks], None, Report(), Replays("auto"))
    now = Moment("validate")

    def step(batch: Tensor) -> None:
        model(batch)

    def nothing(batch: Tensor) -> None:
        pass

    guard.open(model, now)
    found: dict[str, list[float]] = {"bare": [], "guard": [], "window": []}
    with torch.no_grad(), contextlib.ExitStack() as at_end:
        at_end.callback(guard.close, now)
        first = seconds(lambda: guard.start(now))
        now.batch = 0
        step(x)
        shown = seconds(lambda: guard.step(now, step, x)) - seconds(lambda: step(x))
        for now.batch in range(1, 4):  # the batches that are looked at more closely
            guard.step(now, step, x)
        for now.batch in range(4, 4 + steps):
            found["bare"].append(seconds(lambda: step(x)))
            found["guard"].append(seconds(lambda: guard.step(now, nothing, x)))
        now.batch = -1
        first += seconds(lambda: guard.stop(now))
        for _ in range(5):
            spent = seconds(lambda: guard.start(now))
            now.batch = 0
            guard.step(now, nothing, x)
            now.batch = -1
            found["window"].append(spent + seconds(lambda: guard.stop(now)))
    return {
        "modules": sum(1 for _ in model.modules()),
        "bare": median(found["bare"]),
        "tripwires": median(found["guard"]),
        "ratio": 1 + median(found["guard"]) / median(found["bare"]),
        "shown": shown,
        "first window": first,
        "later windows": median(found["window"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=list(MODELS))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--checks", nargs="*", default=["all"], choices=list(CHECKS))
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    print(
        "| model | modules | checks | step, ms | tripwires, ms | ratio | shown, ms | "
        "first window, ms | later, ms |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name in wanted.models:
        for checks in wanted.checks:
            steps = min(wanted.steps, 40) if name == "bert" else wanted.steps
            m = measure(MODELS[name], CHECKS[checks](), steps)
            print(
                f"| {name} | {m['modules']} | {checks} | {m['bare'] * 1e3:.2f} "
                f"| {m['tripwires'] * 1e3:.3f} | {m['ratio']:.3f} | {m['shown'] * 1e3:.1f} "
                f"| {m['first window'] * 1e3:.1f} | {m['later windows'] * 1e3:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
