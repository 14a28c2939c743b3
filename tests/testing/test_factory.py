"""Attaching through the environment: cheap when off, once when on, never in a Trainer's way."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

import lightning.pytorch as pl
import pytest

from lightning_evalguard import EvalGuard
from lightning_evalguard import attach as _factory
from lightning_evalguard.trainer.attached import AttachedGuard
from models import modes as zoo

Make = Callable[..., pl.Trainer]


def guards(run: pl.Trainer) -> list[EvalGuard]:
    return [c for c in run.callbacks if isinstance(c, EvalGuard)]


def test_both_packages_know_the_factory() -> None:
    for group in (
        "lightning.pytorch.callbacks_factory",
        "pytorch_lightning.callbacks_factory",
    ):
        assert (
            entry_points(group=group, name="evalguard")["evalguard"].load()
            is _factory.callbacks
        )


def test_gated_off_it_loads_nothing() -> None:
    code = (
        "import sys, lightning_evalguard.attach as f\n"
        "before = set(sys.modules)\n"
        "assert f.callbacks() == []\n"
        "assert not {'torch', 'numpy', 'lightning'} & set(sys.modules)\n"
        "assert before == set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_without_the_variable_no_trainer_is_guarded(trainer: Make) -> None:
    assert guards(trainer()) == []


@pytest.mark.parametrize("policy", ["warn", "error"])
def test_with_it_every_trainer_is(
    policy: str, trainer: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVALGUARD", policy)
    (guard,) = guards(trainer())
    assert guard._policies["modes"] == guard._policies["batch"] == policy
    assert guard._policies["sync"] == "warn"


@pytest.mark.parametrize(
    ("given", "policy"),
    [("1", "error"), ("TRUE", "error"), (" on ", "error"), ("WARN", "warn")],
)
def test_the_variable_has_many_spellings(
    given: str, policy: str, trainer: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVALGUARD", given)
    (guard,) = guards(trainer())
    assert guard._policies["modes"] == policy


@pytest.mark.parametrize("given", ["0", "off", "False", ""])
def test_it_can_be_switched_off(
    given: str, trainer: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVALGUARD", given)
    assert guards(trainer()) == []


def test_a_guard_in_the_script_acts_alone(
    trainer: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVALGUARD", "error")
    own = EvalGuard(audit="off")
    run = trainer(callbacks=[own])
    run.validate(zoo.Honest(), zoo.loader(), verbose=False)
    attached = next(g for g in guards(run) if isinstance(g, AttachedGuard))
    assert own.report.checked["evaluations"] == 1
    assert str(attached.report) == "nothing was checked yet"


def test_of_two_attached_guards_one_acts(trainer: Make) -> None:
    both = AttachedGuard(), AttachedGuard()
    trainer(callbacks=list(both)).validate(zoo.Honest(), zoo.loader(), verbose=False)
    assert [guard.report.checked["evaluations"] for guard in both] == [1, 0]


def test_an_unknown_policy_is_said_and_stops_nothing(
    trainer: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EVALGUARD", "loud")
    assert guards(trainer()) == []
    assert "EVALGUARD=loud: no guard is attached" in capsys.readouterr().err


def test_an_error_of_ours_stops_no_trainer(
    trainer: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(self: Any, **policies: Any) -> None:
        raise RuntimeError("a bug of ours")

    monkeypatch.setenv("EVALGUARD", "warn")
    monkeypatch.setattr(AttachedGuard, "__init__", broken)
    assert guards(trainer()) == []
    assert "RuntimeError: a bug of ours" in capsys.readouterr().err
