"""Does an evaluation step draw random numbers?"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from lightning_evalguard.checks.check import Check, Moment
from lightning_evalguard.checks.stochastic.draws import (
    At,
    Draw,
    Draws,
    equal_at,
    first_difference,
)
from lightning_evalguard.checks.stochastic.gaps import Gaps
from lightning_evalguard.checks.stochastic.lines import STATES, Lines
from lightning_evalguard.checks.stochastic.words import (
    differing_replay,
    draw_finding,
    findings_of,
    moved_somewhere,
    of_line,
)
from lightning_evalguard.instruments.dispatch import ModuleNames, Subscriber
from lightning_evalguard.instruments.generators import (
    Generators,
    generator_state,
    is_generator,
    same_state,
)
from lightning_evalguard.instruments.replay import Look
from lightning_evalguard.instruments.rollback import things
from lightning_evalguard.report import Finding
from lightning_evalguard.stages import is_sanity_check, same_kind

# python's and numpy's states take ten times as long to read as torch's
_HOST_FIRST, _HOST_EVERY = 3, 16


class StochasticCheck(Check):
    """The `stochastic` check: the shared generators around the steps, the operators in a witness.

    Dropout that is active is certain. Sampling by any other operation is a suspicion: a VAE, a
    diffusion model or a bootstrap means it.

    The generators are read around every step of a stage until one evaluation ran to its end and
    moved none. From then on most steps are skipped: where the generators stand at the next look as
    they did after the last one, no step between them drew. Where they do not, every step is read
    again from there on.
    """

    name = "stochastic"

    def __init__(self) -> None:
        self._root: nn.Module | None = None
        self._batches = 0
        self._thinned = (
            False  # whether this evaluation began without reading every step
        )
        self._moved: list[str] = []
        self._explained: set[str] = set()
        self._private: list[tuple[Any, Any]] = []
        self._at_move: Generators | None = None
        # by stage: whether steps that are skipped draw nothing
        self._quiet: dict[str, bool] = {}
        # and whether something else draws between them
        self._between: dict[str, bool] = {}
        self._gaps = Gaps()
        self.before: Generators | None = None

    def open(self, root: nn.Module, now: Moment) -> Iterable[Finding]:
        self._root = root
        self._batches = 0
        self._private = [(t, None) for t in things([root]) if is_generator(type(t))]
        self._explained.clear()
        self._quiet.clear()
        self._between.clear()
        return ()

    def close(self, now: Moment) -> Iterable[Finding]:
        self._root = self.before = None
        self._private = []
        return ()

    def start(self, now: Moment) -> Iterable[Finding]:
        self._batches = 0
        self.thins = self._thinned = self._quiet.get(now.stage, False)
        self._gaps = Gaps(self._between.get(now.stage, False))
        return ()

    def before_step(self, now: Moment, args: tuple[Any, ...]) -> Iterable[Finding]:
        self._moved, self.before = [], None
        if now.stage not in self._explained:
            host = self._batches < _HOST_FIRST or self._batches % _HOST_EVERY == 0
            self.before = Generators.capture(host=host)
            moved = self._gaps.moved(now, self.before, now.batch)
            if moved and self.thins:
                self._read_every_step(now)
        self._batches += 1
        return ()

    def after_step(self, now: Moment, outputs: Any) -> Iterable[Finding]:
        before = self.before
        if before is not None:
            after = Generators.capture(host=before.python is not None)
            self._moved = after.moved(before)
            if self._private:
                self._moved += self._private_moved()
            self._gaps.looked(now, after)
        return ()

    def _read_every_step(self, now: Moment) -> None:
        """From here on, and in all evaluations to come."""
        self.thins = False
        self._quiet[now.stage] = False

    def steps_over(self, now: Moment) -> Iterable[Finding]:
        gaps = self._gaps
        self._between[now.stage] = gaps.between
        if not self._batches or now.stage in self._explained:
            return ()
        if not self._thinned:
            if not self._private and not is_sanity_check(now.stage):
                self._quiet.setdefault(now.stage, True)
            return ()
        if now.skipped and gaps.moved(
            now, Generators.capture(host=False), now.batch + 1
        ):
            self._read_every_step(now)
        who = gaps.suspect()
        if not who:
            return ()
        return [moved_somewhere(now, "torch", who)]

    def _private_moved(self) -> list[str]:
        """Whether a private generator of the model advanced since the last step.

        One that is seeded anew in each step ends where it ended before.
        """
        states = [(g, generator_state(g)) for g, _ in self._private]
        last, self._private = self._private, states
        same = all(
            a is None or same_state(a, b)
            for (_, a), (_, b) in zip(last, states, strict=True)
        )
        if same:
            return []
        return ["private"]

    def before_move(self, now: Moment) -> Subscriber | None:
        """A batch is about to be moved to the device, and augmented there; the first is watched."""
        self._at_move = None
        if "move" in self._explained:
            return None
        self._at_move = Generators.capture(host=False)
        if self._batches != 0:
            return None
        return Draws(self._tree())

    def after_move(self, now: Moment, seen: Subscriber | None) -> Iterable[Finding]:
        """The batch was moved: say what was drawn for it."""
        if self._at_move is None:
            return ()
        moved = Generators.capture(host=False).moved(self._at_move)
        if not moved:
            return ()
        self._explained.add("move")
        if isinstance(seen, Draws):
            return findings_of(now, seen.draws)
        return [moved_somewhere(now, "torch", "moving the batch to the device")]

    def tripped(self) -> bool:
        """Whether a shared generator moved in the step that just ended."""
        return bool(self._moved)

    def watch(self, now: Moment) -> Subscriber:
        """The draws of the step, and in a replay what every operator gave."""
        return Draws(self._tree())

    def saw(
        self, now: Moment, seen: Subscriber | None, look: Look | None
    ) -> Iterable[Finding]:
        """Name what was drawn, once for each place."""
        moved, self._moved = self._moved, []
        findings = self._explain(now, seen, moved, look)
        if moved or findings:
            # One explanation a kind of run: what is meant, and allowed, fires at every batch.
            self._explained |= same_kind(now.stage)
        return findings

    def _explain(
        self, now: Moment, seen: Subscriber | None, moved: list[str], look: Look | None
    ) -> list[Finding]:
        if not isinstance(seen, Draws):
            return [moved_somewhere(now, which) for which in moved]
        # Watched alone and no generator moved: what was drawn was drawn from a fork or a private
        # generator, most often one seeded for it.
        draws = [d for d in seen.draws if d.dropout or (moved and not d.private)]
        others: list[Finding] = []
        if look is not None:
            draws, others = self._run_again(now, seen, moved, look)
        else:
            others = [
                moved_somewhere(now, w)
                for w in moved
                if w != "torch" or not seen.shared
            ]
        return [*findings_of(now, draws), *others]

    def _tree(self) -> nn.Module:
        assert self._root is not None, "open() comes first"
        return self._root

    def _run_again(
        self, now: Moment, seen: Draws, moved: list[str], look: Look
    ) -> tuple[list[Draw], list[Finding]]:
        """What one replay cannot tell: which draws are fixed, and what moves by itself."""
        others: list[Finding] = []
        second = Draws(self._tree())
        same = look.again(second).error is None
        private = {d.index for d in seen.draws if d.private}
        fixed = private
        if same:
            fixed = equal_at(seen, second, private)
        differs = None
        if same:
            differs = first_difference(seen, second)
        if differs is not None and all(d.index != differs for d in seen.draws):
            at = At(self._tree(), differs)
            look.again(at)
            if at.place is not None:
                others.append(differing_replay(now, at.place))
        sampled = {d.index for d in seen.draws if not d.dropout} - private
        if sampled:
            reseeded = Draws(self._tree())
            if look.again(reseeded, seed=_OTHER_SEED).error is None:
                fixed |= equal_at(seen, reseeded, sampled)
        draws = [d for d in seen.draws if d.index not in fixed]
        by_lines = [
            w for w in moved if w in STATES and (w != "torch" or seen.shared <= fixed)
        ]
        if by_lines:
            others += self._name_lines(now, by_lines, look)
        return draws, others

    def _name_lines(self, now: Moment, moved: list[str], look: Look) -> list[Finding]:
        """The lines that moved a generator without an operator, by running them one by one."""
        lines = Lines(moved)
        with lines:
            look.again()
        names = ModuleNames(self._tree())
        findings = []
        for which, site, module in lines.found:
            subject, module = names.nearest([module] if module is not None else [])
            fact, remedy = of_line(site, which)
            kind = type(module).__name__
            findings.append(
                draw_finding(now, fact, remedy, subject, kind, site, certain=False)
            )
        named = {which for which, *_ in lines.found} | lines.allowed
        return findings + [
            moved_somewhere(now, which) for which in moved if which not in named
        ]


_OTHER_SEED = 2_718_281_828
