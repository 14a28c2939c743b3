"""Compiled modules under the whole default guard: as many frames and graph breaks as without it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from lightning_evalguard import EvalGuard
from models import modes as zoo

Make = Callable[..., pl.Trainer]
# Dynamo of torch 2.14 reads it of what one compiled module gives another, without a guard too.
pytestmark = pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf"
)
BACKENDS = ["eager", "aot_eager"]
QUIET = {
    "accelerator": "cpu", "max_epochs": 2, "logger": False, "enable_checkpointing": False,
    "enable_progress_bar": False, "enable_model_summary": False,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def compiled(backend: str, part: bool) -> pl.LightningModule:
    torch.manual_seed(0)
    module = zoo.Honest()
    if part:
        module.backbone = torch.compile(module.backbone, backend=backend)
    else:
        module.backbone.compile(backend=backend)
        module.head.compile(backend=backend)
    return module


def validation() -> Any:
    """Other samples than those of training."""
    return zoo.loader(seed=1)


def counted(run: Callable[[], Any]) -> dict[str, Any]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    run()
    counters = torch._dynamo.utils.counters
    return {
        "frames": dict(counters["frames"]),
        "graphs": counters["stats"]["unique_graphs"],
        "breaks": dict(counters["graph_break"]),
    }


@pytest.mark.parametrize("part", [True, False], ids=["wrapped", "in place"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_guard_adds_no_frame_no_graph_and_no_break(
    backend: str, part: bool, trainer: Make
) -> None:
    def weights(guards: list[pl.Callback]) -> list[torch.Tensor]:
        module = compiled(backend, part)
        trainer(callbacks=guards, max_epochs=2).fit(
            module, zoo.loader(), zoo.loader(seed=1)
        )
        return [p.detach() for p in module.parameters()]

    guard = EvalGuard()
    results: list[list[torch.Tensor]] = []
    bare = counted(lambda: results.append(weights([])))
    guarded = counted(lambda: results.append(weights([guard])))
    assert guarded == bare
    assert guard.report.findings == []
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("part", ["wrapped", "in place"])
def test_inductor_compiles_as_often_with_the_guard(part: str, tmp_path: Path) -> None:
    """In processes and caches of their own: within one, inductor's counts do not repeat."""
    said = []
    for guard in ("", "EvalGuard()"):
        code = (
            "import json, sys\n"
            "from test_compile import *\n"
            "def run():\n"
            f"    module = compiled('inductor', {part == 'wrapped'})\n"
            f"    trainer = pl.Trainer(**QUIET, callbacks=[{guard}])\n"
            "    trainer.fit(module, zoo.loader(), validation())\n"
            "print(json.dumps(counted(run)))\n"
        )
        cache = str(tmp_path / f"cache{guard}")
        ran = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code],
            env={
                **os.environ,
                "TORCHINDUCTOR_CACHE_DIR": cache,
                "OMP_NUM_THREADS": "1",
            },
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
        said.append(ran.stdout.splitlines()[-1])
    assert said[0] == said[1]
    assert '"breaks": {}' in said[1]


@pytest.mark.parametrize("backend", BACKENDS)
def test_validation_alone_compiles_as_often_with_the_guard(
    backend: str, trainer: Make
) -> None:
    def run(guards: list[pl.Callback]) -> None:
        module = compiled(backend, part=True)
        trainer(callbacks=guards).validate(module, zoo.loader(), verbose=False)

    assert counted(lambda: run([EvalGuard()])) == counted(lambda: run([]))
