"""Collects every sentence that the package can print: ``python docs/messages.py`` writes them.

``tests/golden/messages.txt`` holds all of them, by file, to be read side by side; the page of each
check in ``docs/checks`` those of its findings and notes, between two marks. ``{}`` stands where a
name, a place or a number is filled in. A test fails where one of them is not what the package says.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

from lightning_evalguard.checks.modes import consequences
from lightning_evalguard.checks.registry import RULES
from lightning_evalguard.reasons import REASONS

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "lightning_evalguard"
GOLDEN = ROOT / "tests" / "golden" / "messages.txt"
FOLDER = ROOT / "docs" / "checks"
PAGE = ROOT / "docs" / "messages.md"  # how they are put together, and plain scripts'
CHECKS = (
    "modes", "grad", "state", "stochastic", "batch", "rng", "data", "sync", "weights", "scores",
    "selection",
)  # fmt: skip
# What is printed of findings outside of the checks' own files, by the start of a file's name.
_ELSEWHERE = {"confusion/": "scores", "plain/": "scripts", "model/attributes": "modes"}
_IMPERATIVE = re.compile(
    r"(Add|Apply|Assign|Call|Catch|Change|Choose|Collect|Compare|Compute|Copy|Count|Create|Declare|"
    r"Decide|Delete|Divide|Draw|Evaluate|Fill|Fix|Freeze|Give|Hold|Keep|Leave|Let|Load|Log|Look|"
    r"Make|Name|Normalise|Pack|Pass|Print|Put|Read|Register|Remove|Replace|Reset|Return|Run|Save|"
    r"Set|Share|Shuffle|Split|Start|Step|Swap|Take|Train|Update|Use|Wait|Weigh|Work|Write)\b \S"
)
_NO_SENTENCE = re.compile(
    r"\(\?|\\b|\\w|<iframe|def call|comes first|%\(prog\)s|-----BEGIN"
)


def sentences(path: Path) -> Iterator[str]:
    """Each text of a file that people may read, in the order of its lines."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    left_out: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            left_out.add(node.value)  # a docstring
        if isinstance(node, ast.JoinedStr):
            left_out |= set(node.values)
    found = []
    for node in ast.walk(tree):
        if node in left_out:
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append((node.lineno, node.col_offset, node.value))
        elif isinstance(node, ast.JoinedStr):
            parts = [
                str(p.value) if isinstance(p, ast.Constant) else "{}"
                for p in node.values
            ]
            found.append((node.lineno, node.col_offset, "".join(parts)))
    for *_, text in sorted(found):
        if is_sentence(text):
            yield " ".join(text.split())


def is_sentence(text: str) -> bool:
    """Whether it is more than a name, a pattern or code.

    Example:
        >>> is_sentence("is in train mode, expected eval mode"), is_sentence("val/accuracy")
        (True, False)
    """
    words = re.findall(r"[A-Za-z]{2,}", text)
    listed = len(words) > 15 and not re.search(r"[.,:;`{(]", text)  # words of a lookup
    return (
        len(words) >= 3
        and " " in text.strip()
        and not listed
        and not _NO_SENTENCE.search(text)
    )


@functools.cache
def by_file() -> dict[str, list[str]]:
    """The sentences of each file of the package that has some."""
    files = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.name == "lettering.py":  # names of fonts
            continue
        listed = list(dict.fromkeys(sentences(path)))
        if listed:
            files[path.relative_to(PACKAGE).as_posix()] = listed
    return files


def golden() -> str:
    """All of them, as they are read side by side."""
    blocks = [
        "\n".join([f"# {name}", *(f"  {line}" for line in listed)])
        for name, listed in by_file().items()
    ]
    return "\n\n".join(blocks) + "\n"


