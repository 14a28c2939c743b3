"""A quiet Trainer on the CPU, for every test that trains."""

from __future__ import annotations

import gc
import logging
import os
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import lightning.pytorch as pl
import numpy as np
import pytest
import torch

# What Lightning says of every run on a laptop. Everything else is an error, ours included.
_NOISE = (
    r".*does not have many workers which may be a bottleneck",
    r"The number of training batches .* is smaller than the logging interval",
    r"Found .* module\(s\) in eval mode",  # names nothing; the modes check does
    r"Detected KeyboardInterrupt",  # a warning up to Lightning 2.4
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning's own pytree call
    # torch 2.4 and 2.5, of each checkpoint that Lightning reads
    r"You are using `torch\.load` with `weights_only=False`",
    # Of the tests' own calls; a FutureWarning from torch 2.14 on, before that a DeprecationWarning.
    r"`torch\.jit\.\w+` is deprecated",
    r"`torch\.jit\.\w+` is not supported in Python 3\.14",
)

collect_ignore = ["cases", "ranks_launched.py", "scripts"]  # scripts, started by tests
torch.set_num_threads(1)
# a busy machine is no fault of what is tested
hypothesis.settings.register_profile("ours", deadline=None)
hypothesis.settings.load_profile("ours")
_WRAPPED = (
    torch.nn.Module,
    torch.Tensor,
    torch.nn.functional,
    torch.optim.Optimizer,
    pl.Trainer,
)


# Files whose tests share what one long run of several processes gave.
_TOGETHER = ("tests/test_ranks.py", "tests/data/test_ranks_data.py")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Of several workers one gets all tests of such a file, so that the run is made once."""
    if config.getoption("dist") != "load":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class Together(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path = nodeid.partition("::")[0]
            return path if path.endswith(_TOGETHER) else nodeid

    return Together(config, log)


def pytest_collection_finish() -> None:
    """What is loaded by now stays: the collector need not look through it in each test."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _quiet_lightning() -> None:
    for name in (
        "lightning",
        "lightning.pytorch",
        "lightning.fabric",
        "pytorch_lightning",
    ):
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in _NOISE:
        warnings.filterwarnings("ignore", message=message)


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    """No guard of a test is left open: nothing traces, nothing of torch's stays wrapped.

    What torch replaces itself, once a process, as `torch.compile` does to `Module.__init__`, is
    none of the guard's.
    """
    before, trace = [dict(vars(owner)) for owner in _WRAPPED], sys.gettrace()
    yield
    assert sys.gettrace() is trace
    for owner, was in zip(_WRAPPED, before, strict=True):
        now = vars(owner)
        moved = {name: now.get(name) for name in was if now.get(name) is not was[name]}
        homes = {n: getattr(v, "__module__", "") or "" for n, v in moved.items()}
        ours = [n for n, home in homes.items() if not home.startswith("torch._dynamo")]
        assert [(name, was[name], moved[name]) for name in ours] == [], owner


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    """A test draws the same numbers whatever ran before it, and leaves torch's settings alone."""
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    yield
    torch.set_default_dtype(torch.float32)
    torch.use_deterministic_algorithms(False)
    torch.set_float32_matmul_precision("highest")
    torch.set_grad_enabled(True)


@pytest.fixture
def trainer(tmp_path: Path) -> Callable[..., pl.Trainer]:
    """``trainer(**kwargs)``: one epoch that writes and prints nothing, on the CPU by default."""

    def make(**kwargs: Any) -> pl.Trainer:
        settings: dict[str, Any] = {
            "accelerator": os.environ.get("EVALGUARD_TEST_ACCELERATOR", "cpu"),
            "devices": 1,
            "max_epochs": 1,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": tmp_path,
        }
        return pl.Trainer(**(settings | kwargs))

    return make


@pytest.fixture
def fit(trainer: Callable[..., pl.Trainer]) -> Callable[..., pl.Trainer]:
    """``fit(module, *callbacks, **kwargs)``: train a module that brings its own data."""

    def run(
        module: pl.LightningModule, *callbacks: pl.Callback, **kwargs: Any
    ) -> pl.Trainer:
        made = trainer(callbacks=list(callbacks), **kwargs)
        made.fit(module)
        return made

    return run
