"""On which modules a mode has an effect: what they compute is another thing in train mode."""

from __future__ import annotations

import dis
import functools
import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any, Literal

import torch
from torch import nn

from lightning_evalguard.instruments.source import owner_of

Effect = Literal["certain", "possible"]
_DEEP = 4  # functions that call functions
_NO_EFFECT = (
    "torch.nn.modules.",
    "torch.nn.parallel.",
    "torch.nn.utils.parametrize.",
    "torch._dynamo.",
    "torch.jit.",
    "torch.fx.",
    "torch.distributed.",
    "torch.utils.",
    "torchmetrics.",
    "lightning.",
    "pytorch_lightning.",
)
_NOT_COMPUTING = frozenset(
    {
        "__init__",
        "train",
        "eval",
        "extra_repr",
        "__repr__",
        "__setstate__",
        "setup",
        "teardown",
    }
)
_SETTINGS = (
    "configure_",
    "on_train_",
    "on_fit_",
    "on_validation_",
    "on_test_",
    "on_predict_",
)
_RATES = (
    "p",
    "drop_prob",
    "drop_rate",
    "drop_path",
    "dropout",
    "dropout_p",
    "drop",
    "prob",
    "rate",
)


def effect_of(module: nn.Module) -> Effect | None:
    """Whether train mode changes what `module` itself computes.

    Returns:
        ``"certain"`` for dropout with p > 0, batch norm and their kin; ``"possible"`` for any other
        class whose code reads ``training``, and for hooks that do; None where the mode has no
        effect.
    """
    cls = _class(module)
    if _runs_torchs_forward(cls) and "forward" not in module.__dict__:
        known = _known_effect(module)
        if known is not None:
            return known
    if cls.__module__.startswith("torch.jit."):
        return _effect_in_script(module)
    if _reads(cls).own:
        if _drops_nothing(module, cls):
            return None
        return "possible"
    if any(map(_reads_a_flag, _callables_on(module))):
        return "possible"
    return None


def _known_effect(module: nn.Module) -> Effect | None:
    """What torch's own modules do in train mode."""
    changes = drops(module)
    if isinstance(module, nn.RReLU):
        changes = module.lower != module.upper
    elif isinstance(module, nn.modules.instancenorm._InstanceNorm):
        changes = module.track_running_stats and module.running_mean is not None
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        # without any, both modes take the batch's
        changes = module.running_mean is not None
    elif type(module) is nn.utils.parametrizations._SpectralNorm:
        changes = module.n_power_iterations > 0
    if changes:
        return "certain"
    return None


def drops(module: nn.Module) -> bool:
    """Whether one of torch's own modules has a dropout that is on in train mode."""
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p > 0
    if isinstance(module, nn.RNNBase):
        return module.dropout > 0 and module.num_layers > 1
    if isinstance(module, nn.MultiheadAttention):
        return isinstance(module.dropout, float) and module.dropout > 0
    return False


def tracks_statistics(module: nn.Module) -> bool:
    """Whether `module` moves running statistics in train mode."""
    return (
        isinstance(module, nn.modules.batchnorm._NormBase)
        and module.track_running_stats
        and module.running_mean is not None
        and module.momentum != 0.0
    )


def is_dropout(module: nn.Module) -> bool:
    """Whether `module` is torch's dropout in one of its forms."""
    return isinstance(module, nn.modules.dropout._DropoutNd)


def is_norm(module: nn.Module) -> bool:
    """Whether `module` normalises by running statistics: what a plan often keeps in eval mode."""
    return isinstance(module, nn.modules.batchnorm._NormBase)


def read_by_others(modules: Mapping[str, nn.Module]) -> set[int]:
    """``id()`` of the modules whose mode another module's code reads: `self.body.training`.

    Args:
        modules: All modules of a model, by qualified name.
    """
    read: set[int] = set()
    for name, module in modules.items():
        reads = _reads(_class(module))
        for path in reads.others:
            target = _follow(module, path)
            if target is not None:
                read.add(id(target))
        if reads.unknown:
            below = ""
            if name:
                below = f"{name}."
            read.update(
                id(m) for n, m in modules.items() if n.startswith(below) and n != name
            )
    return read