def check_of(name: str) -> str | None:
    """The check whose findings a file's sentences are; None for the command line and the like."""
    folder, _, rest = name.partition("/")
    if rest == "modes/consequences.py":
        return None  # they stand among the reasons
    if folder == "checks" and not rest.startswith(("registry", "check.py")):
        return rest.partition("/")[0].removesuffix(".py")
    return next(
        (check for start, check in _ELSEWHERE.items() if name.startswith(start)), None
    )


def reasons_of(check: str) -> list[str]:
    """Why what a check finds matters: each reason that a message of it can give."""
    if check not in RULES:
        return []
    rows = [why for _, why in REASONS.get(check, ())]
    modes = consequences.OF_MODES if check == "modes" else ()
    return list(dict.fromkeys([RULES[check].why, *rows, *modes]))


def said_by(check: str) -> list[str]:
    """What the findings and notes of a check are made of, in the order of its files."""
    said: dict[str, None] = {}
    for name, listed in by_file().items():
        if check_of(name) == check:
            said |= dict.fromkeys(listed)
    return list(said)


def messages(check: str) -> str:
    """A check's messages: what is said, why it matters, and what to do."""
    said = said_by(check)
    to_do = [line for line in said if _IMPERATIVE.match(line)]
    lines = [f"- {_code(line)}" for line in said if line not in to_do]
    if reasons := reasons_of(check):
        lines += ["", "*Why it matters:*", ""]
        lines += [f"- {line}" for line in reasons]
    lines += ["", "*To do:*", ""]
    lines += [f"- {_code(line)}" for line in to_do]
    return "\n".join(lines)


def switches(check: str) -> str:
    """What a check means, and how it is switched, from its rule."""
    rule = RULES[check]
    others = [f'`"{p}"`' for p in ("error", "warn", "ignore") if p != rule.default]
    if rule.fixable:
        others.append('`"fix"`')
    plain = ""
    if rule.in_plain_loops:
        plain = " `evaluating(model)` asks it of a plain loop, too."
    return "\n".join(
        [
            f"{rule.violation} {rule.help}",
            "",
            f'- The whole check: `EvalGuard({check}="{rule.default}")` is the default; '
            f"{', '.join(others)}.{plain}",
            f'- One module, file or function: `EvalGuard(allow={{"{check}": ["..."]}})`; each '
            "message ends with the narrowest.",
            f'- In the code itself: `with allow("{check}", reason="..."):`, or `@allow(...)` above '
            "a function.",
        ]
    )


def table() -> str:
    """The checks, one line each."""
    lines = ["| check | by default | what it finds |", "|---|---|---|"]
    for check in CHECKS:
        rule = RULES[check]
        # where `checks/#modes` led
        anchor = f'<a id="{check}"></a>'
        lines.append(
            f'| {anchor}[`{check}`]({check}.md) | `"{rule.default}"` | {rule.violation} |'
        )
    return "\n".join(lines)


def filled(text: str, mark: str, content: str) -> str:
    """`text` with `content` between two marks."""
    first, last = f"<!-- {mark} -->", f"<!-- /{mark} -->"
    before, _, rest = text.partition(first)
    _, end, after = rest.partition(last)
    if not end:
        raise ValueError(f"expected {first} and {last}")
    return f"{before}{first}\n\n{content}\n\n{last}{after}"


def pages() -> dict[Path, str]:
    """Each page of the docs that holds messages, as it has to be."""
    made = {}
    for check in CHECKS:
        path = FOLDER / f"{check}.md"
        text = filled(path.read_text(encoding="utf-8"), "rule", switches(check))
        made[path] = filled(text, "messages", messages(check))
    index = FOLDER / "index.md"
    made[index] = filled(index.read_text(encoding="utf-8"), "checks", table())
    scripts = PAGE.read_text(encoding="utf-8")
    made[PAGE] = filled(scripts, "messages", messages("scripts"))
    return made


def _code(text: str) -> str:
    fence = "``" if "`" in text else "`"
    edge = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{edge}{text}{edge}{fence}"


if __name__ == "__main__":
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(golden(), encoding="utf-8")
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
