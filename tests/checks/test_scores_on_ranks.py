"""What several ranks log of one evaluation is judged by the answers of all of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from launched import free_port, script
from ranks_on_scores import HONEST

WORLDS = pytest.mark.parametrize(
    "world", [2, pytest.param(4, marks=pytest.mark.slow)], scope="module"
)
REASONS = {
    "F1 averaged over ranks": "the mean of the ranks' scores",
    "F1 averaged over ranks, under any name": "the mean of the ranks' scores",
    "a class's recall averaged over ranks": "the mean of the ranks' scores",
    "accuracy of uneven parts, averaged": "the mean of the ranks' scores",
    "loss of uneven parts, averaged": "though they evaluated",
    "accuracy by batch, of an odd number": "Lightning divides by the ranks' mean number",
    "accuracy of rank 0": "rank 0's",
    "accuracy by batch, of rank 0": "rank 0's",
    "a metric object of rank 0": "rank 0's",
}
Found = dict[str, list[tuple[str, str, str]]]
_ran: dict[int, Found] = {}


@pytest.fixture(scope="module")
def happened(world: int, tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What rank 0 of `world` found in each case."""
    if world not in _ran:
        folder = tmp_path_factory.mktemp("ranks")
        done = script("ranks_on_scores.py", world, free_port(), folder)
        assert done.returncode == 0, done.stdout + done.stderr
        _ran[world] = torch.load(Path(folder) / "0.pt")
    return _ran[world]


@WORLDS
@pytest.mark.parametrize("case", HONEST)
def test_a_score_of_all_ranks_is_silent(happened: Found, world: int, case: str) -> None:
    assert happened[case] == []


@WORLDS
@pytest.mark.parametrize("case", REASONS)
def test_a_score_that_is_none_of_all_ranks_is_named(
    happened: Found, world: int, case: str
) -> None:
    ((check, _, fact),) = happened[case]
    assert check == "scores"
    assert REASONS[case] in fact