def _follow(module: nn.Module, path: Iterable[str]) -> nn.Module | None:
    at: Any = module
    for key in path:
        own = vars(at) if isinstance(at, nn.Module) else {}
        at = own.get("_modules", {}).get(key, own.get(key))
    if not isinstance(at, nn.Module):
        return None
    return at


def _class(module: nn.Module) -> Any:
    # untyped: mypy holds that Module's __hash__ does not suit a cache's key
    return type(module)


def _drops_nothing(module: nn.Module, cls: Any) -> bool:
    """Whether a user's own dropout has nothing but zeros for a rate."""
    if "drop" not in cls.__name__.lower():
        return False
    own = vars(module)
    rates = [own[key] for key in _RATES if isinstance(own.get(key), (int, float))]
    return bool(rates) and not any(rates)


# what code reads


@dataclass(frozen=True)
class TrainingReads:
    """Whose ``training`` is read.

    Attributes:
        own: The module's own.
        others: Another one's, by its path from the module: ``("body", "norm")``.
        unknown: One that the code does not name: in a loop, in a function that is given a module.
    """

    own: bool = False
    others: frozenset[tuple[str, ...]] = field(default_factory=frozenset)
    unknown: bool = False


@functools.cache
def _runs_torchs_forward(cls: Any) -> bool:
    """Whether `cls` computes what torch's own class does, if only among other things."""
    for base in cls.__mro__:
        if base.__module__.startswith("torch."):
            return True
        forward = vars(base).get("forward")
        if forward is None:
            continue
        codes = list(_codes(forward))
        return any(
            {"super", "forward", "training"} & {*c.co_names, *c.co_freevars}
            for c in codes
        )
    return True


@functools.cache
def _reads(cls: Any) -> TrainingReads:
    """What the methods read that `cls` or a user's base class defines."""
    own = False
    unknown = False
    others = set()
    for base in cls.__mro__:
        if base is nn.Module:
            break
        if f"{base.__module__}.".startswith(_NO_EFFECT):
            continue
        for name, member in vars(base).items():
            if name in _NOT_COMPUTING or name.startswith(_SETTINGS):
                continue
            for path in _flags_in(member, _DEEP, set()):
                own |= path == ()
                unknown |= path is None
                if path:
                    others.add(path)
    return TrainingReads(own or unknown, frozenset(others), unknown)


def _reads_a_flag(function: Any) -> bool:
    return any(True for _ in _flags_in(function, _DEEP, set()))


def _callables_on(module: nn.Module) -> Iterator[Any]:
    """A `forward` set on the instance, and forward hooks."""
    own = module.__dict__
    if "forward" in own:
        yield own["forward"]
    for registry in ("_forward_pre_hooks", "_forward_hooks"):
        yield from (own.get(registry) or {}).values()


def _flags_in(
    member: Any, depth: int, looked_at: set[CodeType], is_method: bool = True
) -> Iterator[tuple[str, ...] | None]:
    """The path from `self` to each module whose ``training`` is read; None where unknown."""
    for function in _functions(member):
        codes = [c for c in _codes(function) if c not in looked_at]
        looked_at.update(codes)
        for code in codes:
            for chain in _chains(code):
                yield _path(chain, is_method)
            if depth:
                for called in _called(code, function.__globals__):
                    yield from _flags_in(called, depth - 1, looked_at, is_method=False)


def _path(chain: tuple[str, ...], is_method: bool) -> tuple[str, ...] | None:
    if is_method and chain[0] == "self":
        return chain[1:]
    return None


