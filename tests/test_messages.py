"""Every sentence that the package can print stands in a golden file, to be read side by side."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MESSAGES = runpy.run_path(str(ROOT / "docs" / "messages.py"))
AGAIN = "the package says something else by now: run `python docs/messages.py`, read the difference"


def test_the_golden_file_holds_what_the_package_says() -> None:
    golden = (ROOT / "tests" / "golden" / "messages.txt").read_text(encoding="utf-8")
    assert golden == MESSAGES["golden"](), AGAIN


def test_the_page_of_messages_holds_what_the_checks_say() -> None:
    page = (ROOT / "docs" / "messages.md").read_text(encoding="utf-8")
    assert page == MESSAGES["page"](), AGAIN


def test_every_check_has_a_section_with_facts_and_remedies() -> None:
    page = MESSAGES["page"]()
    for check in MESSAGES["CHECKS"]:
        section = page.partition(f"\n## {check}\n")[2].partition("\n## ")[0]
        facts, _, to_do = section.partition("*To do:*")
        assert facts.count("\n- ") >= 2, check
        assert to_do.count("\n- ") >= 1, check


def test_the_checks_are_those_of_the_package() -> None:
    from lightning_evalguard.checks.registry import CHECKS

    assert set(MESSAGES["CHECKS"]) == CHECKS


def test_a_sentence_that_is_added_would_be_seen(tmp_path: Path) -> None:
    path = tmp_path / "check.py"
    path.write_text(
        '"""What it is for."""\n\nfact = f"is {x} now, expected {y} as before"\n'
    )
    assert list(MESSAGES["sentences"](path)) == ["is {} now, expected {} as before"]


@pytest.mark.parametrize(
    "text", ["val/accuracy", "a b", "(?:one two three)", "def call(a, b, c)"]
)
def test_what_is_no_sentence_is_left_out(text: str) -> None:
    assert not MESSAGES["is_sentence"](text)
