"""Torch's settings of the process: one list, read by the check and put back after a replay."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from lightning_evalguard.instruments.generators import Generators
from lightning_evalguard.instruments.replay import Look
from lightning_evalguard.instruments.settings import SETTINGS, put_back, settings

OTHERS: dict[str, Any] = {
    "torch.get_default_dtype()": torch.float64,
    "torch.get_default_device()": torch.device("meta"),
    "torch.get_float32_matmul_precision()": "medium",
    "torch.get_num_threads()": 3,
    "torch.get_autocast_dtype('cpu')": torch.float16,
    "torch.get_autocast_dtype('cuda')": torch.bfloat16,
}


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before = settings()
    yield
    put_back(before)


def another(name: str) -> Any:
    value = SETTINGS[name][0]()
    return OTHERS.get(name, not value)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_replay_restores_every_entry(name: str) -> None:
    get, put = SETTINGS[name]
    before, other = settings(), another(name)

    def step() -> Any:
        put(other)
        return get()

    with Look(nn.Linear(1, 1), step, (), before=Generators.capture()) as look:
        assert look.again().outputs == other != before[name]
    assert settings() == before


def test_all_entries_at_once_are_restored_too() -> None:
    before = settings()

    def step() -> None:
        for name in SETTINGS:
            SETTINGS[name][1](another(name))

    with Look(nn.Linear(1, 1), step, (), before=Generators.capture()) as look:
        assert look.again().error is None
    assert settings() == before


def test_an_entry_that_is_not_put_back_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "torch.backends.cudnn.benchmark"
    get, put = SETTINGS[name]
    before = settings()
    monkeypatch.setitem(SETTINGS, name, (get, lambda _: None))
    put(not before[name])
    put_back(before)
    assert settings() != before
    put(before[name])


def test_the_environment_is_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVALGUARD_A", "1")
    monkeypatch.setenv("EVALGUARD_B", "2")

    def step() -> None:
        os.environ["EVALGUARD_A"] = "3"
        del os.environ["EVALGUARD_B"]
        os.environ["EVALGUARD_C"] = "4"

    before = dict(os.environ)
    with Look(nn.Linear(1, 1), step, (), before=Generators.capture()) as look:
        look.again()
    assert dict(os.environ) == before
