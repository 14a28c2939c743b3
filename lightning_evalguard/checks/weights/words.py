"""How findings about weights name layers and numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn

from lightning_evalguard.checks.check import Moment
from lightning_evalguard.instruments.source import Site
from lightning_evalguard.model.tensors import Held
from lightning_evalguard.report import Finding

_NAMED = 3


def weights_finding(
    now: Moment,
    fact: str,
    remedy: str,
    *,
    subject: str | None = None,
    kind: str | None = None,
    site: Site | None = None,
    certain: bool = True,
) -> Finding:
    """A finding of this check at this moment."""
    return Finding(
        check="weights",
        stage=now.stage,
        fact=fact,
        remedy=remedy,
        subject=subject,
        subject_type=kind,
        location=site.location if site else None,
        expression=site.expression if site else None,
        function=site.function if site else None,
        epoch=now.epoch,
        step=now.step,
        rank=now.rank,
        certain=certain,
    )


def tops(chosen: Iterable[Held], everything: Iterable[Held]) -> list[str]:
    """The modules, as far up as possible, of whose tensors all are among the chosen."""
    wanted = {id(held.tensor) for held in chosen}
    spoiled: set[str] = set()
    owners: dict[str, None] = {}
    for held in everything:
        if id(held.tensor) in wanted:
            owners[held.owner] = None
        else:
            spoiled.update(_upwards(held.owner))
    found: dict[str, None] = {}
    for owner in owners:
        whole = [name for name in _upwards(owner) if name not in spoiled]
        found[whole[-1] if whole else owner] = None
    return list(found)


def _upwards(owner: str) -> list[str]:
    """`owner` and the modules above it, the model last."""
    names = [owner]
    while owner:
        owner = owner.rpartition(".")[0]
        names.append(owner)
    return names


def listed_modules(
    names: Sequence[str], modules: dict[str, nn.Module] | None = None
) -> str:
    """`a` (Linear), `b` (Linear) and 2 more."""
    said = []
    for name in names[:_NAMED]:
        kind = (modules or {}).get(name)
        typed = ""
        if kind is not None:
            typed = f" ({type(kind).__name__})"
        said.append(f"`{name}`{typed}" if name else "the whole model")
    more = len(names) - _NAMED
    return ", ".join(said) + (f" and {more} more" if more > 0 else "")


def are(names: Sequence[str]) -> str:
    """The verb that fits."""
    if len(names) == 1:
        return "is"
    return "are"
