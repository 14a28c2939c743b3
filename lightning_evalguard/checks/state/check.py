"""Does an evaluation leave the model, its optimizers and torch's settings as it found them?"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as _module

from lightning_evalguard.allow import allowed
from lightning_evalguard.checks.check import Check, Moment
from lightning_evalguard.checks.state.writes import Places, Writes, attribute_of
from lightning_evalguard.data.batches import tensors
from lightning_evalguard.instruments.dispatch import Subscriber
from lightning_evalguard.instruments.lines import lines_that_change
from lightning_evalguard.instruments.settings import SETTINGS, settings
from lightning_evalguard.instruments.source import Site, owner_of, site_at, user_site
from lightning_evalguard.model.hashes import Prints
from lightning_evalguard.model.tensors import Held, Inventory, Kept, Marks, Training, kept, version
from lightning_evalguard.model.tree import registrations
from lightning_evalguard.report import Finding

if TYPE_CHECKING:
    from lightning_evalguard.instruments.replay import Look

_CLOSELY = 2  # batches of an evaluation on which also what costs more is looked at
_SPARSELY = 8  # from then on, every so many batches
_RARELY = 16  # from this one on few are looked at, each in full
_PROBES = 8  # parameters of which a piece tells whether weights were swapped unseen
_AT_EACH_BATCH = 1 << 16  # elements of buffers on the CPU whose contents are looked at then
_KNOBS = ("p", "dropout", "dropout_p", "drop_prob", "drop_rate", "momentum", "eps", "max_norm")
_HOOKS = {
    "_forward_pre_hooks": "forward pre-hook",
    "_forward_hooks": "forward hook",
    "_backward_pre_hooks": "backward pre-hook",
    "_backward_hooks": "backward hook",
}


class StateCheck(Check):
    """The `state` check: tripwires around every step, contents and settings at both ends.

    Args:
        optimizers: Gives the optimizers that train the model.
        schedulers: Gives their learning rate schedulers.
        accumulates: Whether gradients that stand when an evaluation begins are still needed.
    """

    name = "state"
    thins = True

    def __init__(
        self,
        optimizers: Callable[[], Iterable[Any]] = tuple,
        schedulers: Callable[[], Iterable[Any]] = tuple,
        accumulates: Callable[[], bool] = lambda: True,
    ) -> None:
        self.notes: list[str] = []
        self._optimizers = optimizers
        self._schedulers = schedulers
        self._accumulates = accumulates
        self._inventory: Inventory | None = None
        self._windows: list[_Window] = []
        self._evaluations = 0
        self._restless: set[str] = set()
        self._allowed: set[str] = set()
        self._assigned: dict[str, Site | None] = {}
        self._handles: list[Any] = []
        self._pending: list[_Change] = []

    # a run

    def open(self, root: nn.Module, now: Moment) -> Iterable[Finding]:
        registrations.start()
        self._inventory = Inventory(root)
        self._windows, self._pending = [], []
        self._evaluations = 0
        self._restless, self._allowed = set(), set()
        self._handles = [
            _module.register_module_parameter_registration_hook(self._registered),
            _module.register_module_buffer_registration_hook(self._registered),
            _module.register_module_module_registration_hook(self._registered),
        ]
        return ()

    def close(self, now: Moment) -> Iterable[Finding]:
        if self._inventory is None:
            return ()
        findings = self._flush(now)
        for handle in self._handles:
            handle.remove()
        registrations.stop()
        self._inventory = None
        return findings

    # an evaluation

    def start(self, now: Moment) -> Iterable[Finding]:
        inventory = self._held()
        inventory.refresh(force=True)
        self._assigned.clear()
        # Everything at the first evaluation; from then on a piece of each parameter, and all of
        # those that once moved.
        whole = None if self._evaluations == 0 else frozenset(self._restless) | _buffers(inventory)
        self._windows.append(_Window(inventory, self, whole, self._evaluations))
        self._evaluations += 1
        for name in inventory.opaque:
            self._note(f"`{name}` has no version or address: writes to it were not looked for")
        return ()

    def standing(self) -> Mapping[str, Any]:
        return self._windows[-1].standing() if self._windows else {}

    def before_step(self, now: Moment, args: tuple[Any, ...]) -> Iterable[Finding]:
        findings = self._flush(now)
        if self._windows:
            self._windows[-1].before_step(now, args)
        return findings

    def after_step(self, now: Moment, outputs: Any) -> Iterable[Finding]:
        if self._windows:
            self._pending += self._windows[-1].after_step(now)
        return ()

    def stop(self, now: Moment, error: BaseException | None) -> Iterable[Finding]:
        findings = list(self._flush(now))
        if self._windows:
            window = self._windows.pop()
            if error is None:
                self._held().refresh(force=True)
                findings += self._findings(window.stop(now), now)
        return findings

    # a witness (see `checks.check.Check`)

    def tripped(self) -> bool:
        """Whether the step that just ended moved anything."""
        return bool(self._pending)

    def watch(self, now: Moment) -> Subscriber:
        """Sees who writes to what the model holds, to its attributes and to the batch."""
        return self._windows[-1].watch() if self._windows else Subscriber()

    def saw(self, now: Moment, seen: Subscriber | None, look: Look | None) -> Iterable[Finding]:
        """Name the lines, and find what only the operators show."""
        if isinstance(seen, Writes) and self._windows:
            self._allowed |= seen.allowed
            self._pending += self._windows[-1].saw(seen, look)
            return self._findings(self._take(), now, seen)
        return self._flush(now)

    # how findings are made

    def _held(self) -> Inventory:
        assert self._inventory is not None, "open() comes first"
        return self._inventory

    def _optimization(self) -> _Optimization:
        return _Optimization(self._optimizers(), self._schedulers())

    def _note(self, sentence: str) -> None:
        if sentence not in self.notes:
            self.notes.append(sentence)

    def _registered(self, module: nn.Module, key: str, tensor: Any) -> None:
        if self._windows:
            owner = self._windows[-1].names.get(id(module))
            if owner is not None:
                self._assigned[f"{owner}.{key}" if owner else key] = user_site()
                if allowed("state"):
                    self._allowed.add(f"{owner}.{key}" if owner else key)

    def _take(self) -> list[_Change]:
        changes, self._pending = self._pending, []
        return changes

    def _flush(self, now: Moment) -> list[Finding]:
        return self._findings(self._take(), now)

    def _findings(
        self, changes: list[_Change], now: Moment, seen: Writes | None = None
    ) -> list[Finding]:
        groups: dict[tuple[Any, ...], list[_Change]] = {}
        for change in changes:
            if change.name in self._allowed:
                continue
            if change.site is None and change.writes:
                site = seen.sites.get(change.name) if seen is not None else None
                change.site = site or self._assigned.get(change.name)
            elif change.site is None and change.backward and seen is not None:
                change.site = seen.backward
            change.site = change.site or self.lines.get(change.name)
            where = change.site.location if change.site else None
            key = (change.owner, change.fact, change.certain, where)
            groups.setdefault(key, []).append(change)
        return [_finding(group, now) for group in groups.values()]


# one change


@dataclass
class _Change:
    """One thing that is not what it was.

    Attributes:
        name: Qualified name of the tensor, attribute or module, or what else it is called.
        kind: What it is, in words: ``buffer of BatchNorm1d``.
        fact: What became of it: starts with a verb in the past tense, ends before ``expected``.
        expected: What was expected.
        remedy: One imperative.
        owner: Changes of one owner are told together.
        certain: False for a suspicion.
        writes: Whether the line that wrote it is the line to name.
        backward: Whether the line that ran backward is.
        site: The line, where it is known already.
        value: What to look at line by line, where no operator shows the change.
        rewind: Called before and after the step is run again for that.
    """

    name: str
    kind: str
    fact: str
    expected: str
    remedy: str
    owner: str = ""
    certain: bool = True
    writes: bool = False
    backward: bool = False
    site: Site | None = None
    value: Callable[[], Any] | None = None
    rewind: tuple[Callable[[], object], Callable[[], object]] | None = None


def _of(held: Held, fact: str, expected: str, remedy: str, **more: Any) -> _Change:
    kind = f"{held.kind} of {type(held.module).__name__}"
    return _Change(held.name, kind, fact, expected, remedy, held.owner, **more)


def _of_module(
    name: str, module: nn.Module, fact: str, expected: str, remedy: str, site: Site | None = None
) -> _Change:
    return _Change(name, type(module).__name__, fact, expected, remedy, owner=name, site=site)


def _finding(group: list[_Change], now: Moment) -> Finding:
    first = group[0]
    others = [c.name.removeprefix(f"{c.owner}.") for c in group[1:] if c.name != first.name]
    site = first.site
    remedy = first.remedy
    if site is not None and ".step(" in site.expression:
        remedy = "Step the optimizer in training only."
    return Finding(
        check="state",
        stage=now.stage,
        fact=f"{first.fact}{_as_did(others)}, expected {first.expected}",
        remedy=remedy,
        subject=first.name,
        subject_type=first.kind or None,
        location=site.location if site else None,
        expression=site.expression if site else None,
        function=site.function if site else None,
        leads="subject",
        epoch=now.epoch,
        step=now.step,
        rank=now.rank,
        certain=first.certain,
    )


def _as_did(others: list[str]) -> str:
    if not others:
        return ""
    shown = others if len(others) <= 3 else [*others[:2], f"{len(others) - 2} more"]
    *head, last = shown
    return f", as did {', '.join(head)} and {last}" if head else f", as did {last}"


# one evaluation


class _Window:
    """What stood when an evaluation began."""

    def __init__(
        self, inventory: Inventory, check: StateCheck, whole: frozenset[str] | None, turn: int
    ) -> None:
        self._inventory = inventory
        self._check = check
        self._whole = whole
        self._turn = turn
        self._closely = turn == 0
        self.names = {id(m): name for name, m in inventory.modules.items()}
        self._sharded = _sharded(inventory)
        if self._sharded:
            check._note(
                "parameters are sharded: writes to the shards were looked for, what they and their "
                "gradients contain was not compared"
            )
        self._held = dict(inventory.held)
        self._prints = self._hash(self._held)
        self._base = self._prints
        parameters = [n for n, h in self._held.items() if h.kind == "parameter"]
        self._probed = _some(self._held, parameters[:: max(1, len(parameters) // _PROBES)])
        self._probe = self._hash(self._probed, whole=False)
        for name, why in self._prints.unreadable.items():
            check._note(f"`{name}` could not be read ({why}): what it contains was not checked")
        self._marks = inventory.read()
        self._training = inventory.training()
        self._modules = dict(inventory.modules)
        self._classes = {n: type(m) for n, m in self._modules.items()}
        self._hooks = {n: _hook_counts(m) for n, m in self._modules.items()}
        self._knobs = {n: _knobs(m) for n, m in self._modules.items()}
        self._kept = kept(inventory)
        self._optimization = check._optimization()
        self._settings = settings()
        # around steps
        self._mark: Marks | None = None
        self._training_mark: Training | None = None
        self._kept_mark: dict[str, dict[str, Kept]] | None = None
        self._settings_mark: dict[str, Any] | None = None
        self._shards: dict[str, tuple[int, int]] = {}
        self._replaced: set[str] = set()
        self._fresh: dict[str, weakref.ref[Tensor]] = {}
        self._products: dict[str, tuple[weakref.ref[Tensor], Site | None]] = {}
        self._batch: list[tuple[weakref.ref[Tensor], int]] = []
        self._before: _Optimization | None = None
        self._due = True
        self._told: set[str] = set()
        self._estimated: set[str] = set()
        self._watched: tuple[dict[str, dict[str, Kept]], Training] | None = None

    def standing(self) -> dict[str, Any]:
        """All that an evaluation must leave alone, by the names under which changes are told."""
        inventory = self._inventory
        marks, training = inventory.read(), inventory.training()
        flips, grads = training.flips(), training.grads()
        standing: dict[str, Any] = {
            name: (mark, flips.get(name), grads.get(name)) for name, mark in marks.by_name().items()
        }
        tensors = {n: h.tensor for n, h in self._held.items() if not h.lazy}
        on_host = all(t.device.type == "cpu" for t in tensors.values())
        if on_host and sum(t.numel() for t in tensors.values()) <= _AT_EACH_BATCH:
            for name, content in Prints(tensors).values().items():
                standing[name] = (standing.get(name), content)
        for name, module in inventory.modules.items():
            standing[name] = (type(module), _hook_counts(module), _knobs(module))
        standing.update(self._check._optimization().values())
        standing.update(settings())
        return standing

    # steps

    def before_step(self, now: Moment, args: tuple[Any, ...]) -> None:
        inventory = self._inventory
        if self._mark is None:
            self._mark = inventory.read()
            self._training_mark = inventory.training()
            moved = self._mark.moved(self._marks)
            # Of the statistics only the count moves a version: the module stands for all of them.
            counts = (self._held.get(name) for name in moved)
            self._estimated = {h.owner for h in counts if h is not None and _is_statistic(h)}
            self._rebase(moved)
            self._shards = self._shard_versions()
        if self._closely and now.batch < _CLOSELY:
            self._kept_mark = kept(inventory)
            self._settings_mark = settings()
        self._due = now.batch < _CLOSELY or now.batch % _SPARSELY == 0 or now.batch >= _RARELY
        if self._due:
            self._before = self._check._optimization()
        self._batch = [(weakref.ref(t), version(t)) for t in tensors(args[0] if args else None)]

    def _rebase(self, moved: list[str]) -> None:
        """Take what hooks put in before the first step as what the step must leave alone."""
        held = self._inventory.held
        # Lightning's averaging swaps by `.data.copy_`, which moves no version.
        if self._hash(self._probed, whole=False).differing(self._probe):
            again = list(held)
        else:
            again = [*moved, *_small_buffers(self._inventory)]
        if again:
            self._base = Prints({})
            self._base.update(self._prints)
            self._base.update(self._hash(_some(held, again)))

    def after_step(self, now: Moment) -> list[_Change]:
        if self._mark is None:
            return []
        inventory, mark = self._inventory, self._mark
        closely, due = now.batch < _CLOSELY, self._due
        changes: list[_Change] = []
        moved: list[str] = []
        if due or not inventory.unwritten(mark):
            self._mark = inventory.read()
            moved = self._mark.moved(mark)
        if _broadcasts_buffers(now) and now.batch <= 0:
            # DDP's first forward overwrites the buffers of all ranks but the first.
            self._adopt(_buffers(inventory))
            moved = [n for n in moved if n not in _buffers(inventory)]
        if self._sharded:
            versions = self._shard_versions()
            changes += self._changes(
                {n for n, v in versions.items() if v != self._shards.get(n, v)}
            )
            self._shards = versions
        look_at = {*moved, *(_small_buffers(inventory) if closely else ())}
        if look_at:
            changes += self._written(look_at, moved)
        if due:
            changes += self._trained(inventory.training())
        if self._kept_mark is not None:
            attributes = kept(inventory)
            self._replaced = _changed(self._kept_mark, attributes)
            self._fresh = _made(self._kept_mark, attributes)
            self._kept_mark = None
        changes += self._batch_changed()
        if self._before is not None:
            before, self._before = self._before, None
            after = self._check._optimization()
            stepped = list(before.changes(after, "during the step", certain=True))
            self._told.update(c.name for c in stepped)
            changes += stepped
        if self._settings_mark is not None:
            changes += self._set(self._settings_mark, "during the step")
            self._settings_mark = None
        return changes

    def _hash(self, held: Mapping[str, Held], whole: bool = True) -> Prints:
        readable = {
            n: h.tensor
            for n, h in held.items()
            if not h.lazy and not (self._sharded and h.kind == "parameter")
        }
        return Prints(readable, self._whole if whole else (), self._turn)

    def _adopt(self, names: Iterable[str]) -> None:
        now = self._hash(_some(self._inventory.held, names))
        if self._base is not self._prints:
            self._base.update(now)
        self._prints.update(now)

    def _written(self, names: Iterable[str], moved: list[str]) -> list[_Change]:
        """Tensors that a step changed: those among `names` whose contents differ."""
        held = self._inventory.held
        candidates = _some(held, (n for n in names if n not in self._told))
        now = self._hash(candidates)
        differing = {n for n in now.differing(self._base) if not self._is_cache(n)}
        # Moved but the same, as far as a piece of it shows: look at all of it from now on.
        self._check._restless.update(n for n in moved if n not in differing)
        return self._changes(differing)

    def _changes(self, names: set[str]) -> list[_Change]:
        held = self._held | self._inventory.held
        found = [h for n, h in held.items() if n in names and self._tell(n)]
        return [
            _of(h, "changed during the step", "it to stay as it was", _remedy_of(h), writes=True)
            for h in found
        ]

    def _shard_versions(self) -> dict[str, tuple[int, int]]:
        """Versions of the shards themselves: FSDP2 exchanges them for gathered parameters."""
        # A DTensor counts what is written through it, its local tensor what is written to that.
        return {
            n: (version(h.tensor), version(getattr(h.tensor, "_local_tensor", h.tensor)))
            for n, h in self._held.items()
            if hasattr(h.tensor, "to_local")
        }

    def _is_cache(self, name: str) -> bool:
        """Whether a buffer is no state: not in the state_dict, made anew in another shape or type.

        Positions grow with the longest batch, and follow the precision that autocast computes in.
        """
        before, now = self._held.get(name), self._inventory.held.get(name)
        if before is None or now is None or before.kind != "buffer" or now.persistent:
            return False
        was, is_now = before.tensor, now.tensor
        return was is not is_now and (was.shape, was.dtype) != (is_now.shape, is_now.dtype)

    def _trained(self, now: Training) -> list[_Change]:
        """Gradients and `requires_grad` that a step changed."""
        before, self._training_mark = self._training_mark, now
        if before is None or now == before:
            return []
        return self._training_changes(before, now, "during the step")

    def _training_changes(self, before: Training, now: Training, when: str) -> list[_Change]:
        held = self._inventory.held
        changes = []
        old_flips = before.flips()
        for name, flag in now.flips().items():
            was = old_flips.get(name, flag)
            if flag != was and self._tell(f"{name}.requires_grad"):
                fact = f"went from requires_grad={was} to requires_grad={flag} {when}"
                remedy = "Freeze and unfreeze in training only."
                parameter = held[name].tensor
                change = _of(held[name], fact, f"{was} as before it", remedy)
                change.value = functools.partial(getattr, parameter, "requires_grad")
                change.rewind = (
                    functools.partial(parameter.requires_grad_, was),
                    functools.partial(parameter.requires_grad_, flag),
                )
                changes.append(change)
        old_grads = before.grads() if not self._sharded else {}
        for name, mark in now.grads().items():
            was_mark = old_grads.get(name)
            if mark == was_mark or name not in old_grads:
                continue
            if mark is None and not self._check._accumulates():
                continue
            if not self._tell(f"{name}.grad"):
                continue
            if mark is None:
                fact, expected = f"lost the gradient accumulated so far {when}", "it to be kept"
                remedy = "Call `zero_grad()` in training only."
            else:
                fact = f"got {'a' if was_mark is None else 'another'} gradient {when}"
                expected = "`.grad` to be what it was"
                remedy = "Use `torch.autograd.grad(...)`, which leaves no `.grad` behind."
            changes.append(_of(held[name], fact, expected, remedy, backward=True))
        return changes

    def _batch_changed(self) -> list[_Change]:
        refs = [(t, v) for ref, v in self._batch if (t := ref()) is not None]
        changed = any(version(t) != v for t, v in refs)
        return [_batch_change()] if changed and self._tell("the batch") else []

    def _tell(self, what: str) -> bool:
        """Whether this is the first time that `what` is told."""
        if what in self._told:
            return False
        self._told.add(what)
        return True

    # the witness

    def watch(self) -> Writes:
        attributes = kept(self._inventory)
        self._watched = (attributes, self._inventory.training())
        return Writes(self._places_now(attributes))

    def _places_now(self, attributes: dict[str, dict[str, Kept]]) -> Places:
        batch = [t for ref, _ in self._batch if (t := ref()) is not None]
        return Places.of(self._inventory, attributes, batch)

    def saw(self, seen: Writes, look: Look | None) -> list[_Change]:
        """What only the operators show: unversioned writes, attributes carried on, the batch."""
        changes: list[_Change] = []
        written = {n for n in seen.sites if n in self._inventory.held}
        if written:
            changes += self._written(written, [])
        for path in sorted(self._replaced | (seen.sites.keys() & seen.combined.keys())):
            if path in seen.combined and self._tell(path):
                site = seen.sites.get(path) or seen.combined[path]
                changes.append(_carried(path, site, self._inventory))
        self._replaced = set()
        if seen.batch is not None:
            if self._tell("the batch"):
                changes.append(_batch_change())
            for change in (*changes, *self._check._pending):
                if change.name == "the batch":
                    change.site = seen.batch
        self._look_for_products(seen, look)
        if look is not None:
            self._look_for_lines(seen, [*self._check._pending, *changes], look)
            self._forget_rollback()
        return changes

    def _look_for_lines(self, seen: Writes, changes: list[_Change], look: Look) -> None:
        """Go through the step line by line for what no operator showed."""
        assigned = self._check._assigned
        dark = {}
        for change in changes:
            known = change.site or seen.sites.get(change.name) or assigned.get(change.name)
            if change.writes and known is None:
                held = self._inventory.held[change.name]
                if held.tensor.numel() <= _AT_EACH_BATCH:
                    change.value, change.rewind = _glance_at(held)
            if change.value is not None and known is None:
                dark[change.name] = change
        rewinds = [c.rewind for c in dark.values() if c.rewind is not None]
        if not dark:
            return
        for before, _ in rewinds:
            before()
        try:
            values = {name: c.value for name, c in dark.items() if c.value is not None}
            sites = lines_that_change(values, lambda: look.again(strict=False))
        finally:
            for _, after in rewinds:
                after()
        for name, site in sites.items():
            dark[name].site = site

    def _look_for_products(self, seen: Writes, look: Look | None) -> None:
        fresh = {path: t for path, ref in self._fresh.items() if (t := ref()) is not None}
        self._fresh = {}
        if not fresh:
            return
        for path, tensor in fresh.items():
            seen.judge(path, tensor)
        if look is not None and not seen.products:
            # The step that made them has run: let it make them again, from where it began.
            def attribute(path: str) -> Tensor | None:
                module, key = attribute_of(self._inventory, path)
                value = module.__dict__.get(key)
                return value if isinstance(value, Tensor) else None

            for path in fresh:
                module, key = attribute_of(self._inventory, path)
                module.__dict__[key] = None
            seen = Writes(self._places_now({}), attribute, fresh)
            try:
                look.again(seen, strict=False)
            finally:
                for path, tensor in fresh.items():
                    module, key = attribute_of(self._inventory, path)
                    module.__dict__[key] = tensor
        self._products = {
            path: (weakref.ref(fresh[path]), site) for path, site in seen.products.items()
        }

    def _forget_rollback(self) -> None:
        """A replay puts contents back by writing them, which moves versions: not a change."""
        self._mark = None
        if self._watched is None:
            return
        attributes, training = self._watched
        now = kept(self._inventory)
        for attribute, paths in attributes.items():
            for path, k in paths.items():
                moved = now.get(attribute, {}).get(path)
                start = self._kept.get(attribute, {}).get(path)
                if moved is None or start is None or moved.ref() is not k.ref():
                    continue
                self._kept[attribute][path] = start._replace(
                    version=start.version + moved.version - k.version
                )
        before, after = training.grads(), self._inventory.training().grads()
        grads = self._training.grads()
        self._training = self._training._replace(
            gradients=[
                after[n] if grads[n] == before.get(n) and n in after else grads[n]
                for n in self._training.names
            ]
        )
        self._watched = None

    # the end

    def stop(self, now: Moment) -> list[_Change]:
        when = _during(now)
        inventory = self._inventory
        self._check._restless.update(inventory.read().moved(self._marks))
        changes = [*self._structure(when), *self._contents(when)]
        changes += self._training_changes(self._training, inventory.training(), when)
        changes += self._configuration(when)
        changes += self._reused(when)
        after = self._check._optimization()
        # With manual optimization a hook of the evaluation may be where the schedule is run.
        certain = bool(getattr(inventory.root, "automatic_optimization", True))
        for change in self._optimization.changes(after, when, certain):
            if self._tell(change.name):
                changes.append(change)
        changes += self._set(self._settings, when)
        return changes

    def _set(self, before: Mapping[str, Any], when: str) -> list[_Change]:
        changes = []
        for setting, value in settings().items():
            was = before.get(setting, value)
            if value == was or not self._tell(setting):
                continue
            fact = f"went from {was} to {value} {when}"
            change = _Change(setting, "", fact, f"{was} as before it", _PUT_BACK)
            get, put = SETTINGS[setting]
            change.value = get
            change.rewind = functools.partial(put, was), functools.partial(put, value)
            changes.append(change)
        return changes

    def _contents(self, when: str) -> list[_Change]:
        held = self._inventory.held
        look_at = _some(held, (n for n in self._held if n not in self._told and n in held))
        look_at = {n: h for n, h in look_at.items() if h.registered}
        changes = []
        for name in self._hash(look_at).differing(self._prints):
            if not self._is_cache(name) and self._tell(name):
                h = held[name]
                remedy = _PUT_BACK if h.kind == "parameter" else _remedy_of(h)
                fact, is_plan = f"changed {when}", h.kind == "buffer" and h.owner in self._estimated
                if is_plan:  # batch norm is calibrated for the weights that are evaluated
                    fact, remedy = "was estimated anew before the first batch", _PUT_BACK
                change = _of(h, fact, "it to be as before", remedy, writes=True)
                change.certain = not is_plan
                changes.append(change)
        return changes

    def _structure(self, when: str) -> list[_Change]:
        changes = []
        assigned = self._check._assigned
        before, now = self._modules, self._inventory.modules
        lazy = {h.owner for h in self._held.values() if h.lazy}
        still_lazy = {h.owner for h in self._inventory.held.values() if h.lazy}
        owners = {h.owner for h in self._held.values()}
        for name, module in now.items():
            old = before.get(name)
            if old is None:
                inside_another = name.rpartition(".")[0] not in before
                if not inside_another and any(True for _ in module.parameters()):
                    fact, expected = f"was added {when}", "the modules as before it"
                    remedy = "Make it in `__init__` or `configure_model`."
                    site = assigned.get(name)
                    changes.append(_of_module(name, module, fact, expected, remedy, site))
            elif name in lazy:
                if name not in still_lazy:
                    self._told.update(n for n, h in self._held.items() if h.owner == name)
                    fact, expected = f"took its shape and its weights {when}", "them before it"
                    remedy = "Run one batch through the model in `setup`."
                    change = _of_module(name, module, fact, expected, remedy)
                    change.certain = False
                    changes.append(change)
            elif module is not old or type(module) is not self._classes[name]:
                self._told.update(n for n, h in self._held.items() if h.owner == name)
                fact = f"took the place of a {self._classes[name].__name__} {when}"
                expected, remedy = "the modules as before it", _PUT_BACK
                change = _of_module(name, module, fact, expected, remedy, assigned.get(name))
                # The same weights in another module may be another way to compute the same.
                change.certain = not self._same_tensors(name)
                changes.append(change)
        for name, module in before.items():
            if name not in now and name in owners:
                fact, expected = f"was removed {when}", "the modules as before it"
                changes.append(_of_module(name, module, fact, expected, _PUT_BACK))
        return [*changes, *self._registered(when)]

    def _same_tensors(self, name: str) -> bool:
        """Whether all that a module held, and its submodules, is still there under its name."""
        old = {n: h.tensor for n, h in self._held.items() if f"{n}.".startswith(f"{name}.")}
        new = self._inventory.held
        return all(n in new and new[n].tensor is tensor for n, tensor in old.items())

    def _registered(self, when: str) -> list[_Change]:
        """Parameters and buffers that are other tensors, or new, in modules that are the same."""
        changes = []
        for name, h in self._inventory.held.items():
            before = self._held.get(name)
            if self._modules.get(h.owner) is not h.module:
                continue
            if before is None and h.persistent and self._tell(name):
                fact, expected = f"was added {when}", "the state_dict as before it"
                remedy = "Register it in `__init__`."
                changes.append(_of(h, fact, expected, remedy, writes=True))
            elif (
                before is not None
                and h.kind == "parameter"
                and h.tensor is not before.tensor
                and not (self._sharded or isinstance(h.module, torch.jit.ScriptModule))
                and self._tell(name)
            ):
                fact = f"was replaced by another Parameter {when}"
                expected, remedy = "the one that the optimizer holds", "Copy into it instead."
                changes.append(_of(h, fact, expected, remedy, writes=True))
        return changes

    def _configuration(self, when: str) -> list[_Change]:
        changes = []
        for name, module in self._inventory.modules.items():
            if self._modules.get(name) is not module:
                continue
            for registry, count in _hook_counts(module).items():
                more = count - self._hooks[name].get(registry, 0)
                hook = next(reversed(getattr(module, registry).values()))
                if more <= 0 or _is_librarys(hook):
                    continue
                noun = _HOOKS[registry] + ("s" if more > 1 else "")
                fact, expected = f"got {more} {noun} {when}", "none to stay"
                remedy = "Keep the handle and call its `.remove()`."
                site = _definition(hook)
                changes.append(_of_module(name, module, fact, expected, remedy, site))
            for knob, value in _knobs(module).items():
                was = self._knobs[name].get(knob, value)
                if value != was:
                    fact = f"went from {knob}={was} to {knob}={value} {when}"
                    expected = f"{was} as before it"
                    changes.append(_of_module(name, module, fact, expected, _PUT_BACK))
        return changes

    def _reused(self, when: str) -> list[_Change]:
        """Products of parameters that the evaluation leaves in attributes, for training to use."""
        changes = []
        for path, (ref, site) in self._products.items():
            module, key = attribute_of(self._inventory, path)
            tensor = ref()
            if tensor is None or module.__dict__.get(key) is not tensor or not self._tell(path):
                continue
            kind = f"attribute of {type(module).__name__}"
            fact = f"kept a product of parameters that was made {when}"
            expected = "training to make its own: no gradient passes through this one"
            remedy = "Set it to None in `train()`."
            changes.append(_Change(path, kind, fact, expected, remedy, certain=False, site=site))
        return changes


_PUT_BACK = "Put it back before the evaluation ends."


# attributes


def _glance_at(
    held: Held,
) -> tuple[Callable[[], Any], tuple[Callable[[], object], Callable[[], object]]]:
    """What to look at in a tensor line by line, and how to undo what the look does to it."""
    tensor, own = held.tensor, held.tensor.detach().clone()

    def value() -> Any:
        return tensor.data_ptr(), Prints({"": tensor}).values()

    def undo() -> None:
        if tensor.shape == own.shape:
            tensor.data.copy_(own)
        else:
            tensor.data = own

    return value, (lambda: None, undo)


def _carried(path: str, site: Site | None, inventory: Inventory) -> _Change:
    owner = path
    while owner and owner not in inventory.modules:
        owner = owner.rpartition(".")[0]
    return _Change(
        path,
        f"attribute of {type(inventory.modules[owner]).__name__}",
        "changed during a step that also computes with it",
        "results that do not depend on the batches before",
        "Update it `if self.training:`.",
        owner,
        certain=False,
        site=site,
    )


def _changed(before: dict[str, dict[str, Kept]], now: dict[str, dict[str, Kept]]) -> set[str]:
    """Paths whose tensor was written in place or made way for another; not what only grew."""
    found = set()
    for attribute, paths in before.items():
        for path, k in paths.items():
            after = now.get(attribute, {}).get(path)
            tensor = k.ref()
            same = after is not None and tensor is not None and after.ref() is tensor
            if not same or (after is not None and after.version != k.version):
                found.add(attribute + path)
    return found


def _made(
    before: dict[str, dict[str, Kept]], now: dict[str, dict[str, Kept]]
) -> dict[str, weakref.ref[Tensor]]:
    """Attributes that hold a tensor now and held none before."""
    return {
        attribute: paths[""].ref
        for attribute, paths in now.items()
        if "" in paths and attribute not in before
    }


def _batch_change() -> _Change:
    return _Change(
        "the batch",
        "",
        "changed in place during the step",
        "it to stay as the loader gave it",
        "Work on a copy: `.clone()`.",
        certain=False,
    )


# optimizers


class _Optimization:
    """Hyper-parameters and step counts of optimizers and schedulers at one moment."""

    def __init__(self, optimizers: Iterable[Any], schedulers: Iterable[Any]) -> None:
        self._kinds: dict[str, str] = {}
        self._settings: dict[tuple[str, str], Any] = {}
        for i, optimizer in enumerate(optimizers):
            name = f"optimizers[{i}]"
            self._kinds[name] = type(optimizer).__name__
            self._settings[name, "len(param_groups)"] = len(optimizer.param_groups)
            for j, group in enumerate(optimizer.param_groups):
                for key, value in group.items():
                    if isinstance(value, (bool, int, float, tuple)):
                        self._settings[name, f"param_groups[{j}][{key!r}]"] = value
        for i, scheduler in enumerate(schedulers):
            name = f"lr_schedulers[{i}]"
            self._kinds[name] = type(scheduler).__name__
            self._settings[name, "last_epoch"] = getattr(scheduler, "last_epoch", None)

    def values(self) -> dict[str, dict[str, Any]]:
        """The settings of each optimizer and scheduler, by its name."""
        values: dict[str, dict[str, Any]] = {name: {} for name in self._kinds}
        for (name, key), value in self._settings.items():
            values[name][key] = value
        return values

    def changes(self, now: _Optimization, when: str, certain: bool) -> Iterable[_Change]:
        for (name, key), value in now._settings.items():
            before = self._settings.get((name, key), value)
            if value != before:
                fact = f"went from {key}={before} to {key}={value} {when}"
                remedy = f"Change {key} in training only."
                if key == "last_epoch":
                    fact, remedy = f"took a step {when}", "Step it in training only."
                kind, expected = now._kinds[name], "it as before"
                yield _Change(name, kind, fact, expected, remedy, certain=certain)


# what counts


def _some(held: Mapping[str, Held], names: Iterable[str]) -> dict[str, Held]:
    return {n: held[n] for n in names if n in held}


def _buffers(inventory: Inventory) -> frozenset[str]:
    return frozenset(n for n, h in inventory.held.items() if h.kind == "buffer")


def _small_buffers(inventory: Inventory) -> list[str]:
    """Buffers on the host, where looking at their contents waits for nothing."""
    names, size = [], 0
    for name, held in inventory.held.items():
        if held.kind == "buffer" and not held.lazy and held.tensor.device.type == "cpu":
            size += held.tensor.numel()
            if size > _AT_EACH_BATCH:
                return []
            names.append(name)
    return names


def _sharded(inventory: Inventory) -> bool:
    return any(
        type(m).__name__ == "FullyShardedDataParallel" for m in inventory.modules.values()
    ) or any(
        h.kind == "parameter" and hasattr(h.tensor, "to_local") for h in inventory.held.values()
    )


def _broadcasts_buffers(now: Moment) -> bool:
    return (
        now.rank > 0
        and torch.distributed.is_available()
        and torch.distributed.is_initialized()
        and torch.distributed.get_world_size() > 1
    )


def _hook_counts(module: nn.Module) -> dict[str, int]:
    own = module.__dict__
    return {registry: n for registry in _HOOKS if (n := len(own.get(registry) or ()))}


def _is_librarys(hook: Any) -> bool:
    code = getattr(getattr(hook, "__func__", hook), "__code__", None)
    return code is not None and owner_of(code.co_filename) in ("torch", "lightning", "self")


def _definition(hook: Any) -> Site | None:
    """Where a hook's function is written: as near as one comes to where it was registered."""
    code = getattr(getattr(hook, "__func__", hook), "__code__", None)
    return site_at(code, 0, code.co_firstlineno) if code is not None else None


def _knobs(module: nn.Module) -> dict[str, float | None]:
    own = module.__dict__
    return {k: v for k in _KNOBS if k in own and isinstance(v := own[k], (int, float, type(None)))}


def _is_statistic(held: Held) -> bool:
    """Whether it is a running statistic of a batch norm that is in eval mode."""
    is_norm = isinstance(held.module, nn.modules.batchnorm._NormBase)
    return is_norm and held.kind == "buffer" and not held.module.training


def _remedy_of(held: Held) -> str:
    module = held.module
    if type(module).__module__.startswith(("torch.ao.quantization", "torchao.")):
        return "Apply `torch.ao.quantization.disable_observer` before evaluating."
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.max_norm is not None:
        return "Look up with `F.embedding(x, weight)`: max_norm rewrites the rows it reads."
    if isinstance(module, nn.modules.batchnorm._NormBase) and module.training:
        return "Call `.eval()` on it."
    return "Write it `if self.training:`."


_DURING = {
    "sanity_check": "during the sanity check",
    "validate": "during validation",
    "test": "during testing",
    "predict": "during prediction",
}


def _during(now: Moment) -> str:
    return _DURING.get(now.stage, "during the evaluation")
