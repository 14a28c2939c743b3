"""Where do the weights of an evaluation on its own come from: a load, training, or chance?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import Tensor

from lightning_evalguard.checks.check import Moment
from lightning_evalguard.checks.weights import loads
from lightning_evalguard.checks.weights.initial import (
    is_constant,
    is_drawn,
    is_from_elsewhere,
    is_own_draw,
)
from lightning_evalguard.checks.weights.loads import Load
from lightning_evalguard.checks.weights.reads import MemoryReads
from lightning_evalguard.checks.weights.unregistered import how_to_register
from lightning_evalguard.checks.weights.words import (
    OF_LIGHTNING,
    Remedies,
    are,
    listed_modules,
    tops,
    weights_finding,
)
from lightning_evalguard.model.identity import Identity
from lightning_evalguard.model.tensors import Held, Inventory, identity
from lightning_evalguard.report import Finding

_MANY = 1024  # tensors that are remembered before those gone are looked for


class Known:
    """Tensors of which something is known in this process, not kept alive."""

    def __init__(self) -> None:
        self._at: dict[int, Identity] = {}
        self._many = _MANY

    def add(self, held: Held) -> None:
        self._at[id(held.tensor)] = identity(held)
        if len(self._at) > self._many:
            self._at = {key: same for key, same in self._at.items() if not same.gone}
            self._many = max(_MANY, 2 * len(self._at))

    def __contains__(self, tensor: Tensor) -> bool:
        same = self._at.get(id(tensor))
        return same is not None and same(tensor)


trained = Known()
reported = Known()
UNTRAINED = (
    "weights: nothing loaded or trained the model in this process; it was scored as it was "
    "initialised"
)


@dataclass
class Origins:
    """Parameters by where their values come from."""

    known: list[Held] = field(default_factory=list)
    drawn: list[Held] = field(default_factory=list)
    constant: list[Held] = field(default_factory=list)
    unknown: list[Held] = field(default_factory=list)
    missed: dict[int, list[Held]] = field(default_factory=dict)
    loads: dict[int, Load] = field(default_factory=dict)

    @property
    def left_out(self) -> list[Held]:
        """What a load did not write."""
        return [held for group in self.missed.values() for held in group]


def origins(parameters: Iterable[Held]) -> Origins:
    """Sort parameters by where their values come from."""
    found = Origins()
    own_draws: dict[int, bool] = {}
    for held in parameters:
        load = loads.missed(held.tensor)
        if load is not None and held.tensor not in trained:
            found.loads[id(load)] = load
            found.missed.setdefault(id(load), []).append(held)
        else:
            _group(found, held, own_draws).append(held)
    _keep_whole_layers(found)
    return found


def _group(found: Origins, held: Held, own_draws: dict[int, bool]) -> list[Held]:
    """Where a parameter belongs that no load has left out."""
    tensor = held.tensor
    key = held.name.rpartition(".")[2]
    # what was drawn anew after a load or a fit is told by `redrawn`
    if tensor in trained or loads.touched(tensor) or is_from_elsewhere(tensor):
        return found.known
    if loads.set_by_hand(tensor):
        return found.unknown
    if is_drawn(held.module, key, tensor):
        return found.drawn
    if _is_own_draw(held, own_draws):
        return found.drawn
    if is_constant(held.module, key, tensor):
        return found.constant
    return found.unknown


def _keep_whole_layers(found: Origins) -> None:
    """A drawn bias says nothing where the weight beside it came from elsewhere."""
    elsewhere = {id(held.module) for held in found.unknown}
    found.unknown += [held for held in found.drawn if id(held.module) in elsewhere]
    found.drawn = [held for held in found.drawn if id(held.module) not in elsewhere]


def _is_own_draw(held: Held, asked: dict[int, bool]) -> bool:
    key = id(held.module)
    if key not in asked:
        asked[key] = is_own_draw(held.module)
    return asked[key]


def judge(
    inventory: Inventory,
    reads: MemoryReads | None,
    now: Moment,
    notes: list[str],
    remedies: Remedies = OF_LIGHTNING,
) -> list[Finding]:
    """What is wrong with the weights of an evaluation that no training came before.

    Args:
        inventory: The model's tensors.
        reads: What the evaluation's first step reads; None where that is not known.
        now: Where the run stands.
        notes: Gets a sentence where nothing shows that other weights are meant.
        remedies: In the words of the host.
    """
    everything = parameters_of(inventory)
    used = everything
    if reads is not None:
        used = [held for held in everything if counts(held, reads, inventory)]
    if not used:
        return []
    found = origins(used)
    left_out, drawn = found.left_out, found.drawn
    known = found.known
    random = _elements(left_out) + _elements(drawn)
    if not known and random >= _elements(used) / 2:
        # a validation before the training is a usual baseline; a test is not
        if not found.loads and now.stage not in ("test", "evaluate"):
            notes.append(UNTRAINED)
            return []
        return [_nothing_loaded(found, used, now, remedies)]
    findings = [
        _partly_loaded(found, key, everything, inventory, now) for key in found.missed
    ]
    # an initialisation of the user's is no load: others must be known to come from elsewhere
    if reads is not None and known:
        new = [held for held in drawn if _counts(held, left_out)]
        findings += [_as_drawn(new, everything, inventory, now)] if new else []
    return findings


def counts(held: Held, reads: MemoryReads, inventory: Inventory) -> bool:
    """Whether an evaluation reads a parameter and something comes of it."""
    if held.tensor not in reads:
        return False
    parts = held.name.split(".")[:-1]
    names = [".".join(parts[:n]) for n in range(1, len(parts) + 1)]
    owners = [inventory.modules[name] for name in names if name in inventory.modules]
    return not reads.in_vain(held.tensor, owners)


def _counts(held: Held, left_out: list[Held]) -> bool:
    """Whether a random layer among others is one to speak of, and not spoken of yet."""
    if held.tensor in reported or not held.tensor.requires_grad:
        return False
    return held.owner not in {other.owner for other in left_out}


def parameters_of(inventory: Inventory) -> list[Held]:
    """The parameters that have a shape."""
    return [h for h in inventory.held.values() if h.kind == "parameter" and not h.lazy]


def _elements(chosen: Iterable[Held]) -> int:
    return sum(held.tensor.numel() for held in chosen)


def _nothing_loaded(
    found: Origins, used: list[Held], now: Moment, remedies: Remedies
) -> Finding:
    load = next(iter(found.loads.values()), None)
    scored = {"predict": "predicts"}.get(now.stage, "is scored")
    if load is not None:
        return of_load(
            load, now, f"the model {scored} as it was initialised", subject=""
        )
    n = _elements(used)
    return weights_finding(
        now,
        f"is scored as it was initialised: nothing loaded or trained its {n:,} weights in this "
        "process, expected trained weights",
        remedies.untrained,
        subject="",
        # a script may score chance on purpose; a test of a Trainer is meant for a model
        certain=now.stage != "evaluate",
    )


def _partly_loaded(
    found: Origins, key: int, everything: list[Held], inventory: Inventory, now: Moment
) -> Finding:
    load, group = found.loads[key], found.missed[key]
    names = tops(group, everything)
    return of_load(
        load,
        now,
        f"{listed_modules(names, inventory.modules)} {are(names)} evaluated as initialised",
        subject=names[0],
        kind=kind_of(names[0], inventory),
    )


def _as_drawn(
    drawn: list[Held], everything: list[Held], inventory: Inventory, now: Moment
) -> Finding:
    names = tops(drawn, everything)
    others = ""
    if names[1:]:
        others = f", as {are(names[1:])} {listed_modules(names[1:], inventory.modules)}"
    return weights_finding(
        now,
        "is evaluated as initialised, while other weights of the model were loaded or trained"
        f"{others}",
        how_to_register(names[0], modules=True)
        if names[0] in inventory.unregistered
        else "Load its weights too, after all layers are made and initialised.",
        subject=names[0],
        kind=kind_of(names[0], inventory),
    )


def kind_of(name: str, inventory: Inventory) -> str | None:
    """The class of a module by its name."""
    module = inventory.modules.get(name, inventory.unregistered.get(name))
    if module is None:
        return None
    return type(module).__name__


def of_load(
    load: Load,
    now: Moment,
    effect: str,
    *,
    subject: str | None = None,
    kind: str | None = None,
    certain: bool = True,
) -> Finding:
    """A load that left weights out, and what follows."""
    share = 0.0
    if load.expected_elements:
        share = load.elements / load.expected_elements
    fact = (
        f"a load matched {load.matched:,} of {load.expected:,} keys ({share:.0%} of the elements)"
        f" and {effect}"
    )
    if not load.given:
        fact += "; the state dict was empty"
    if load.unused:
        named = ", ".join(f"`{key}`" for key in load.unused[:2])
        fact += f"; keys that the module which loads them does not have: {named}"
    if load.own:
        fact += f"; for {load.own:,} keys the state dict held the model's own tensors"
    return weights_finding(
        now,
        fact,
        _remedy(load),
        subject=subject,
        kind=kind,
        site=load.site,
        certain=certain,
    )


def _remedy(load: Load) -> str:
    sign, prefix = load.prefix[:1], load.prefix[1:]
    if sign == "-":
        return (
            f'Pass `{{k.removeprefix("{prefix}"): v for k, v in state_dict.items()}}`.'
        )
    if sign == "+":
        return f'Pass `{{"{prefix}" + k: v for k, v in state_dict.items()}}`.'
    if load.own:
        return "Leave the `update` of `state_dict()` out and load with `strict=True`."
    if not load.given:
        return (
            'Pass the weights themselves, e.g. `checkpoint["state_dict"]`; a filter of its keys '
            "must name the prefix that they have."
        )
    return "Pass `strict=True` and rename the keys that the error names, or train what is new."
