"""How findings about weights name layers and numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from lightning_evalguard.checks.check import Moment
from lightning_evalguard.instruments.source import Site
from lightning_evalguard.model.tensors import Held
from lightning_evalguard.report import Finding

_NAMED = 3


@dataclass(frozen=True)
class Remedies:
    """What to do, in the words of the host that runs the training.

    Attributes:
        untrained: About weights that nothing loaded or trained.
        replaced: About a layer that took another's place after the optimizer was made.
        forgotten: About one that no optimizer holds.
    """

    untrained: str
    replaced: str
    forgotten: str


OF_LIGHTNING = Remedies(
    untrained='Pass `ckpt_path="..."` to the trainer, or call `load_from_checkpoint` and evaluate '
    "what it returns.",
    replaced="Replace it before `configure_optimizers` runs, e.g. in `__init__` or "
    "`configure_model`.",
    forgotten="Pass its parameters to the optimizer in `configure_optimizers`, or freeze it with "
    "`.requires_grad_(False)`.",
)
OF_SCRIPTS = Remedies(
    untrained="Evaluate the model that was trained, or call "
    "`model.load_state_dict(torch.load(...))` first.",
    replaced="Replace it before the optimizer is made.",
    forgotten="Pass its parameters to the optimizer, or freeze it with `.requires_grad_(False)`.",
)


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
