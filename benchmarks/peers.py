"""What each peer says of a program of the zoo, used as its own documentation says.

    python benchmarks/peers.py NAME [--every N]

prints one line of JSON a program, bugs and honest twins alike. It runs in the peer's own
environment (`detection.py` makes it), each program in a process of its own. What a peer says has
a kind (its check, rule or invariant) and a text.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import inspect
import json
import logging
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zoo
from zoo import Case, Module

LINTERS = ("torchfix", "torch-preflight")
Said = list[tuple[str, str]]
ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
_CASES = zoo.cases()


# --- in the run -----------------------------------------------------------------------------------


def lightning_alone(case: Case, module: Module) -> Said:
    """What Lightning warns of or raises while the program runs."""
    said: Said = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        zoo.quiet()
        try:
            case.run(module())
        except Exception as error:
            said.append((type(error).__name__, str(error)))
    return said + [
        (re.sub(r"\d+", "N", str(w.message))[:60], str(w.message)) for w in caught
    ]


def guard(case: Case, module: Module) -> Said:
    """A bare `EvalGuard()`, with the keywords that some programs need (`rng="warn"`)."""
    from lightning_evalguard import EvalGuard, EvalGuardError

    watch = EvalGuard(**({"record": None} | case.guard))
    # what stops the run stands in the report
    with warnings.catch_warnings(), contextlib.suppress(EvalGuardError):
        warnings.simplefilter("ignore")
        case.run(module(), watch)
    return [
        (f.check, f"{f.location} `{f.subject}`: {f.fact} ({f.stage}, step {f.step})")
        for f in watch.report.findings
    ]


def torch_audit(case: Case, module: Module) -> Said:
    """`autopatch` with its static and first checks, at every step, as its example for Lightning."""
    import lightning.pytorch as pl
    from torch_audit import autopatch

    class Audit(pl.Callback):
        def on_fit_start(
            self, trainer: pl.Trainer, pl_module: pl.LightningModule
        ) -> None:
            first = trainer.optimizers[0] if trainer.optimizers else None
            self.auditor = autopatch(pl_module, optimizer=first, every_n_steps=1)

    audit = Audit()
    case.run(module(), audit)
    findings = audit.auditor.finish().findings
    return [
        (f.rule_id, f"{f.module_path or ''} {f.entity or ''}: {f.message}")
        for f in findings
    ]


# --- tests of a model -----------------------------------------------------------------------------


def pytest_torch(case: Case, module: Module) -> Said:
    """The inference contract, layouts, a checkpoint, optimizers, a short training."""
    import pytest_torch as peer

    batch = case.batch(module())
    x = batch[0] if isinstance(batch, (list, tuple)) else batch
    training = case.batch(module(), training=True)
    make, step = peer.from_lightning(module)
    report = peer.check_inference_contract(module().eval(), x, raise_on_failure=False)
    said = [(r.name, r.message) for r in report.failures]
    tests: dict[str, Callable[[], Any]] = {
        "layout": lambda: peer.assert_layout_invariant(module().eval(), x),
        "checkpoint": lambda: peer.assert_checkpoint_roundtrip(
            module, x, model=module().eval()
        ),
        "optimizers": lambda: peer.assert_optimizer_coverage(
            (s := make()).model, s.optimizers
        ),
        "training": lambda: peer.run_training(
            make, [training] * 5, step
        ).assert_healthy(),
    }
    return said + [
        (name, text) for name, test in tests.items() for text in _failure(test)
    ]


def _failure(test: Callable[[], Any]) -> list[str]:
    """What a test says where it fails; nothing where the program is none for it."""
    try:
        test()
    except AssertionError as failure:
        return [str(failure)]
    except Exception:
        return []
    return []


def torchtest2(case: Case, module: Module) -> Said:
    """`check_model` with its plugin for Lightning; warnings count as well as failures."""
    import torchtest2 as peer

    model = module()
    x, y = case.batch(model, training=True)[:2]
    report = peer.check_model(model, x, y, plugin="lightning")
    return [(r.name, r.message) for r in report if r.status.name in ("FAIL", "WARN")]


# --- the text alone -------------------------------------------------------------------------------


@functools.cache
def _reports_of_linter(name: str) -> list[tuple[str, int, str, str]]:
    """Path, line, rule and text of each report on the zoo's files."""
    files = sorted(str(path) for path in (ROOT / "tests/models").glob("*.py"))
    if name == "torchfix":
        command = [str(BIN / name), "--select", "ALL", *files]
        pattern = r"^(.*?):(\d+):\d+:? (\w+) (.*)$"
        out = subprocess.run(command, capture_output=True, text=True).stdout
        found = re.findall(pattern, out, re.MULTILINE)
        return [(path, int(line), rule, text) for path, line, rule, text in found]
    command = [str(BIN / name), "check", "-f", "sarif", *files]
    out = subprocess.run(command, capture_output=True, text=True).stdout
    reports = []
    for result in json.loads(out)["runs"][0]["results"]:
        where = result["locations"][0]["physicalLocation"]
        path = str(Path(ROOT, where["artifactLocation"]["uri"].removeprefix("file://")))
        line = where["region"]["startLine"]
        reports.append((path, line, result["ruleId"], result["message"]["text"]))
    return reports


