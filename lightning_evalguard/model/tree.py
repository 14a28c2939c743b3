"""The module tree of a model, read once and again only when something was registered in it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.nn.modules import module as _module


class _Registrations:
    """Counts every module, parameter and buffer registered anywhere, while somebody listens."""

    def __init__(self) -> None:
        self.count = 0
        self._users = 0
        self._handles: list[Any] = []

    def _hit(self, *_: Any) -> None:
        self.count += 1

    def start(self) -> None:
        self._users += 1
        if self._users == 1:
            self._handles = [
                _module.register_module_module_registration_hook(self._hit),
                _module.register_module_parameter_registration_hook(self._hit),
                _module.register_module_buffer_registration_hook(self._hit),
            ]
        self.count += 1

    def stop(self) -> None:
        self._users -= 1
        if self._users == 0:
            for handle in self._handles:
                handle.remove()


registrations = _Registrations()


def parts_of(root: nn.Module) -> int:
    """How many modules a model has, with the parameters and buffers that they hold."""
    parts = 0
    for module in root.modules():
        held = module.__dict__
        parts += 1 + len(held.get("_parameters", ())) + len(held.get("_buffers", ()))
    return parts


class Modes:
    """Each submodule's `training` flag, in microseconds.

    A flag is read from the module's ``__dict__``, or through the attribute where a class computes
    it (a property, a ScriptModule).

    Args:
        root: The model.
    """

    def __init__(self, root: nn.Module) -> None:
        self.root = root
        self.names: list[str] = []
        self.modules: list[nn.Module] = []
        self._plain: list[dict[str, Any]] = []
        self._computed: list[nn.Module] = []
        self._order: list[int] = []
        self._seen = -1

    def refresh(self, force: bool = False) -> None:
        """Walk the tree again if anything was registered since the last walk."""
        if self._seen == registrations.count and not force:
            return
        self._seen = registrations.count
        self.names, self.modules = [], []
        for name, module in self.root.named_modules():
            self.names.append(name)
            self.modules.append(module)
        plain = [_has_plain_flag(m) for m in self.modules]
        self._plain = [
            m.__dict__ for m, p in zip(self.modules, plain, strict=True) if p
        ]
        self._computed = [m for m, p in zip(self.modules, plain, strict=True) if not p]
        # where each module of (plain..., computed...) stands in self.modules
        n = len(self._plain)
        places = {True: iter(range(n)), False: iter(range(n, len(self.modules)))}
        self._order = [next(places[p]) for p in plain]

    def has_grown(self) -> bool:
        """Whether anything was registered since the last walk."""
        return self._seen != registrations.count

    def any_training(self) -> bool:
        """Whether any submodule is in train mode."""
        self.refresh()
        # a loop, not any(genexpr): half the time on a thousand modules
        for flags in self._plain:
            if flags["training"]:
                return True
        return any(m.training for m in self._computed)

    def read(self) -> list[bool]:
        """The flags, in the order of `modules`."""
        self.refresh()
        flags = [d["training"] for d in self._plain]
        if not self._computed:
            return flags
        flags += [m.training for m in self._computed]
        return [flags[i] for i in self._order]


def _has_plain_flag(module: nn.Module) -> bool:
    return "training" in module.__dict__ and not any(
        "training" in vars(c) for c in type(module).__mro__
    )


def inside(module: nn.Module) -> tuple[str, nn.Module]:
    """The user's own module in what DDP, Fabric, accelerate or `torch.compile` made of it.

    Returns:
        What stands before its names there, as ``module._orig_mod.``, and the module.
    """
    prefix = ""
    while (name := _wraps(module)) is not None:
        inner = module._modules.get(name)
        if inner is None:
            break
        prefix, module = f"{prefix}{name}.", inner
    return prefix, module


def compiled(module: nn.Module) -> bool:
    """Whether this is what `torch.compile` makes of a module."""
    return _is_of(module, "OptimizedModule", "torch._dynamo")


def _wraps(module: nn.Module) -> str | None:
    """The name under which a wrapper holds the module that it stands for."""
    if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return "module"
    if _is_of(module, "_FabricModule", "lightning"):
        return "_forward_module"
    if compiled(module):
        return "_orig_mod"
    return None


def _is_of(module: nn.Module, name: str, package: str) -> bool:
    kind = type(module)
    return kind.__name__ == name and kind.__module__.startswith(package)


def parent(name: str) -> str | None:
    """Qualified name of the module that holds `name`; None for the root."""
    if not name:
        return None
    return name.rpartition(".")[0]


def collapse(names: Iterable[str]) -> dict[str, list[str]]:
    """Names grouped under those of them that have no ancestor among them.

    Args:
        names: Qualified names.

    Returns:
        Topmost name -> the names at or under it, in the order given.
    """
    chosen = set(names)
    groups: dict[str, list[str]] = {}
    for name in names:
        top, at = name, name
        while at:
            at = at.rpartition(".")[0]
            if at in chosen:
                top = at
        groups.setdefault(top, []).append(name)
    return groups
