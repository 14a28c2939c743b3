"""Every program of the zoo runs silently under Lightning alone; the guard finds it, and only it."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from models import PROGRAMS, Classifier, Program

pytestmark = [
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning"),
]
MakeTrainer = Callable[..., pl.Trainer]

NEAR_MISSES = [(program, near) for program in PROGRAMS for near in program.near_misses]
found = pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.module.__name__)
spared = pytest.mark.parametrize(
    ("program", "near"), NEAR_MISSES, ids=[near.__name__ for _, near in NEAR_MISSES]
)


@pytest.fixture(autouse=True)
def _process_as_it_was() -> Iterator[None]:
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    yield
    torch.set_default_dtype(torch.float32)
    torch.use_deterministic_algorithms(False)
    torch.set_float32_matmul_precision("highest")
    torch.set_grad_enabled(True)


def run(
    program: Program, module: type[Classifier], trainer: MakeTrainer, *callbacks: Any, **kwargs: Any
) -> Classifier:
    """Run `module` as `program` is run."""
    model = module()
    made = trainer(callbacks=list(callbacks), **(program.trainer | kwargs))
    quiet = {"verbose": False} if program.entry in ("validate", "test") else {}
    getattr(made, program.entry)(model, **quiet)
    return model


# --- under Lightning alone ------------------------------------------------------------------------


@found
def test_a_program_runs_silently_under_lightning_alone(
    program: Program, trainer: MakeTrainer, capfd: pytest.CaptureFixture[str]
) -> None:
    run(program, program.module, trainer)
    assert capfd.readouterr() == ("", "")


@spared
def test_a_near_miss_runs_silently_under_lightning_alone(
    program: Program,
    near: type[Classifier],
    trainer: MakeTrainer,
    capfd: pytest.CaptureFixture[str],
) -> None:
    run(program, near, trainer)
    assert capfd.readouterr() == ("", "")


def test_every_program_is_complete() -> None:
    names = Counter(m.__name__ for p in PROGRAMS for m in (p.module, *p.near_misses))
    assert [name for name, n in names.items() if n > 1] == []
    for program in PROGRAMS:
        assert program.module.__doc__
        assert program.near_misses, program.module.__name__
        assert program.location


def test_the_zoo_is_large_enough() -> None:
    assert len(PROGRAMS) > 80
    assert {p.check for p in PROGRAMS} == {"stochastic", "state", "grad", "batch", "rng"}
