"""The confusion matrix against torchmetrics, paired in one run: update, reduction, figure.

    python benchmarks/confusion.py [--quick] [--plot] [--device cuda]

Each pair is timed in turn, call by call, and the median of the ratios is printed: what else the
machine does meanwhile falls on both alike. Ratios above 1 are in our favour.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torchmetrics import MetricCollection
from torchmetrics import classification as tm

from lightning_evalguard.confusion.figure import figure, png
from lightning_evalguard.confusion.matrix import ConfusionMatrix

CLASSES = (2, 10, 100, 1_000, 10_000)
BATCHES = (32, 256, 2_048, 16_384, 65_536)
LARGEST = 2**26  # scores in one batch; beyond, labels are compared


def collection(classes: int, **kwargs: Any) -> MetricCollection:
    """The eight that most projects log."""
    kinds = (
        tm.MulticlassAccuracy, tm.MulticlassPrecision, tm.MulticlassRecall, tm.MulticlassF1Score,
        tm.MulticlassSpecificity, tm.MulticlassMatthewsCorrCoef, tm.MulticlassCohenKappa,
        tm.MulticlassConfusionMatrix,
    )  # fmt: skip
    return MetricCollection([kind(classes, validate_args=False, **kwargs) for kind in kinds])


def paired(
    ours: Callable[[], Any], others: list[Callable[[], Any]], budget: float
) -> tuple[float, list[float]]:
    """Median milliseconds of `ours`, and of each other's time relative to it."""
    calls = [ours, *others]
    times: list[list[float]] = [[] for _ in calls]
    end = time.perf_counter() + budget
    while len(times[0]) < 6 or (time.perf_counter() < end and len(times[0]) < 300):
        # In another order each round: the first one finds the caches cold, the last one warm.
        turn = len(times[0]) % len(calls)
        for i in (*range(turn, len(calls)), *range(turn)):
            times[i].append(clock(calls[i]))
    mine, *theirs = (t[len(calls) :] for t in times)  # the first rounds warm up
    ratios = [statistics.median(o / m for o, m in zip(t, mine, strict=True)) for t in theirs]
    return statistics.median(mine) * 1e3, ratios


