"""The confusion matrix beside torchmetrics, torcheval and scikit-learn: equal numbers, and time.

    python benchmarks/confusion.py [--device cuda] [--short]

Each update is timed in turn with the others, call by call, and the median of the ratios is shown:
what else the machine does meanwhile falls on all alike. Ratios above 1 are in our favour. "Equal"
compares every matrix with scikit-learn's, and accuracy, macro F1 and Matthews' coefficient of ours
with its scores.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import sklearn.metrics as skm
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from results import flags, publish, versions
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics import classification as tm

from lightning_evalguard.confusion.figure import figure, png
from lightning_evalguard.confusion.matrix import ConfusionMatrix

CLASSES = (2, 10, 100, 1_000, 10_000)
BATCHES = (32, 2_048, 65_536)
LARGEST = 2**26  # scores in one batch; beyond, labels are compared
OTHERS = (
    "torchmetrics matrix",
    "8-metric collection",
    "torcheval matrix",
    "scikit-learn",
)
Row = list[Any]


def collection(classes: int) -> MetricCollection:
    """The eight that most projects log."""
    kinds = (
        tm.MulticlassAccuracy, tm.MulticlassPrecision, tm.MulticlassRecall, tm.MulticlassF1Score,
        tm.MulticlassSpecificity, tm.MulticlassMatthewsCorrCoef, tm.MulticlassCohenKappa,
        tm.MulticlassConfusionMatrix,
    )  # fmt: skip
    return MetricCollection([kind(classes, validate_args=False) for kind in kinds])


def clock(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def in_turn(
    calls: dict[str, Callable[[], Any]], budget: float
) -> dict[str, list[float]]:
    """Seconds of each call, in another order each round; the first rounds warm up."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    rounds = 0
    end = time.perf_counter() + budget
    while rounds < 6 or (time.perf_counter() < end and rounds < 300):
        turn = rounds % len(names)
        for name in (*names[turn:], *names[:turn]):
            times[name].append(clock(calls[name]))
        rounds += 1
    return {name: took[2:] for name, took in times.items()}


def updates_of(
    classes: int, preds: Tensor, target: Tensor
) -> dict[str, Callable[[], Any]]:
    """What counts a batch, by name."""
    scored = preds.dim() == 2
    kind = "logits" if scored else "labels"
    ours = ConfusionMatrix(classes, preds_are=kind, full=classes <= 2048).to(
        preds.device
    )
    made: dict[str, Callable[[], Any]] = {"ours": lambda: ours.update(preds, target)}
    theirs = tm.MulticlassConfusionMatrix(classes, validate_args=False).to(preds.device)
    made["torchmetrics matrix"] = lambda: theirs.update(preds, target)
    # at 10,000 classes its matrices are 800 MB each, three of them
    if classes < 10_000:
        many = collection(classes).to(preds.device)
        made["8-metric collection"] = lambda: many.update(preds, target)
    if classes <= 1_000 and importlib.util.find_spec("torcheval"):
        from torcheval.metrics import MulticlassConfusionMatrix

        matrix = MulticlassConfusionMatrix(classes, device=preds.device)
        made["torcheval matrix"] = lambda: matrix.update(preds, target)
    if classes <= 1_000:

        def sklearn() -> Any:
            labels = preds.argmax(1) if scored else preds
            return skm.confusion_matrix(
                target.cpu(), labels.cpu(), labels=range(classes)
            )

        made["scikit-learn"] = sklearn
    return made


def equal(classes: int, preds: Tensor, target: Tensor) -> str:
    """Whether all of them count the same, and the scores of ours are scikit-learn's."""
    if classes > 1_000:
        return ""
    labels = (preds.argmax(1) if preds.dim() == 2 else preds).cpu()
    truth = skm.confusion_matrix(target.cpu(), labels, labels=range(classes))
    ours = ConfusionMatrix(
        classes, preds_are="logits" if preds.dim() == 2 else "labels"
    )
    ours = ours.to(preds.device)
    ours.update(preds, target)
    theirs = tm.MulticlassConfusionMatrix(classes).to(preds.device)
    theirs.update(preds, target)
    matrices = [ours.result().matrix, theirs.compute()]
    scores = ours.result().scores
    expected = {
        "accuracy": skm.accuracy_score(target.cpu(), labels),
        "f1_macro": skm.f1_score(
            target.cpu(), labels, average="macro", zero_division=0
        ),
        "mcc": skm.matthews_corrcoef(target.cpu(), labels),
    }
    same = all(
        (torch.as_tensor(m).cpu() == torch.as_tensor(truth)).all() for m in matrices
    )
    close = all(math.isclose(scores[k], v, abs_tol=1e-6) for k, v in expected.items())
    return "equal" if same and close else "NOT equal"


