"""Repetitions, leaks, replicas and outcomes are known across ranks as on one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from launched import free_port, script
from lightning_evalguard.__main__ import main

WORLDS = pytest.mark.parametrize(
    "world", [2, pytest.param(4, marks=pytest.mark.slow)], scope="module"
)
_ran: dict[int, list[dict[str, Any]]] = {}


@pytest.fixture(scope="module")
def happened(
    world: int, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    """What each rank of `world` found in each case."""
    if world not in _ran:
        folder = tmp_path_factory.mktemp("ranks")
        done = script("ranks_on_data.py", world, free_port(), folder)
        assert done.returncode == 0, done.stdout + done.stderr
        _ran[world] = [
            torch.load(folder / f"{rank}.pt", weights_only=False)
            for rank in range(world)
        ]
    return _ran[world]


@WORLDS
@pytest.mark.parametrize(
    "case",
    ["apart", "apart, in streams", "apart, by workers", "training watched beside"],
)
def test_sets_that_are_shared_out_are_silent(
    happened: list[dict[str, Any]], world: int, case: str
) -> None:
    for rank in happened:
        assert rank[case][:2] == ([], 120)
        assert not any("failed" in note for note in rank[case][2])


@WORLDS
def test_a_padded_tail_is_no_repetition_of_ours(
    happened: list[dict[str, Any]], world: int
) -> None:
    found, total, _ = happened[0]["apart, with a padded tail"]
    assert total == 117
    assert [fact for _, _, fact in found if "repetitions" in fact] == []


@WORLDS
@pytest.mark.parametrize(
    "case", ["a stream by every rank", "a stream by every worker", "not dealt out"]
)
def test_samples_that_every_rank_evaluates_are_counted(
    happened: list[dict[str, Any]], world: int, case: str
) -> None:
    again = 120 * (world - 1)
    total = 120 * world * (2 if "worker" in case else 1)
    for rank in happened:
        facts = [fact for check, _, fact in rank[case][0] if check == "data"]
        assert any(
            f"{again} of the {total} samples that all ranks evaluate are repetitions"
            in fact
            and f"each of {world} ranks evaluates all of them" in fact
            for fact in facts
        )
    facts = [fact for *_, fact in happened[0][case][0]]
    assert any("2 workers reads the whole" in fact for fact in facts) == (
        "worker" in case
    )


@WORLDS
@pytest.mark.parametrize(
    ("case", "fact"),
    [
        ("a set twice", "120 of the 240 samples that it gives are repetitions"),
        ("a leak", "100 of its 120 samples stand in the training set too"),
        ("a leak of streams", "samples stand in the training set too"),
        (
            "tested on the training set",
            "400 of its 400 samples stand in the training set of an",
        ),
    ],
)
def test_what_one_process_finds_several_find(
    happened: list[dict[str, Any]], world: int, case: str, fact: str
) -> None:
    found = [text for check, _, text in happened[0][case][0] if check == "data"]
    assert len(found) == 1
    assert fact in found[0]


@WORLDS
def test_replicas_with_other_weights_are_named_on_every_rank(
    happened: list[dict[str, Any]], world: int
) -> None:
    for rank in happened:
        facts = [fact for check, _, fact in rank["replicas"][0] if check == "weights"]
        assert any(
            "has other weights on rank 1 than on rank 0" in fact for fact in facts
        )


def test_outcomes_of_two_ranks_are_those_of_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same weights on the same samples: the padded tail counts once, and nothing differs."""
    records = []
    for world in (1, 2):
        folder = tmp_path / f"{world}"
        folder.mkdir()
        done = script("ranks_on_data.py", world, free_port(), folder, "outcomes")
        assert done.returncode == 0, done.stdout + done.stderr
        (record,) = folder.glob("evalguard*.json")
        records.append(record)
    one, two = (json.loads(path.read_text())["runs"][0] for path in records)
    assert one["outcomes"]["val"]["samples"] == two["outcomes"]["val"]["samples"] == 117
    assert one["outcomes"]["val"]["set"] == two["outcomes"]["val"]["set"]
    assert main(["show", *map(str, records)]) == 0
    assert "McNemar's exact test" in capsys.readouterr().out
