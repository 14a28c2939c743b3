"""Does a fit begin from weights that a load was meant to write and did not?"""

from __future__ import annotations

from lightning_evalguard.checks.check import Moment
from lightning_evalguard.checks.weights import loads
from lightning_evalguard.checks.weights.initial import is_drawn, is_own_draw
from lightning_evalguard.checks.weights.loads import Load
from lightning_evalguard.checks.weights.origin import (
    MemoryReads,
    kind_of,
    of_load,
    parameters_of,
    trained,
)
from lightning_evalguard.checks.weights.words import (
    are,
    listed_modules,
    tops,
    weights_finding,
)
from lightning_evalguard.model.tensors import Held, Inventory
from lightning_evalguard.report import Finding

_reported: list[Load] = []
_MANY = 64


def before_training(inventory: Inventory, now: Moment) -> list[Finding]:
    """Loads that matched next to nothing, and after which the model is trained from scratch."""
    findings = []
    everything = parameters_of(inventory)
    for load, group in _by_load(everything):
        if not load.missed_the_model or not _is_new(load):
            continue
        names = tops(group, everything)
        findings.append(
            of_load(
                load,
                now,
                f"training begins with {listed_modules(names, inventory.modules)} as initialised",
                subject=names[0],
                kind=kind_of(names[0], inventory),
                certain=not load.own,
            )
        )
    return findings


def frozen(inventory: Inventory, reads: MemoryReads, now: Moment) -> list[Finding]:
    """Frozen layers that a load left out and that an evaluation inside a fit reads."""
    findings = []
    everything = parameters_of(inventory)
    for load, group in _by_load(everything):
        random = [
            held
            for held in group
            if _is_frozen_and_random(held) and held.tensor in reads
        ]
        if not random or not _is_new(load):
            continue
        names = tops(random, everything)
        findings.append(
            of_load(
                load,
                now,
                f"{listed_modules(names, inventory.modules)} {are(names)} frozen as initialised",
                subject=names[0],
                kind=kind_of(names[0], inventory),
            )
        )
    return findings


def loads_of_itself(inventory: Inventory, now: Moment) -> list[Finding]:
    """Loads of a trained module's own tensors, and nothing written since."""
    findings = []
    for name, module in inventory.modules.items():
        load = loads.loads_of(module)
        if (
            load is None
            or not load.changed_nothing
            or load.written != loads.written(module)
        ):
            continue
        parameters = list(module.parameters())
        known = bool(parameters) and all(
            p in trained or loads.touched(p) for p in parameters
        )
        if known and _is_new(load):
            fact = (
                "a load gave the model its own tensors and changed nothing: `state_dict()` holds "
                "the tensors themselves, which training goes on to write; expected a copy"
            )
            remedy = "Keep `copy.deepcopy(model.state_dict())`, and load that."
            findings.append(
                weights_finding(
                    now, fact, remedy, subject=name, site=load.site, certain=False
                )
            )
    return findings


def _by_load(parameters: list[Held]) -> list[tuple[Load, list[Held]]]:
    """Parameters that a load left out and nothing wrote since, by that load."""
    groups: dict[int, tuple[Load, list[Held]]] = {}
    for held in parameters:
        load = loads.missed(held.tensor)
        if load is not None and held.tensor not in trained:
            groups.setdefault(id(load), (load, []))[1].append(held)
    return list(groups.values())


def _is_frozen_and_random(held: Held) -> bool:
    if held.tensor.requires_grad:
        return False
    key = held.name.rpartition(".")[2]
    return is_drawn(held.module, key, held.tensor) or is_own_draw(held.module)


def _is_new(load: Load) -> bool:
    """Whether the load was not spoken of yet; from now on it was."""
    if any(load is known for known in _reported):
        return False
    _reported.append(load)
    del _reported[:-_MANY]
    return True