def updates(options: Any) -> list[Row]:
    classes = CLASSES[1:3] if options.short else CLASSES
    batches = BATCHES[:1] if options.short else BATCHES
    rows = []
    for c in classes:
        for n in batches:
            scored = n * c <= LARGEST
            preds = torch.randn(n, c) if scored else torch.randint(c, (n,))
            preds, target = (
                preds.to(options.device),
                torch.randint(c, (n,), device=options.device),
            )
            with torch.inference_mode():
                times = in_turn(
                    updates_of(c, preds, target), 0.1 if options.short else 1.0
                )
            mine = times["ours"]
            row = [f"batch of {n:,}{'' if scored else ' labels'}", f"{c:,}"]
            row.append(f"{1e3 * statistics.median(mine):.3f}")
            for name in OTHERS:
                if name not in times:
                    row.append("-")
                    continue
                pairs = zip(times[name], mine, strict=True)
                row.append(f"{statistics.median(o / m for o, m in pairs):.2f}x")
            rows.append([*row, equal(c, preds, target)])
    return rows


def reduction(rank: int, port: int, out: Any) -> None:
    """One of two processes: a single all_reduce, and what eight metrics do."""
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    for c in (10, 100, 1_000):
        preds, target = torch.randint(c, (256,)), torch.randint(c, (256,))
        ours, theirs = ConfusionMatrix(c, preds_are="labels"), collection(c)
        ours.update(preds, target)
        theirs.update(preds, target)

        def once(state: ConfusionMatrix = ours) -> None:
            dist.all_reduce(state.counts.clone())

        def collected(many: MetricCollection = theirs) -> None:
            for metric in many.values():
                # or the second call returns the first one's value
                metric._computed = None
            many.compute()

        mine, times = [], []
        for _ in range(15):
            mine.append(clock(once))
            times.append(clock(collected))
        if rank == 0:
            a, b = (statistics.median(x[2:]) * 1e3 for x in (mine, times))
            row = [
                "reduction, two processes",
                f"{c:,}",
                f"{a:.2f}",
                "-",
                f"{b / a:.1f}x",
            ]
            out.put([*row, "-", "-", ""])
    dist.destroy_process_group()


def reductions() -> list[Row]:
    out = mp.get_context("spawn").SimpleQueue()
    mp.spawn(reduction, (29_531, out), nprocs=2)
    rows = []
    while not out.empty():
        rows.append(out.get())
    return rows


def figures(short: bool) -> list[Row]:
    rows = []
    for c in (10,) if short else (10, 100, 1_000):
        draw = torch.Generator().manual_seed(0)
        target = torch.randint(c, (50_000,), generator=draw)
        wrong = torch.randint(c, (50_000,), generator=draw)
        preds = torch.where(torch.rand(50_000, generator=draw) < 0.8, target, wrong)
        ours = ConfusionMatrix(c, preds_are="labels")
        ours.update(preds, target)
        result = ours.result()
        mine = statistics.median(
            clock(lambda r=result: png(figure(r, "val"))) for _ in range(3)
        )
        other = "-"
        if c <= 10:  # 14 s at 100 classes
            theirs = tm.MulticlassConfusionMatrix(c)
            theirs.update(preds, target)
            other = f"{clock(functools.partial(_plot, theirs)) / mine:.1f}x"
        rows.append(
            ["figure, as PNG", f"{c:,}", f"{1e3 * mine:.0f}", other, "-", "-", "-", ""]
        )
    return rows


def _plot(metric: Any) -> None:
    png(metric.plot()[0])


def main() -> None:
    parser = flags(__doc__)
    parser.add_argument(
        "--device", default="cpu", help="another than the CPU: updates alone"
    )
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = updates(options)
    if options.device == "cpu" and not options.short:
        rows += reductions()
    if options.device == "cpu":
        rows += figures(options.short)
    columns = ["what", "classes", "ours, ms", *OTHERS, "numbers"]
    chosen = [r for r in rows if r[0].startswith(("batch of 2,048", "reduction"))]
    notes = []
    if not importlib.util.find_spec("torcheval"):
        notes.append("torcheval is not installed: pip install torcheval.")
    publish(
        "confusion", options, columns, rows, raw=rows, notes=notes,
        installed=versions("torchmetrics", "torcheval", "scikit-learn"),
        small=(columns, chosen or rows),
    )  # fmt: skip


if __name__ == "__main__":
    main()