def _functions(member: Any) -> Iterator[FunctionType]:
    """The functions behind a member of a class, or a hook: below decorators and descriptors."""
    waiting, taken = [member], 0
    while waiting and taken < 16:
        thing, taken = waiting.pop(), taken + 1
        if isinstance(thing, FunctionType):
            yield thing
            waiting.append(vars(thing).get("__wrapped__"))
            for cell in thing.__closure__ or ():
                try:
                    held = cell.cell_contents
                except ValueError:  # not yet filled
                    continue
                if isinstance(held, (FunctionType, MethodType)):
                    waiting.append(held)
        elif isinstance(thing, (staticmethod, classmethod, MethodType)):
            waiting.append(thing.__func__)
        elif isinstance(thing, property):
            waiting.append(thing.fget)
        elif isinstance(thing, (functools.cached_property, functools.partial)):
            waiting.append(thing.func)
        elif thing is not None and not isinstance(
            thing, (type, nn.Module, torch.Tensor)
        ):
            waiting.append(inspect.getattr_static(type(thing), "__call__", None))


def _codes(function: Any) -> Iterator[CodeType]:
    """The code of a function and of those that it defines."""
    code = getattr(function, "__code__", None)
    waiting = [code] if isinstance(code, CodeType) else []
    while waiting:
        code = waiting.pop()
        yield code
        waiting += [c for c in code.co_consts if isinstance(c, CodeType)]


def _called(code: CodeType, scope: dict[str, Any]) -> Iterator[FunctionType]:
    """The user's own functions, by the global names that `code` uses."""
    for name in code.co_names:
        thing = scope.get(name)
        held = [thing]
        if isinstance(thing, ModuleType) and _is_users_file(thing):
            held = [vars(thing).get(inner) for inner in code.co_names]
        for function in held:
            if isinstance(function, FunctionType) and _is_users(function):
                yield function


def _is_users_file(module: ModuleType) -> bool:
    path = vars(module).get("__file__")  # a built-in module has none
    return isinstance(path, str) and owner_of(path) == "user"


def _is_users(function: FunctionType) -> bool:
    return owner_of(function.__code__.co_filename) not in ("torch", "stdlib", "self")


_SILENT = frozenset({"CACHE", "EXTENDED_ARG", "NOP", "PRECALL", "PUSH_NULL", "RESUME"})


@functools.cache
def _chains(code: CodeType) -> tuple[tuple[str, ...], ...]:
    """The names that lead to each ``.training`` that `code` reads: ``("self", "body")``."""
    if "training" not in code.co_names and "getattr" not in code.co_names:
        return ()
    chains: list[tuple[str, ...]] = []
    chain: tuple[str, ...] = ()
    asks = False  # whether this may be `getattr(x, "training")`
    for step in dis.get_instructions(code):
        name = step.opname
        if name in _SILENT:
            continue
        if name.startswith(("LOAD_FAST", "LOAD_DEREF", "LOAD_NAME", "LOAD_GLOBAL")):
            said = step.argval[-1] if isinstance(step.argval, tuple) else step.argval
            asks = True if said == "getattr" else asks
            chain = (str(said),)
        elif name in ("LOAD_ATTR", "LOAD_METHOD"):
            if step.argval == "training":
                chains.append(chain or ("",))
                chain = ()
            else:
                chain = (*chain, str(step.argval)) if chain else ()
        elif name == "LOAD_CONST" and step.argval == "training" and asks:
            chains.append(chain or ("",))
        else:
            chain, asks = (), False
    return tuple(c for c in chains if c[-1].lstrip("_") != "trainer")


def _effect_in_script(module: nn.Module) -> Effect | None:
    """Whether a scripted module reads its flag; a traced one has it baked in."""
    try:
        graph = str(module.graph)
    except Exception:  # noqa: BLE001 - it has no forward of its own
        return None
    drops_nothing = "dropout" in graph and "[value=0.]" in graph
    if 'name="training"' in graph and not drops_nothing:
        return "possible"
    return None
