"""An evaluation is over: what its whole says about its targets and its count."""

from __future__ import annotations

from torch import Tensor

from lightning_evalguard.confusion.loader import LoaderCount


def settle_shares(entry: LoaderCount) -> None:
    """Decide, once an evaluation is over, whether targets are shares of classes or many labels."""
    chosen = entry.chosen
    if chosen is None or chosen.twin is None or entry.violated is None:
        return
    if bool(entry.violated):
        chosen.state = chosen.twin
        chosen.shares = False
        entry.each = None
        chosen.layout = chosen.state.layout
        entry.layout = chosen.layout if entry.layout is not None else None
    chosen.twin = None


def is_made_in_the_step(entry: LoaderCount, support: Tensor) -> bool:
    """Whether the targets turned out to be no labels: one pattern, made in each step."""
    patterns = entry.patterns
    if not patterns.made or patterns.made < patterns.ranks or not int(support.sum()):
        return False
    one_class = int((support > 0).sum()) == 1
    always = patterns.compared > 0 and not patterns.differing
    if one_class or always:
        entry.refused.append(
            f"{entry.source}: its targets are a pattern that the step makes"
        )
        return True
    if (chosen := entry.chosen) is not None:
        chosen.structured = False
        chosen.pattern = None
    return False


def close_epoch(entry: LoaderCount) -> None:
    """Where all was shown at the end of the epoch, the steps left nothing out."""
    chosen = entry.chosen
    if chosen is not None and chosen.kind == "epoch":
        entry.left_out = max(0, entry.given - chosen.samples) if entry.samples else 0
        entry.first = (
            (entry.batches - 1, "the hook after the last step")
            if entry.left_out
            else None
        )
