"""Class names as a figure can show them: short, each one's own, in a font that is there."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Sequence

_LONG = 18  # characters shown of a class name
_HEAD = 10  # of them before the cut
# Asked first for what the figure's own font lacks: they draw whole scripts.
_WIDE = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "PingFang SC", "Hiragino Sans",
    "Microsoft YaHei", "SimHei", "WenQuanYi Zen Hei", "Malgun Gothic", "Arial Unicode MS",
    "Noto Sans Arabic", "Noto Sans Devanagari", "Noto Sans Thai", "Segoe UI Symbol",
)  # fmt: skip
_BOXES = "Last Resort"  # a font that has a box for every letter there is


def labels(names: Sequence[str]) -> list[str]:
    """The names, cut in the middle where they are long, and no two alike.

    A name that no font here can draw stands as ``class 3``: boxes would look all the same.

    Example:
        >>> labels(["cat", "chromosome 12, long arm, deleted"])
        ['cat', 'chromosome… deleted']
    """
    fonts = families(names)
    drawn = _drawn(fonts)
    listed = []
    for number, name in enumerate(names):
        line = " ".join(name.split())
        missing = not all(ord(letter) in drawn for letter in line)
        listed.append(f"class {number}" if missing else _cut(line))
    counts = Counter(listed)
    for number, name in enumerate(listed):
        if counts[name] > 1:
            listed[number] = f"{name} ({number})"
    # A dollar sign would start mathtext.
    return [name.replace("$", r"\$") for name in listed]


def _cut(name: str) -> str:
    tail = _LONG - _HEAD
    if len(name) <= _LONG + 1:
        return name
    return f"{name[:_HEAD].rstrip()}…{name[-tail:]}"


def families(names: Iterable[str]) -> tuple[str, ...]:
    """The fonts that draw the names, the figure's own first; matplotlib takes them in turn."""
    return _families("".join(sorted(set().union(*names))))


@functools.lru_cache(maxsize=64)
def _families(letters: str) -> tuple[str, ...]:
    from matplotlib.font_manager import fontManager

    chosen = ["DejaVu Sans"]
    missing = {ord(letter) for letter in letters if not letter.isspace()} - _drawn(
        tuple(chosen)
    )
    if not missing:
        return tuple(chosen)
    there = {
        font.name for font in fontManager.ttflist if not font.name.startswith(_BOXES)
    }
    # By name after those, so that two machines with the same fonts choose the same.
    for name in [
        *(name for name in _WIDE if name in there),
        *sorted(there - set(_WIDE)),
    ]:
        if missing & _letters_of(name):
            chosen.append(name)
            missing -= _letters_of(name)
        if not missing:
            break
    return tuple(chosen)


def _drawn(fonts: Sequence[str]) -> frozenset[int]:
    """The code points that one of the fonts draws, and the blank."""
    return frozenset({32}).union(*(_letters_of(font) for font in fonts))


@functools.cache
def _letters_of(name: str) -> frozenset[int]:
    """The code points of a font; none where its file cannot be read."""
    from matplotlib.font_manager import fontManager, get_font

    files = [font.fname for font in fontManager.ttflist if font.name == name]
    try:
        return frozenset(get_font(min(files)).get_charmap())
    except Exception:  # noqa: BLE001 - a font file may be broken in any way
        return frozenset()
