"""One evaluation: what stood when it began, and what stands otherwise after its steps."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lightning_evalguard.checks.check import Moment
from lightning_evalguard.checks.state.attributes import changed_paths, made
from lightning_evalguard.checks.state.change import (
    PUT_BACK,
    Change,
    batch_change,
    carried,
    during,
    of_step,
    of_tensor,
    remedy_of,
)
from lightning_evalguard.checks.state.configuration import (
    Configuration,
    hook_counts,
    knobs,
)
from lightning_evalguard.checks.state.contents import (
    AT_EACH_BATCH,
    broadcasts_buffers,
    buffers,
    glance_at,
    is_sharded,
    is_statistic,
    small_buffers,
    some,
)
from lightning_evalguard.checks.state.optimization import Optimization
from lightning_evalguard.checks.state.process import setting_changes
from lightning_evalguard.checks.state.reported import Reported
from lightning_evalguard.checks.state.run import RunFacts
from lightning_evalguard.checks.state.structure import Structure
from lightning_evalguard.checks.state.training import TrainingState
from lightning_evalguard.checks.state.writes import (
    FirstWrites,
    StoragePlaces,
    attribute_of,
)
from lightning_evalguard.data.batches import tensors
from lightning_evalguard.instruments.lines import lines_that_change
from lightning_evalguard.instruments.settings import settings
from lightning_evalguard.instruments.source import Site
from lightning_evalguard.model.hashes import Prints
from lightning_evalguard.model.tensors import (
    Held,
    Inventory,
    Kept,
    Marks,
    TrainingTensors,
    kept,
    version,
)

if TYPE_CHECKING:
    from lightning_evalguard.instruments.replay import Look

_CLOSELY = 2  # batches of an evaluation on which also what costs more is looked at
_SPARSELY = 8  # from then on, every so many batches
_RARELY = 16  # from this one on few are looked at, each in full
_PROBES = 8  # parameters of which a piece tells whether weights were swapped unseen


class StateWindow:
    """What stood when an evaluation began."""

    def __init__(
        self,
        inventory: Inventory,
        check: RunFacts,
        whole: frozenset[str] | None,
        turn: int,
    ) -> None:
        self._inventory = inventory
        self._check = check
        self._whole = whole
        self._turn = turn
        self._closely = turn == 0
        self.names = {id(m): name for name, m in inventory.modules.items()}
        self._sharded = is_sharded(inventory)
        if self._sharded:
            check.note(
                "parameters are sharded: writes to the shards were looked for, what they and their "
                "gradients contain was not compared"
            )
        self._held = dict(inventory.held)
        self._prints = self._hash(self._held)
        self._base = self._prints
        parameters = [n for n, h in self._held.items() if h.kind == "parameter"]
        self._probed = some(
            self._held, parameters[:: max(1, len(parameters) // _PROBES)]
        )
        self._probe = self._hash(self._probed, whole=False)
        for name, why in self._prints.unreadable.items():
            check.note(
                f"`{name}` could not be read ({why}): what it contains was not checked"
            )
        self._marks = inventory.read()
        self._training = inventory.training()
        self._reported = Reported()
        self._structure = Structure(
            inventory, self._reported, check.assigned, self._sharded
        )
        self._configuration = Configuration(inventory)
        self._trains = TrainingState(
            inventory, self._reported, lambda: check.accumulates(), self._sharded
        )
        self._kept = kept(inventory)
        self._optimization = check.optimization()
        self._settings = settings()
        # around steps
        self._mark: Marks | None = None
        self._training_mark: TrainingTensors | None = None
        self._kept_mark: dict[str, dict[str, Kept]] | None = None
        self._settings_mark: dict[str, Any] | None = None
        self._shards: dict[str, tuple[int, int]] = {}
        self._replaced: set[str] = set()
        self._fresh: dict[str, weakref.ref[Tensor]] = {}
        self._products: dict[str, tuple[weakref.ref[Tensor], Site | None]] = {}
        self._batch: list[tuple[weakref.ref[Tensor], int]] = []
        self._before: Optimization | None = None
        self._due = True
        self._estimated: set[str] = set()
        self._watched: tuple[dict[str, dict[str, Kept]], TrainingTensors] | None = None

    def standing(self) -> dict[str, Any]:
        """All that an evaluation must leave alone, by the names under which changes are told."""
        inventory = self._inventory
        marks = inventory.read()
        training = inventory.training()
        flips = training.flips()
        grads = training.grads()
        standing: dict[str, Any] = {
            name: (mark, flips.get(name), grads.get(name))
            for name, mark in marks.by_name().items()
        }
        tensors = {n: h.tensor for n, h in self._held.items() if not h.lazy}
        on_host = all(t.device.type == "cpu" for t in tensors.values())
        if on_host and sum(t.numel() for t in tensors.values()) <= AT_EACH_BATCH:
            for name, content in Prints(tensors).values().items():
                standing[name] = (standing.get(name), content)
        for name, module in inventory.modules.items():
            standing[name] = (type(module), hook_counts(module), knobs(module))
        standing.update(self._check.optimization().values())
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
            self._estimated = {
                h.owner for h in counts if h is not None and is_statistic(h)
            }
            self._rebase(moved)
            self._shards = self._shard_versions()
        if self._closely and now.batch < _CLOSELY:
            self._kept_mark = kept(inventory)
            self._settings_mark = settings()
        self._due = (
            now.batch < _CLOSELY or now.batch % _SPARSELY == 0 or now.batch >= _RARELY
        )
        if self._due:
            self._before = self._check.optimization()
        batch = args[0] if args else None
        self._batch = [(weakref.ref(t), version(t)) for t in tensors(batch)]

    def _rebase(self, moved: list[str]) -> None:
        """Take what hooks put in before the first step as what the step must leave alone."""
        held = self._inventory.held
        # Lightning's averaging swaps by `.data.copy_`, which moves no version.
        if self._hash(self._probed, whole=False).differing(self._probe):
            again = list(held)
        else:
            again = [*moved, *small_buffers(self._inventory)]
        if again:
            self._base = Prints({})
            self._base.update(self._prints)
            self._base.update(self._hash(some(held, again)))

    def after_step(self, now: Moment) -> list[Change]:
        if self._mark is None:
            return []
        inventory, mark = self._inventory, self._mark
        closely, due = now.batch < _CLOSELY, self._due
        changes: list[Change] = []
        moved: list[str] = []
        if due or not inventory.unwritten(mark):
            self._mark = inventory.read()
            moved = self._mark.moved(mark)
        if broadcasts_buffers(now) and now.batch <= 0:
            # DDP's first forward overwrites the buffers of all ranks but the first.
            self._adopt(buffers(inventory))
            moved = [n for n in moved if n not in buffers(inventory)]
        if self._sharded:
            versions = self._shard_versions()
            changes += self._changes(
                {n for n, v in versions.items() if v != self._shards.get(n, v)}
            )
            self._shards = versions
        look_at = {*moved, *(small_buffers(inventory) if closely else ())}
        if look_at:
            changes += self._written(look_at, moved)
        if due:
            changes += self._trained(inventory.training())
        if self._kept_mark is not None:
            attributes = kept(inventory)
            self._replaced = changed_paths(self._kept_mark, attributes)
            self._fresh = made(self._kept_mark, attributes)
            self._kept_mark = None
        changes += self._batch_changed()
        if self._before is not None:
            before, self._before = self._before, None
            after = self._check.optimization()
            stepped = list(before.changes(after, "during the step", certain=True))
            self._reported.update(c.name for c in stepped)
            changes += stepped
        if self._settings_mark is not None:
            changes += setting_changes(
                self._settings_mark, "during the step", self._reported
            )
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
        now = self._hash(some(self._inventory.held, names))
        if self._base is not self._prints:
            self._base.update(now)
        self._prints.update(now)

    def _written(self, names: Iterable[str], moved: list[str]) -> list[Change]:
        """Tensors that a step changed: those among `names` whose contents differ."""
        held = self._inventory.held
        candidates = some(held, (n for n in names if n not in self._reported))
        now = self._hash(candidates)
        differing = {n for n in now.differing(self._base) if not self._is_cache(n)}
        # Moved but the same, as far as a piece of it shows: look at all of it from now on.
        self._check.restless.update(n for n in moved if n not in differing)
        return self._changes(differing)

    def _changes(self, names: set[str]) -> list[Change]:
        held = self._held | self._inventory.held
        found = [h for n, h in held.items() if n in names and self._reported.is_new(n)]
        return [of_step(h, h.name not in self._held) for h in found]

    def _shard_versions(self) -> dict[str, tuple[int, int]]:
        """Versions of the shards themselves: FSDP2 exchanges them for gathered parameters."""
        # A DTensor counts what is written through it, its local tensor what is written to that.
        versions = {}
        for name, held in self._held.items():
            tensor = held.tensor
            if hasattr(tensor, "to_local"):
                local = getattr(tensor, "_local_tensor", tensor)
                versions[name] = version(tensor), version(local)
        return versions

    def _is_cache(self, name: str) -> bool:
        """Whether a buffer is no state: not in the state_dict, made anew in another shape or type.

        Positions grow with the longest batch, and follow the precision that autocast computes in.
        """
        before = self._held.get(name)
        now = self._inventory.held.get(name)
        if before is None or now is None or before.kind != "buffer" or now.persistent:
            return False
        old, new = before.tensor, now.tensor
        return old is not new and (old.shape, old.dtype) != (new.shape, new.dtype)

    def _trained(self, now: TrainingTensors) -> list[Change]:
        """Gradients and `requires_grad` that a step changed."""
        before = self._training_mark
        self._training_mark = now
        if before is None or now == before:
            return []
        return self._trains.changes(before, now, "during the step")

    def _batch_changed(self) -> list[Change]:
        refs = [(t, v) for ref, v in self._batch if (t := ref()) is not None]
        changed = any(version(t) != v for t, v in refs)
        if changed and self._reported.is_new("the batch"):
            return [batch_change()]
        return []

    # the witness

    def watch(self) -> FirstWrites:
        attributes = kept(self._inventory)
        self._watched = (attributes, self._inventory.training())
        return FirstWrites(self._places_now(attributes))

    def _places_now(self, attributes: dict[str, dict[str, Kept]]) -> StoragePlaces:
        batch = [t for ref, _ in self._batch if (t := ref()) is not None]
        return StoragePlaces.of(self._inventory, attributes, batch)

    def saw(self, seen: FirstWrites, look: Look | None) -> list[Change]:
        """What only the operators show: unversioned writes, attributes carried on, the batch."""
        changes: list[Change] = []
        written = {n for n in seen.sites if n in self._inventory.held}
        if written:
            changes += self._written(written, [])
        for path in sorted(self._replaced | (seen.sites.keys() & seen.combined.keys())):
            if path in seen.combined and self._reported.is_new(path):
                site = seen.sites.get(path) or seen.combined[path]
                changes.append(carried(path, site, self._inventory))
        self._replaced = set()
        if seen.batch is not None:
            if self._reported.is_new("the batch"):
                changes.append(batch_change())
            for change in (*changes, *self._check.pending):
                if change.name == "the batch":
                    change.site = seen.batch
        self._look_for_products(seen, look)
        if look is not None:
            self._look_for_lines(seen, [*self._check.pending, *changes], look)
            self._forget_rollback()
        return changes

    def _look_for_lines(
        self, seen: FirstWrites, changes: list[Change], look: Look
    ) -> None:
        """Go through the step line by line for what no operator showed."""
        assigned = self._check.assigned
        dark = {}
        for change in changes:
            known = (
                change.site or seen.sites.get(change.name) or assigned.get(change.name)
            )
            if change.writes and known is None:
                held = self._inventory.held[change.name]
                if held.tensor.numel() <= AT_EACH_BATCH:
                    change.value, change.rewind = glance_at(held)
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

    def _look_for_products(self, seen: FirstWrites, look: Look | None) -> None:
        fresh = {
            path: t for path, ref in self._fresh.items() if (t := ref()) is not None
        }
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
                if not isinstance(value, Tensor):
                    return None
                return value

            for path in fresh:
                module, key = attribute_of(self._inventory, path)
                module.__dict__[key] = None
            seen = FirstWrites(self._places_now({}), attribute, fresh)
            try:
                look.again(seen, strict=False)
            finally:
                for path, tensor in fresh.items():
                    module, key = attribute_of(self._inventory, path)
                    module.__dict__[key] = tensor
        self._products = {
            path: (weakref.ref(fresh[path]), site)
            for path, site in seen.products.items()
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
        before = training.grads()
        after = self._inventory.training().grads()
        grads = self._training.grads()
        gradients = []
        for name in self._training.names:
            gradient = grads[name]
            if gradient == before.get(name) and name in after:
                gradient = after[name]
            gradients.append(gradient)
        self._training = self._training._replace(gradients=gradients)
        self._watched = None

    # the end

    def stop(self, now: Moment) -> list[Change]:
        when = during(now)
        inventory = self._inventory
        self._check.restless.update(inventory.read().moved(self._marks))
        changes = [*self._structure.changes(when), *self._contents(when)]
        changes += self._trains.changes(self._training, inventory.training(), when)
        changes += self._configuration.changes(when)
        changes += self._reused(when)
        after = self._check.optimization()
        # With manual optimization a hook of the evaluation may be where the schedule is run.
        certain = bool(getattr(inventory.root, "automatic_optimization", True))
        for change in self._optimization.changes(after, when, certain):
            if self._reported.is_new(change.name):
                changes.append(change)
        changes += setting_changes(self._settings, when, self._reported)
        return changes

    def _contents(self, when: str) -> list[Change]:
        held = self._inventory.held
        unreported = (n for n in self._held if n not in self._reported and n in held)
        look_at = {n: h for n, h in some(held, unreported).items() if h.registered}
        changes = []
        differing = list(self._hash(look_at).differing(self._prints))
        # batch norm is calibrated for weights that stay: with others it was swapped as they were
        is_swap = any(held[name].kind == "parameter" for name in differing)
        for name in differing:
            if self._is_cache(name) or not self._reported.is_new(name):
                continue
            h = held[name]
            fact, remedy = f"changed {when}", PUT_BACK
            if h.kind != "parameter" and not is_swap:
                remedy = remedy_of(h)
            is_plan = not is_swap and h.kind == "buffer" and h.owner in self._estimated
            if is_plan:
                if name in self._check.calibrated:
                    continue  # one plan, one finding, whatever the stage
                self._check.calibrated.add(name)
                fact = "was estimated anew before the first batch"
                remedy = PUT_BACK
            change = of_tensor(h, fact, "it to be as before", remedy, writes=True)
            change.certain = not is_plan
            changes.append(change)
        return changes

    def _reused(self, when: str) -> list[Change]:
        """Products of parameters that the evaluation leaves in attributes, for training to use."""
        changes = []
        for path, (ref, site) in self._products.items():
            module, key = attribute_of(self._inventory, path)
            tensor = ref()
            if tensor is None or module.__dict__.get(key) is not tensor:
                continue
            if not self._reported.is_new(path):
                continue
            kind = f"attribute of {type(module).__name__}"
            fact = f"caches a tensor computed from parameters {when}"
            expected = (
                "training to compute its own: no gradient passes through this one"
            )
            remedy = f"Set `self.{key}` to None in an override of `train()`."
            changes.append(
                Change(path, kind, fact, expected, remedy, certain=False, site=site)
            )
        return changes
