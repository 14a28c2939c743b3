"""What Lightning does not promise: still there, and what happens where it is not."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from lightning_evalguard import EvalGuard
from lightning_evalguard.trainer import private
from models import modes as zoo

Make = Callable[..., pl.Trainer]


class Asks(pl.Callback):
    """Asks for every private attribute in the middle of a validation."""

    def __init__(self) -> None:
        self.gone: list[str] = []

    def on_validation_batch_end(self, trainer: Any, *_: Any) -> None:
        self.gone = [path for path in private.PRIVATE if not private.has(trainer, path)]


def test_this_lightning_has_every_private_attribute_that_is_used(trainer: Make) -> None:
    asks = Asks()
    trainer(callbacks=[asks], num_sanity_val_steps=0).fit(
        zoo.Honest(), zoo.loader(), zoo.loader()
    )
    gone = [f"`trainer.{path}`, so {private.PRIVATE[path]}" for path in asks.gone]
    assert not gone, f"Lightning {pl.__version__} has no longer " + "; ".join(gone)


def hide(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the package see a Lightning without what stands at `path`."""
    walk = private._walk

    def blind(thing: Any, asked: str) -> Any:
        hidden = asked == path or asked.startswith(f"{path}.")
        return private.GONE if hidden else walk(thing, asked)

    monkeypatch.setattr(private, "_walk", blind)


def test_the_test_before_can_fail(
    trainer: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide("_active_loop._results", monkeypatch)
    with pytest.raises(
        AssertionError, match=r"has no longer `trainer._active_loop._results`, so"
    ):
        test_this_lightning_has_every_private_attribute_that_is_used(trainer)


def left(trainer: Make, guards: list[EvalGuard]) -> list[torch.Tensor]:
    torch.manual_seed(0)
    module = zoo.Honest()
    made = trainer(callbacks=guards)
    made.fit(module, zoo.loader(16), zoo.loader(16, seed=1))
    return [*module.state_dict().values(), torch.get_rng_state()]


@pytest.mark.parametrize("path", private.PRIVATE)
def test_without_it_a_run_is_the_same_and_the_report_says_what_is_missing(
    path: str, trainer: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = left(trainer, [])
    hide(path, monkeypatch)
    guard = EvalGuard()
    guarded = left(trainer, [guard])
    assert all(torch.equal(a, b) for a, b in zip(bare, guarded, strict=True))
    assert guard.report.findings == []
    falls_back = private.PRIVATE[path]
    notes = " ".join(guard.report.notes)
    if "the report says so" in falls_back:
        assert f"`trainer.{path}`" in notes
    if falls_back == private.NO_REPLAY:
        assert guard.report.checked["replayed_steps"] == 0
        assert guard.report.checked["batches"] > 0


def test_with_all_of_it_nothing_is_missing(trainer: Make) -> None:
    guard = EvalGuard()
    left(trainer, [guard])
    assert guard.report.checked["replayed_steps"] == 1
    assert not any("this Lightning has no" in note for note in guard.report.notes)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lightning.pytorch", "pytorch_lightning"])
def test_either_name_of_the_package_works_and_only_that_one_is_loaded(
    name: str,
) -> None:
    other = {
        "lightning.pytorch": "pytorch_lightning",
        "pytorch_lightning": "lightning.pytorch",
    }
    code = (
        f"import sys, torch, {name} as pl\n"
        "from torch.utils.data import DataLoader, TensorDataset\n"
        "from lightning_evalguard import EvalGuard\n"
        "class Net(pl.LightningModule):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.net = torch.nn.Linear(4, 3)\n"
        "    def validation_step(self, batch, batch_idx):\n"
        "        return {'logits': self.net(batch[0]), 'target': batch[1]}\n"
        "data = TensorDataset(torch.randn(10, 4), torch.randint(3, (10,)))\n"
        "guard = EvalGuard()\n"
        "assert isinstance(guard, pl.Callback)\n"
        "trainer = pl.Trainer(accelerator='cpu', callbacks=[guard], logger=False,\n"
        "    enable_progress_bar=False, enable_checkpointing=False)\n"
        "trainer.validate(Net(), DataLoader(data, 4), verbose=False)\n"
        f"print(guard.report.confusion['val'].total, {other[name]!r} in sys.modules)\n"
    )
    pytest.importorskip(name)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines()[-1:] == ["10 False"], done.stderr
