"""Each remedy that can be printed is applied: the program rewritten as it says runs silent."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import lightning_evalguard
from remedies import APPLIED, Applied, Make, modes

ROOT = Path(lightning_evalguard.__file__).parent
CASES = [(t, case) for t, cases in APPLIED.items() for case in cases]


def pattern_of(template: str) -> re.Pattern[str]:
    return re.compile(".*".join(re.escape(piece) for piece in template.split("{}")), re.DOTALL)


@pytest.mark.parametrize(("template", "case"), CASES, ids=[f"{case.__name__}" for _, case in CASES])
def test_a_program_gets_the_remedy_and_is_silent_once_it_is_applied(
    template: str, case: Applied, trainer: Make
) -> None:
    report = case(trainer, False)
    remedies = [f.remedy for f in report.findings]
    assert any(pattern_of(template).search(remedy) for remedy in remedies), report
    assert case(trainer, True).findings == []
