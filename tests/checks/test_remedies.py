"""Each remedy that can be printed is applied: the program rewritten as it says runs silent."""

from __future__ import annotations

import lightning.pytorch as pl
import pytest

from models import PROGRAMS
from remedies import APPLIED, ELSEWHERE, REWRITTEN, Applied, Make
from remedies import choosing as _choosing  # noqa: F401 - importing them fills `APPLIED`
from remedies import data as _data  # noqa: F401
from remedies import modes as _modes  # noqa: F401
from remedies import plain as _plain  # noqa: F401
from remedies import scores as _scores  # noqa: F401
from remedies import steps as _steps  # noqa: F401
from remedies import weights as _weights  # noqa: F401
from remedies.templates import pattern_of, templates

pytestmark = [
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings(
        "ignore:ReduceLROnPlateau conditioned on metric:RuntimeWarning"
    ),
    pytest.mark.filterwarnings("ignore:Experiment logs directory"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory"),
    pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step"),
    pytest.mark.filterwarnings("ignore:.*GradScaler"),
]
CASES = [(template, case) for template, cases in APPLIED.items() for case in cases]
NEAR_MISSES = {near.__name__ for program in PROGRAMS for near in program.near_misses}


@pytest.mark.parametrize(
    ("template", "case"), CASES, ids=[case.__name__ for _, case in CASES]
)
def test_a_program_gets_the_remedy_and_is_silent_once_it_is_applied(
    template: str, case: Applied, trainer: Make
) -> None:
    pl.seed_everything(0, verbose=False)
    report = case(trainer, False)
    remedies = [f.remedy for f in report.findings]
    assert any(pattern_of(template).search(remedy) for remedy in remedies), report
    pl.seed_everything(0, verbose=False)
    assert case(trainer, True).findings == []


def test_what_the_zoo_rewrites_by_a_remedy_is_there() -> None:
    """tests/test_zoo.py runs both: it finds the remedy, and its near-miss is left alone."""
    assert [name for name in REWRITTEN.values() if name not in NEAR_MISSES] == []


def test_each_remedy_of_the_package_is_applied_here() -> None:
    known = APPLIED.keys() | REWRITTEN.keys() | ELSEWHERE.keys()
    assert {text: place for text, place in templates() if text not in known} == {}


def test_no_remedy_is_applied_that_the_package_does_not_have() -> None:
    texts = {text for text, _ in templates()}
    known = APPLIED.keys() | REWRITTEN.keys() | ELSEWHERE.keys()
    assert known - texts == set()
    assert not (APPLIED.keys() | REWRITTEN.keys()) & ELSEWHERE.keys()
