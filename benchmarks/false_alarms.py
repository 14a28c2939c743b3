"""Does the guard cry wolf? Every architecture the installed libraries ship, with it and without.

Each architecture is wrapped in a LightningModule and run in ``fit`` (with a validation) and in
``validate``. What is true of it is proved apart, on the bare model in eval mode: it is random if
two runs differ or a generator moved, it writes if a parameter or buffer changed, it mixes samples
if half a batch gives other answers. A finding without its proof is a false alarm. Outputs, weights,
generators and logged values must be the same bit for bit with the guard and without.

    python benchmarks/false_alarms.py                   # everything; resumes where it stopped
    python benchmarks/false_alarms.py --sample 40       # two minutes
    python benchmarks/false_alarms.py --only 'transformers/vit*'
    python benchmarks/false_alarms.py --table           # of the results that there are
"""

from __future__ import annotations

import argparse
import collections
import fnmatch
import gc
import hashlib
import json
import logging
import random
import re
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from architectures import Architecture, architectures, call, tensors
from results import publish, versions
from torch import Tensor, nn
from torch.utils.data import DataLoader

# where packages and this lie
_HERE = re.compile(r"\S*/(?:site-packages/|(?=benchmarks/))")
CHECKS = ("modes", "grad", "state", "stochastic", "batch")
# both sets are one batch here; waits and draws are true ones
PLANTED = {"data", "sync", "rng"}
ACCELERATOR = "cpu"
PRECISION: Any = "32-true"


# --- one model, many times ----------------------------------------------------------------------


class Fresh:
    """The same model each time it is called: some libraries leave weights uninitialised."""

    def __init__(self, architecture: Architecture) -> None:
        self._build = architecture.build
        self._kept: dict[str, Tensor] = {}

    def __call__(self) -> tuple[nn.Module, Any]:
        seed(0)
        model, batch = self._build()
        first = not self._kept
        for name, t in (*model.named_parameters(), *model.named_buffers()):
            if first and t.is_floating_point():
                t.data.nan_to_num_(0.0, 0.0, 0.0).clamp_(-1e3, 1e3)
            if first:
                self._kept[name] = t.detach().clone()
            elif not torch.equal(t, self._kept[name]):
                t.data.copy_(self._kept[name])
        return model, batch


# --- what is true of a bare model ---------------------------------------------------------------


def seed(n: int) -> None:
    torch.manual_seed(n)
    random.seed(n)
    np.random.seed(n)


def digest(found: list[Tensor]) -> str:
    """Of the bytes of some tensors; one NaN is as good as another, whose sign means nothing."""
    h = hashlib.blake2b(digest_size=12)
    for t in found:
        plain = t.detach().to_dense() if t.layout != torch.strided else t.detach()
        plain = plain.resolve_conj().resolve_neg().cpu().contiguous()
        if plain.is_floating_point() and plain.element_size() > 1:
            plain = plain.masked_fill(plain.isnan(), torch.nan)
        h.update(f"{plain.dtype}{tuple(plain.shape)}".encode())
        h.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    return h.hexdigest()


def generators() -> str:
    """Digest of the states of the three global generators."""
    h = hashlib.blake2b(torch.get_rng_state().numpy().tobytes(), digest_size=12)
    if torch.cuda.is_initialized():
        h.update(torch.cuda.get_rng_state().numpy().tobytes())
    h.update(repr(random.getstate()).encode())
    name, keys, *rest = np.random.get_state()
    h.update(keys.tobytes() + repr((name, rest)).encode())
    return h.hexdigest()


def contents(model: nn.Module) -> dict[str, str]:
    """Digest of each parameter and buffer."""
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: digest([t]) for name, t in named}


def close(a: Tensor, b: Tensor) -> bool:
    if not a.is_floating_point():
        return True
    a, b = a.double().nan_to_num(), b.double().nan_to_num()
    return torch.allclose(a, b, rtol=1e-2, atol=1e-3 * max(1.0, a.abs().max().item()))


