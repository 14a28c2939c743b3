"""Does a fit begin from weights that a load was meant to write and did not?"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils.spectral_norm import SpectralNorm

from lightning_evalguard.checks.check import Moment
from lightning_evalguard.checks.weights import loads
from lightning_evalguard.checks.weights.initial import is_drawn, is_own_draw
from lightning_evalguard.checks.weights.loads import Load
from lightning_evalguard.checks.weights.origin import (
    kind_of,
    of_load,
    parameters_of,
    trained,
)
from lightning_evalguard.checks.weights.reads import MemoryReads
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
_ITERATIONS = 4  # after which the largest singular value is known well enough
_ESTIMATED = 0.5  # of it, at least, once a spectral norm has seen a batch


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
                certain=bool(load.given) and not load.own,
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


def statistics(inventory: Inventory, reads: MemoryReads, now: Moment) -> list[Finding]:
    """Norms whose weights a load brought and whose running statistics nothing estimated."""
    names = [
        name for name, module in inventory.modules.items() if _has_none(module, reads)
    ]
    if not names:
        return []
    first = inventory.modules[names[0]]
    assert isinstance(first.running_mean, Tensor)
    load = loads.missed(first.running_mean)
    more = ""
    if names[1:]:
        more = f", as {are(names[1:])} {listed_modules(names[1:])}"
    return [
        weights_finding(
            now,
            "is evaluated with a running mean of 0 and a variance of 1, as it was initialised, "
            f"while its weights were loaded: the statistics were not{more}",
            "Save and load `model.state_dict()`, which holds them, in place of the parameters.",
            subject=names[0],
            kind=type(first).__name__,
            site=load.site if load is not None else None,
        )
    ]


def _has_none(module: nn.Module, reads: MemoryReads) -> bool:
    """Whether a norm in eval mode has loaded weights and the statistics of its constructor."""
    if not isinstance(module, _NormBase) or module.training or module.weight is None:
        return False
    mean, variance, batches = (
        module.running_mean,
        module.running_var,
        module.num_batches_tracked,
    )
    if mean is None or variance is None or batches is None or mean not in reads:
        return False
    weight = module.weight
    if loads.touched(mean) or not loads.loaded(weight) or weight in trained:
        return False
    return bool((mean == 0).all() & (variance == 1).all() & (batches == 0))


def unestimated_norms(inventory: Inventory, now: Moment) -> list[Finding]:
    """Layers under torch's old spectral norm whose largest singular value is not estimated yet.

    Its two vectors are random until a forward in train mode (pytorch/pytorch#51800).
    """
    for name, module in inventory.modules.items():
        for hook in module._forward_pre_hooks.values():
            if not isinstance(hook, SpectralNorm) or module.training:
                continue
            divisor, norm = _norms(hook, module)
            if divisor < _ESTIMATED * norm:
                return [
                    weights_finding(
                        now,
                        f"its spectral norm divides by {divisor:.3g}, expected about {norm:.3g}: "
                        "it is estimated in train mode, and no forward ran in it",
                        "Run a batch through it in train mode first, or make it with "
                        "`torch.nn.utils.parametrizations.spectral_norm`.",
                        subject=name,
                        kind=type(module).__name__,
                    )
                ]
    return []


def _norms(hook: SpectralNorm, module: nn.Module) -> tuple[float, float]:
    """What a spectral norm divides by, and the largest singular value, from below."""
    with torch.no_grad():
        matrix = hook.reshape_weight_to_matrix(
            getattr(module, f"{hook.name}_orig")
        ).float()
        u = getattr(module, f"{hook.name}_u").float()
        v = getattr(module, f"{hook.name}_v").float()
        divisor = float(u @ (matrix @ v))
        for _ in range(_ITERATIONS):
            v = F.normalize(matrix.t() @ u, dim=0)
            u = F.normalize(matrix @ v, dim=0)
        return divisor, float(u @ (matrix @ v))


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
