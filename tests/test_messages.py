"""Every sentence that the package can print stands in a golden file, to be read side by side."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from lightning_evalguard.checks.registry import CHECKS, RULES

ROOT = Path(__file__).parent.parent
MESSAGES = runpy.run_path(str(ROOT / "docs" / "messages.py"))
AGAIN = "the package says something else by now: run `python docs/messages.py`, read the difference"


def test_the_golden_file_holds_what_the_package_says() -> None:
    golden = (ROOT / "tests" / "golden" / "messages.txt").read_text(encoding="utf-8")
    assert golden == MESSAGES["golden"](), AGAIN


@pytest.mark.parametrize("path", MESSAGES["pages"](), ids=lambda path: path.stem)
def test_a_page_holds_what_its_check_says(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == MESSAGES["pages"]()[path], AGAIN


@pytest.mark.parametrize("check", MESSAGES["CHECKS"])
def test_every_check_has_a_page_with_facts_reasons_and_remedies(check: str) -> None:
    page = (ROOT / "docs" / "checks" / f"{check}.md").read_text(encoding="utf-8")
    rest = page.partition("\n## Every message\n")[2]
    facts, _, rest = rest.partition("*Why it matters:*")
    reasons, _, to_do = rest.partition("*To do:*")
    assert facts.count("\n- ") >= 2
    assert f"\n- {RULES[check].why}\n" in reasons
    assert to_do.count("\n- ") >= 1
    assert f'EvalGuard({check}="{RULES[check].default}")' in page


def test_a_page_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="<!-- /messages -->"):
        MESSAGES["filled"]("# modes\n", "messages", "")


def test_the_checks_are_those_of_the_package() -> None:
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