def halves(batch: Any) -> list[tuple[Any, slice]]:
    """The two halves of a batch whose tensors all have samples first."""
    values = list(batch.values()) if isinstance(batch, dict) else list(batch)
    sizes = {v.shape[0] if isinstance(v, Tensor) and v.dim() else 0 for v in values}
    if len(sizes) != 1 or (n := sizes.pop()) < 2:
        return []
    rows = slice(0, n // 2), slice(n // 2, n)
    if isinstance(batch, dict):
        return [({name: t[r] for name, t in batch.items()}, r) for r in rows]
    return [(tuple(t[r] for t in batch), r) for r in rows]


def truth(fresh: Fresh) -> dict[str, Any]:
    """What an architecture does in eval mode, with the proof in words."""
    proof: dict[str, str] = {}
    model, batch = fresh()
    model.eval()
    before, parts = contents(model), dict(model.named_modules())
    written = [(t, t._version) for t in tensors(batch)]
    seed(1)
    drew = generators()
    with torch.no_grad():
        out = call(model, batch)
        graph = torch.is_grad_enabled() or any(t.requires_grad for t in tensors(out))
    moved = generators() != drew
    after = contents(model)
    if changed := [n for n in after if before.get(n) != after[n]] + list(
        before.keys() - after
    ):
        proof["state"] = f"changed: {', '.join(changed[:3])}"
    elif replaced := [n for n, m in model.named_modules() if parts.get(n) is not m]:
        proof["state"] = f"modules replaced: {', '.join(replaced[:3])}"
        # Lightning puts modes back by name: what came meanwhile stays in eval mode
        if new := [
            n for n, m in model.named_modules() if n not in parts and not m.training
        ]:
            proof["modes"] = f"never put back: {', '.join(new[:3])}"
    elif any(t._version != version for t, version in written):
        proof["state"] = "the batch was written in place"
    if woken := [n for n, m in model.named_modules() if m.training]:
        proof["modes"] = f"in train mode: {', '.join(woken[:3])}"
    if graph:
        proof["grad"] = "an output requires grad"

    again, batch = fresh()
    again.eval()
    seed(2)
    with torch.no_grad():
        other = call(again, batch)
    if digest(tensors(out)) != digest(tensors(other)):
        proof["stochastic"] = "two runs differ"
    elif moved:
        proof["stochastic"] = "a generator moved"

    for part, rows in halves(batch) if "stochastic" not in proof else ():
        again, _ = fresh()
        try:
            with torch.no_grad():
                few = tensors(call(again.eval(), part))
        except Exception:
            few = []
        for a, b in zip(tensors(out), few, strict=False):
            by_sample = a.dim() and b.dim() and b.shape == a[rows].shape
            if by_sample and not close(a[rows], b):
                proof["batch"] = "half a batch gives other answers"
    return proof


# --- under Lightning ----------------------------------------------------------------------------


class Wrapped(pl.LightningModule):
    """An architecture under training; `idle` where it cannot be trained on its inputs alone."""

    def __init__(self, model: nn.Module, idle: bool) -> None:
        super().__init__()
        self.model, self.idle = model.train(), idle
        self.scale = nn.Parameter(torch.ones(()))

    def loss(self, out: Any) -> Tensor:
        values = [
            t.float().nan_to_num().mean() for t in tensors(out) if t.is_floating_point()
        ]
        return torch.stack(values).mean() * self.scale

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.scale.square() if self.idle else self.loss(call(self.model, batch))

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        out = call(self.model, batch)
        self.log("val_loss", self.loss(out), batch_size=1)
        return {"out": out}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


class Recorder(pl.Callback):
    """What came out of each validation batch, and where the generators stood."""

    def __init__(self) -> None:
        self.outputs: list[str] = []

    def on_validation_batch_end(
        self, trainer: Any, module: Any, outputs: Any, *_: Any
    ) -> None:
        self.outputs += [digest(tensors(outputs["out"])), generators()]


def guard() -> Any:
    from lightning_evalguard import EvalGuard

    said: dict[str, Any] = dict.fromkeys(CHECKS, "warn")
    return EvalGuard(**said)


def run(
    fresh: Fresh, entry: str, guarded: bool, idle: bool = False
) -> tuple[dict[str, Any], list[Any], list[str]]:
    """Everything that must not depend on the guard; its findings; its notes."""
    model, batch = fresh()
    module, recorder = Wrapped(model, idle), Recorder()
    watch = guard() if guarded else None
    loader = DataLoader([batch, batch], batch_size=None)
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            accelerator=ACCELERATOR, devices=1, max_epochs=1, default_root_dir=folder,
            precision=PRECISION,
            logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
            callbacks=[recorder, *([watch] if watch else [])],
        )  # fmt: skip
        seed(3)
        if entry == "fit":
            trainer.fit(module, loader, loader)
        else:
            trainer.validate(module, loader, verbose=False)
    result = {
        "outputs": recorder.outputs,
        "weights": digest([*contents_of(module)]),
        "generators": generators(),
        "logged": {k: float(v).hex() for k, v in trainer.callback_metrics.items()},
    }
    report = watch.report if watch else None
    return (
        result,
        list(report.findings) if report else [],
        list(report.notes) if report else [],
    )