def clock(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def updates(budget: float, classes: tuple[int, ...], batches: tuple[int, ...], device: str) -> None:
    print("one batch as the guard counts it, logits float32 (labels where marked *)\n")
    print("| classes | batch | ours, ms | confusion matrix | 8-metric collection |")
    print("|---:|---:|---:|---:|---:|")
    for c in classes:
        for n in batches:
            scored = n * c <= LARGEST
            preds = torch.randn(n, c) if scored else torch.randint(c, (n,))
            preds, target = preds.to(device), torch.randint(c, (n,), device=device)
            ours = ConfusionMatrix(c, preds_are="logits" if scored else "labels", full=c <= 2048)
            theirs = tm.MulticlassConfusionMatrix(c, validate_args=False)
            # At 10,000 classes its matrices are 800 MB each, three of them.
            many = collection(c) if c < 10_000 else None
            timed = [
                partial(m.to(device).update, preds, target)
                for m in (ours, theirs, many)
                if m is not None
            ]
            with torch.inference_mode():
                mine, ratios = paired(timed[0], timed[1:], budget)
            said = [f"{r:.2f}x" for r in ratios] + ["-"] * (2 - len(ratios))
            star = "" if scored else "*"
            print(f"| {c:,} | {n:,}{star} | {mine:.3f} | {' | '.join(said)} |", flush=True)
    state = ConfusionMatrix(128_256, full=False)
    state.update(torch.randint(128_256, (8192,)), torch.randint(128_256, (8192,)))
    held = state.counts.nbytes + state._pairs.buffer.nbytes
    print(f"\n128,256 classes: {held / 2**20:.1f} MiB of state, a full matrix takes 131 GB")


def answers(budget: float, batches: tuple[int, ...], device: str) -> None:
    """Binary logits, also as they are counted where the module holds a torchmetrics object."""
    kinds = (
        tm.BinaryAccuracy, tm.BinaryPrecision, tm.BinaryRecall, tm.BinaryF1Score,
        tm.BinarySpecificity, tm.BinaryMatthewsCorrCoef, tm.BinaryCohenKappa,
        tm.BinaryConfusionMatrix,
    )  # fmt: skip
    print("\nbinary logits, float32, ours also told apart by batch\n")
    print("| batch | ours, ms | by batch | confusion matrix | 8-metric collection |")
    print("|---:|---:|---:|---:|---:|")
    for n in batches:
        preds, target = torch.randn(n, device=device), torch.randint(2, (n,), device=device)
        metrics = (
            ConfusionMatrix(2, "binary", preds_are="logits"),
            ConfusionMatrix(2, "binary", preds_are="logits", by_batch=True),
            tm.BinaryConfusionMatrix(validate_args=False),
            MetricCollection([kind(validate_args=False) for kind in kinds]),
        )
        timed = [partial(m.to(device).update, preds, target) for m in metrics]
        with torch.inference_mode():
            mine, ratios = paired(timed[0], timed[1:], budget)
        print(f"| {n:,} | {mine:.3f} | {' | '.join(f'{r:.2f}x' for r in ratios)} |", flush=True)


def reduction(rank: int, port: int) -> None:
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    for c in (10, 100, 1_000):
        preds, target = torch.randint(c, (256,)), torch.randint(c, (256,))
        ours, theirs = ConfusionMatrix(c), collection(c)
        ours.update(preds, target)
        theirs.update(preds, target)

        def once(state: ConfusionMatrix = ours) -> None:
            counts = state.counts.clone()
            dist.all_reduce(counts)

        def collected(many: MetricCollection = theirs) -> None:
            for metric in many.values():
                metric._computed = None  # or the second call returns the first one's value
            many.compute()

        mine, times = [], []
        for _ in range(15):
            mine.append(clock(once))
            times.append(clock(collected))
        if rank == 0:
            a, b = (statistics.median(x[2:]) * 1e3 for x in (mine, times))
            print(f"| {c:,} | {a:.2f} | {b:.2f} | {b / a:.1f}x |", flush=True)
    dist.destroy_process_group()


def figures(plot: bool) -> None:
    print("\nfigure, PNG included\n")
    print("| classes | ours, s | torchmetrics' plot, s |")
    print("|---:|---:|---:|")
    for c in (2, 10, 100, 1_000):
        g = torch.Generator().manual_seed(0)
        target = torch.randint(c, (50_000,), generator=g)
        wrong = torch.randint(c, (50_000,), generator=g)
        preds = torch.where(torch.rand(50_000, generator=g) < 0.8, target, wrong)
        ours, theirs = ConfusionMatrix(c), tm.MulticlassConfusionMatrix(c)
        ours.update(preds, target)
        theirs.update(preds, target)
        result = ours.result()
        mine = statistics.median(clock(lambda r=result: png(figure(r, "val"))) for _ in range(5))
        other = "-"
        if c <= 10 or (plot and c <= 100):
            other = f"{clock(lambda m=theirs: png(m.plot()[0])):.2f}"
        print(f"| {c:,} | {mine:.2f} | {other} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer sizes, in about a minute")
    parser.add_argument("--device", default="cpu", help="another than the CPU: updates alone")
    parser.add_argument("--plot", action="store_true", help="torchmetrics' plot at 100 classes too")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    budget = 0.3 if options.quick or options.device != "cpu" else 1.0
    classes = (2, 10, 100, 1_000) if options.quick else CLASSES
    batches = (32, 2_048) if options.quick else BATCHES
    updates(budget, classes, batches, options.device)
    answers(budget, batches, options.device)
    if options.device != "cpu":
        sys.exit()
    print("\nreduction over two gloo processes, ms\n")
    print("| classes | ours, one all_reduce | 8-metric collection | ratio |")
    print("|---:|---:|---:|---:|", flush=True)
    mp.spawn(reduction, (29_531,), nprocs=2)
    figures(options.plot)
