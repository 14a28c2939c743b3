"""Compiled modules under the whole default guard: as many frames and graph breaks as without it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from lightning_evalguard import EvalGuard
from models import modes as zoo

Make = Callable[..., pl.Trainer]
BACKENDS = ["eager", "aot_eager"]


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
        trainer(callbacks=guards, max_epochs=2).fit(module, zoo.loader(), zoo.loader())
        return [p.detach() for p in module.parameters()]

    guard = EvalGuard()
    results: list[list[torch.Tensor]] = []
    bare = counted(lambda: results.append(weights([])))
    guarded = counted(lambda: results.append(weights([guard])))
    assert guarded == bare
    assert guard.report.findings == []
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_validation_alone_compiles_as_often_with_the_guard(backend: str, trainer: Make) -> None:
    def run(guards: list[pl.Callback]) -> None:
        module = compiled(backend, part=True)
        trainer(callbacks=guards).validate(module, zoo.loader(), verbose=False)

    assert counted(lambda: run([EvalGuard()])) == counted(lambda: run([]))
