"""Each lie of the tables is found, its honest twin is silent, and Lightning alone says nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import lightning.pytorch as pl
import pytest

from lies import CHECKS, GUARDED, HONEST, TABLE

pytestmark = pytest.mark.filterwarnings("ignore")
each = pytest.mark.parametrize(("name", "lie"), TABLE, ids=[name for name, _ in TABLE])
Lie = Callable[[bool], Any]


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    pl.seed_everything(0, verbose=False)
    yield
    GUARDED[0] = True


@each
def test_a_lie_is_found(name: str, lie: Lie) -> None:
    report = lie(False).report
    assert {f.check for f in report.findings} & CHECKS[lie.__module__], report.notes
    assert not any("failed inside" in note for note in report.notes)


@each
def test_its_honest_twin_is_silent(name: str, lie: Lie) -> None:
    report = lie(True).report
    assert [str(f) for f in report.findings] == []
    assert not any("failed inside" in note for note in report.notes)


@pytest.mark.parametrize("program", HONEST, ids=lambda program: program.__name__)
def test_what_looks_like_a_lie_and_is_none_is_silent(
    program: Callable[[], Any],
) -> None:
    report = program().report
    assert [str(f) for f in report.findings] == []
    assert not any("failed inside" in note for note in report.notes)


@each
@pytest.mark.slow
def test_a_lie_runs_silently_under_lightning_alone(
    name: str, lie: Lie, capfd: pytest.CaptureFixture[str]
) -> None:
    GUARDED[0] = False
    lie(False)
    out, err = capfd.readouterr()
    assert out == ""
    assert "Warning" not in err


def test_the_tables_are_large_enough() -> None:
    assert len(TABLE) > 150
    assert len({name for name, _ in TABLE}) == len(TABLE)
    assert {lie.__module__ for _, lie in TABLE} == CHECKS.keys()