def contents_of(model: nn.Module) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    def late(*_: Any) -> None:
        raise TimeoutError(f"took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def one_line(e: BaseException) -> str:
    return f"{type(e).__name__}: {' '.join(str(e).split())[:200]}"


def examine(
    architecture: Architecture, with_guard: bool, timeout: int
) -> dict[str, Any]:
    """One line of the results."""
    record: dict[str, Any] = {"name": architecture.name}
    began = time.perf_counter()
    try:
        with at_most(timeout):
            fresh = Fresh(architecture)
            record["proof"] = truth(fresh)
            for entry in ("fit", "validate"):
                record[entry] = _compare(fresh, entry, with_guard)
    except Exception as e:
        record["failed"] = one_line(e)
    record["seconds"] = round(time.perf_counter() - began, 1)
    return record


def _compare(fresh: Fresh, entry: str, with_guard: bool) -> dict[str, Any]:
    idle = False
    try:
        bare, _, _ = run(fresh, entry, guarded=False)
    except TimeoutError:
        raise
    except Exception:
        if entry != "fit":
            raise
        idle = True  # its training needs labels
        bare, _, _ = run(fresh, entry, guarded=False, idle=True)
    compared: dict[str, Any] = {"idle": idle}
    if with_guard:
        try:
            guarded, findings, notes = run(fresh, entry, guarded=True, idle=idle)
        except TimeoutError:
            raise
        except Exception as e:
            return compared | {"error": one_line(e)}
        # the guard's own scores are logged beside the model's
        guarded["logged"] = {
            k: v for k, v in guarded["logged"].items() if k in bare["logged"]
        }
        compared["differs"] = [what for what in bare if bare[what] != guarded[what]]
        if compared["differs"]:
            again, _, _ = run(fresh, entry, guarded=False, idle=idle)
            compared["repeatable"] = again == bare
        compared["findings"] = [
            {
                "check": f.check,
                "certain": f.certain,
                "location": f.location,
                "subject": f.subject,
                "fact": f.fact,
            }
            for f in findings
        ]
        compared["notes"] = notes
    return compared


# --- the table ------------------------------------------------------------------------------------


def verdict(record: dict[str, Any]) -> dict[str, set[str]]:
    """Checks that spoke, of these the ones that were wrong to, and the ones that should have."""
    runs = [record[entry] for entry in ("fit", "validate")]
    spoke = {f["check"] for r in runs for f in r.get("findings", ())}
    spoke -= PLANTED
    true = set(record["proof"])
    return {"spoke": spoke, "false": spoke - true, "missed": true - spoke}


def table(
    records: list[dict[str, Any]], with_guard: bool
) -> tuple[list[str], list[list[str]]]:
    """Columns and rows, one a library."""
    by_library = collections.defaultdict(list)
    for record in records:
        by_library[record["name"].split("/")[0]].append(record)
    head = [
        "library",
        "architectures",
        "clean in eval",
        "random",
        "write",
        "mix samples",
    ]
    if with_guard:
        head += [
            "silent",
            "found",
            "missed",
            "false alarms",
            "not bit-exact",
            "guard failed",
        ]
    rows = []
    total: collections.Counter[str] = collections.Counter()
    for library, theirs in by_library.items():
        row = _row([r for r in theirs if "failed" not in r])
        total.update(row)
        rows.append([library, *(str(row[h]) for h in head[1:])])
    return head, [*rows, ["all", *(str(total[h]) for h in head[1:])]]


def _row(built: list[dict[str, Any]]) -> collections.Counter[str]:
    row: collections.Counter[str] = collections.Counter()
    for record in built:
        said, proof = verdict(record), record["proof"]
        runs = [record["fit"], record["validate"]]
        row["architectures"] += 1
        row["clean in eval"] += not proof
        row["random"] += "stochastic" in proof
        row["write"] += "state" in proof
        row["mix samples"] += "batch" in proof
        row["silent"] += not said["spoke"]
        row["found"] += bool(proof) and not said["missed"]
        row["missed"] += bool(said["missed"])
        row["false alarms"] += bool(said["false"])
        row["not bit-exact"] += any(r.get("differs") and r["repeatable"] for r in runs)
        row["guard failed"] += any("error" in r for r in runs)
    return row


def details(records: list[dict[str, Any]]) -> Iterator[str]:
    """One line for each architecture that is not plainly clean and silent."""
    for record in records:
        if "failed" in record:
            continue
        said = verdict(record)
        runs = {entry: record[entry] for entry in ("fit", "validate")}
        differs = {e: r["differs"] for e, r in runs.items() if r.get("differs")}
        errors = {e: r["error"] for e, r in runs.items() if "error" in r}
        unrepeatable = [e for e, r in runs.items() if r.get("repeatable") is False]
        if not (record["proof"] or said["spoke"] or differs or errors):
            continue
        words = [f"{check}: {why}" for check, why in record["proof"].items()]
        yield f"{record['name']}: {'; '.join(words) or 'clean'}"
        for name in ("false", "missed"):
            if said[name]:
                yield f"    {name.upper()}: {', '.join(sorted(said[name]))}"
        seen = set()
        for entry, r in runs.items():
            for f in r.get("findings", ()):
                line = (
                    f"[{f['check']}] {f['location']} in `{f['subject']}`: {f['fact']}"
                )
                if line not in seen:
                    seen.add(line)
                    yield f"    {entry}: {line}"
        if differs:
            yield f"    NOT BIT-EXACT: {differs}{' (nor is the bare run)' if unrepeatable else ''}"
        if errors:
            yield f"    GUARD FAILED: {errors}"


# --- the command --------------------------------------------------------------------------------


def chosen(args: argparse.Namespace) -> list[Architecture]:
    every = architectures()
    if args.only:
        every = [a for a in every if any(fnmatch.fnmatch(a.name, p) for p in args.only)]
    if args.sample and args.sample < len(every):
        every = sorted(
            random.Random(0).sample(every, args.sample), key=lambda a: a.name
        )
    part, parts = map(int, args.shard.split("/"))
    return every[part - 1 :: parts]


def main() -> None:
    global ACCELERATOR, PRECISION
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", nargs="+", metavar="PATTERN", help="shell patterns on names"
    )
    parser.add_argument(
        "--sample", type=int, metavar="N", help="N of them, the same each time"
    )
    parser.add_argument(
        "--shard", default="1/1", metavar="K/N", help="the K-th of N parts"
    )
    parser.add_argument(
        "--accelerator", default="cpu", help="where Lightning runs them"
    )
    parser.add_argument("--precision", default="32-true", help="as of the Trainer")
    parser.add_argument("--out", type=Path, default=Path("false_alarms.jsonl"))
    parser.add_argument("--fresh", action="store_true", help="forget earlier results")
    parser.add_argument(
        "--timeout", type=int, default=120, help="seconds for one architecture"
    )
    parser.add_argument("--table", action="store_true", help="run nothing")
    parser.add_argument(
        "--results", type=Path, help="folder of the JSON; none for a sample"
    )
    parser.add_argument(
        "--without-guard", action="store_true", help="only what is true of them"
    )
    args = parser.parse_args()
    ACCELERATOR = args.accelerator
    PRECISION = args.precision

    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    torch.set_num_threads(1)
    if args.fresh:
        args.out.unlink(missing_ok=True)
    done = {}
    if args.out.exists():
        done = {
            r["name"]: r for r in map(json.loads, args.out.read_text().splitlines())
        }
    todo = [] if args.table else chosen(args)
    with args.out.open("a") as out:
        for i, architecture in enumerate(todo):
            if architecture.name in done:
                continue
            record = examine(architecture, not args.without_guard, args.timeout)
            done[architecture.name] = record
            out.write(json.dumps(record) + "\n")
            out.flush()
            gc.collect()
            print(
                f"{i + 1}/{len(todo)} {architecture.name} {_short(record)}",
                file=sys.stderr,
            )
    records = list(done.values()) if args.table else [done[a.name] for a in todo]
    print("\n".join(details(records)))
    failed = collections.Counter(
        r["name"].split("/")[0] for r in records if "failed" in r
    )
    columns, rows = table(records, not args.without_guard)
    built = len(records) - failed.total()
    notes = [
        f"{len(records)} architectures, {built} of which can be built and run on a generic input; "
        "a finding without its proof on the bare model is a false alarm."
    ]
    part = bool(args.sample or args.only or args.without_guard)
    said = [_HERE.sub("", line) for line in details(records)]
    publish(
        "false_alarms", argparse.Namespace(short=part, out=args.results), columns, rows,
        raw={"cannot be run": dict(failed), "details": said}, notes=notes,
        installed=versions("transformers", "torch-geometric", "timm"),
    )  # fmt: skip


def _short(record: dict[str, Any]) -> str:
    if "failed" in record:
        return f"- {record['failed'][:100]}"
    said = verdict(record)
    words = [
        f"{k}={','.join(sorted(v))}" for k, v in said.items() if v and k != "missed"
    ]
    words += [f"proof={','.join(record['proof'])}"] if record["proof"] else []
    for entry in ("fit", "validate"):
        words += [
            f"{entry}: {record[entry][k]}"
            for k in ("error", "differs")
            if record[entry].get(k)
        ]
    return f"{' '.join(words) or 'clean, silent'} ({record['seconds']} s)"


if __name__ == "__main__":
    main()