def _lint(name: str, case: Case, module: Module) -> Said:
    """The reports that stand within the program's class."""
    lines, first = inspect.getsourcelines(module)
    source = inspect.getsourcefile(module)
    return [
        (rule, f"{path}:{line} {text}")
        for path, line, rule, text in _reports_of_linter(name)
        if os.path.samefile(path, str(source)) and first <= line < first + len(lines)
    ]


# --- from a good run ------------------------------------------------------------------------------

_SCRIPT = """import torch
import sys
sys.path.insert(0, {folder!r})
import zoo
zoo.quiet()
case = next(c for c in zoo.cases() if c.name == {case!r})
torch.manual_seed({seed})
model = {program}()
case.run(model)
"""


def _traincheck(folder: str, tool: str, *arguments: str) -> None:
    command = [str(BIN / f"traincheck-{tool}"), *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        last = done.stderr.strip().splitlines() or [""]
        raise RuntimeError(f"traincheck-{tool}: {last[-1][:150]}")


def _trace(folder: str, name: str, case: Case, module: Module, seed: int) -> None:
    program = (
        "case.module"
        if module is case.module
        else f"case.twins[{case.twins.index(module)}]"
    )
    text = _SCRIPT.format(
        folder=str(Path(__file__).parent), case=case.name, seed=seed, program=program
    )
    Path(folder, f"{name}.py").write_text(text)
    arguments = (
        "--pyscript",
        f"{name}.py",
        "--models-to-track",
        "model",
        "--output-dir",
        name,
    )
    _traincheck(folder, "collect", *arguments)


def traincheck(case: Case, module: Module) -> Said:
    """Invariants of the first honest twin, checked on the program with another seed."""
    with tempfile.TemporaryDirectory() as folder:
        _trace(folder, "reference", case, case.twins[0], seed=0)
        _traincheck(folder, "infer", "-f", "reference", "-o", "invariants.json")
        _trace(folder, "target", case, module, seed=1)
        _traincheck(folder, "check", "-f", "target", "-i", "invariants.json")
        said: Said = []
        for path in Path(folder).glob("traincheck_checker_results*/**/failed*.log"):
            for text in _objects(path.read_text()):
                invariant = text["invariant"]
                kind = invariant.get("text_description") or json.dumps(invariant)
                said.append((kind[:200], json.dumps(text)[:2000]))
        return said


def _objects(text: str) -> list[dict[str, Any]]:
    """The JSON objects that stand one after the other in a text."""
    decoder, objects, at = json.JSONDecoder(), [], 0
    while text[at:].strip():
        at += len(text[at:]) - len(text[at:].lstrip())
        value, at = decoder.raw_decode(text, at)
        objects += value if isinstance(value, list) else [value]
    return objects


PEERS: dict[str, Callable[[Case, Module], Said]] = {
    "lightning": lightning_alone,
    "pytest-torch": pytest_torch,
    "torchtest2": torchtest2,
    "torch-audit": torch_audit,
    "traincheck": traincheck,
    **{name: functools.partial(_lint, name) for name in LINTERS},
    "guard": guard,
}
SECONDS = {"traincheck": 600}


def _ask(peer: str, number: int, twin: int) -> dict[str, Any]:
    """What a peer says of a bug (twin -1) or of one of its twins."""
    case = _CASES[number]
    module = case.module if twin < 0 else case.twins[twin]
    answer: dict[str, Any] = {
        "case": case.name,
        "twin": module.__name__ if twin >= 0 else None,
    }
    zoo.seed()
    zoo.quiet()
    try:
        return answer | {"said": PEERS[peer](case, module)}
    except Exception as error:
        return answer | {"said": [], "failed": f"{type(error).__name__}: {error}"[:200]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("--every", type=int, default=1, help="each N-th bug alone")
    options = parser.parse_args()
    logging.disable(logging.ERROR)
    twins = 1 if options.peer == "traincheck" else 99
    jobs = [
        (options.peer, number, twin)
        for number, case in enumerate(_CASES)
        if number % options.every == 0
        for twin in range(-1, min(twins, len(case.twins)))
    ]
    if options.peer in LINTERS:
        _reports_of_linter(options.peer)  # once, for all the processes
    # a process for each: some programs change what the next one would find
    with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as pool:
        for job in jobs:
            waiting = pool.apply_async(_ask, job)
            print(json.dumps(waiting.get(SECONDS.get(options.peer, 120))), flush=True)


if __name__ == "__main__":
    main()
