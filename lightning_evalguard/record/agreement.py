"""Do this project's records say the same of the same weights on the same samples?"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from lightning_evalguard.model.hashes import Prints
from lightning_evalguard.model.tensors import Inventory

_NEWEST = 20  # records beside this one that are read
_LARGE = 16 << 20  # bytes of a record from which on it is not read
# below both, two devices or batch sizes differ by rounding
_RELATIVE, _ABSOLUTE = 1e-3, 1e-5
_KEYS = {"validate": "val", "test": "test"}
_COMPARED = (
    "versions",
    "precision",
    "batch_size",
    "hyper_parameters",
    "data_hyper_parameters",
    "git",
    "device",
    "strategy",
    "world_size",
    "model",
)


@dataclass(frozen=True)
class Disagreement:
    """Two records of the same weights on the same samples, with another score.

    Attributes:
        key: The score's key.
        value: What this run says.
        recorded: What the earlier record says.
        when: When the earlier run ended.
        differences: What differs between the runs, ``precision: 32-true, then bf16-mixed``.
    """

    key: str
    value: float
    recorded: float
    when: str
    differences: tuple[str, ...]


def weights_hash(module: nn.Module) -> str | None:
    """A hash of all parameters and saved buffers; None where a part of them lies elsewhere."""
    inventory = Inventory(module)
    inventory.refresh(force=True)
    saved = {
        h.name: h.tensor
        for h in inventory.held.values()
        if h.persistent and h.registered
    }
    if not saved or any(hasattr(type(tensor), "to_local") for tensor in saved.values()):
        return None
    prints = Prints(saved)
    if prints.unreadable:
        return None
    contents = repr(sorted(prints.values().items(), key=lambda item: item[0]))
    return hashlib.blake2b(contents.encode(), digest_size=16).hexdigest()


def disagreements(
    run: Mapping[str, Any], earlier: Iterator[Mapping[str, Any]]
) -> list[Disagreement]:
    """The scores of `run` that an earlier run has otherwise, each once."""
    found: dict[str, Disagreement] = {}
    for other in earlier:
        for mine, theirs in _same(run, other):
            for key, value in mine["scores"].items():
                recorded = theirs["scores"].get(key)
                if recorded is None or key in found or _close(value, recorded):
                    continue
                differing = tuple(_differences(run, other))
                found[key] = Disagreement(
                    key, value, recorded, str(other["ended"]), differing
                )
    return list(found.values())


def records_beside(
    folder: Path, words: set[str], but: Iterable[Path] = ()
) -> Iterator[dict[str, Any]]:
    """The runs in records of this project that hold one of these words, newest first.

    Args:
        folder: Where this run's record goes.
        words: Hashes of weights, or names of fields.
        but: Files that are left out.
    """
    paths = [*folder.glob("evalguard*.json")]
    if not _is_of_everybody(folder.parent):
        paths += folder.parent.glob("*/evalguard*.json")
    dated = []
    for path in set(paths) - set(but):
        with suppress(OSError):
            dated.append((path.stat().st_mtime, path.stat().st_size, path))
    for _, size, path in sorted(dated, reverse=True)[:_NEWEST]:
        if size > _LARGE:
            continue
        with suppress(OSError, ValueError, KeyError, TypeError):
            text = path.read_text(encoding="utf-8")
            if any(one in text for one in words):  # cheaper than to parse it
                yield from reversed(json.loads(text)["runs"])


def _is_of_everybody(folder: Path) -> bool:
    """Whether what lies in a folder need not be of one project: that of temporary files, home."""
    with suppress(OSError, RuntimeError):
        where = folder.resolve()
        shared = (
            Path(tempfile.gettempdir()).resolve(),
            Path.home().resolve(),
            Path(where.anchor),
        )
        return where in shared
    return True


def _same(
    run: Mapping[str, Any], other: Mapping[str, Any]
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Evaluations of the same stage, weights and samples in two runs."""
    for mine in run["history"]:
        for theirs in other.get("history", ()):
            one = mine.get("weights")
            if (
                one is None
                or one != theirs.get("weights")
                or mine["stage"] != theirs["stage"]
            ):
                continue
            if (
                _samples(run, mine["stage"])
                == _samples(other, mine["stage"])
                is not None
            ):
                yield mine, theirs


def _samples(run: Mapping[str, Any], stage: str) -> dict[str, str] | None:
    """The hash of each set that a stage evaluated, None where one is unknown."""
    sets = {}
    for key, seen in run["evaluated_on"].items():
        if key.split("/")[0] == _KEYS[stage]:
            sets[key] = seen["hash"]
    if not sets or None in sets.values():
        return None
    return sets


def _close(one: float, other: float) -> bool:
    return abs(one - other) <= max(_ABSOLUTE, _RELATIVE * max(abs(one), abs(other)))


def _differences(run: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[str]:
    for name in _COMPARED:
        mine = run.get(name)
        theirs = other.get(name)
        if mine == theirs:
            continue
        if not isinstance(mine, Mapping) or not isinstance(theirs, Mapping):
            yield f"{name}: {theirs}, now {mine}"
            continue
        for key in {**theirs, **mine}:
            if mine.get(key) != theirs.get(key):
                yield f"{name}.{key}: {theirs.get(key)}, now {mine.get(key)}"
