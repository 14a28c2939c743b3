"""Lies around the step, each with its honest twin, in tables by what they are about."""

from lies import (
    apart,
    around,
    batches,
    by_hand,
    choosing,
    copies,
    data,
    further,
    numbered,
    padding,
    quiet,
    reading,
    scores,
    selection,
    unseen,
    weights,
)
from lies.common import GUARDED, TABLE
from lies.honest import HONEST

CHECKS = {
    "lies.copies": {"weights"},
    "lies.apart": {"data", "batch"},
    "lies.by_hand": {"scores"},
    "lies.around": {"weights", "data", "scores", "batch", "selection"},
    "lies.batches": {"batch"},
    "lies.weights": {"weights", "stochastic"},
    "lies.choosing": {"selection"},
    "lies.data": {"data"},
    "lies.further": {"weights", "data", "selection"},
    "lies.numbered": {"data"},
    "lies.padding": {"batch"},
    "lies.quiet": {"weights", "scores", "data"},
    "lies.reading": {"data"},
    "lies.scores": {"scores"},
    "lies.selection": {"selection", "data", "modes", "grad", "state"},
    "lies.unseen": {"weights"},
}
"""The checks that speak of the lies of each table."""

__all__ = [
    "CHECKS",
    "GUARDED",
    "HONEST",
    "TABLE",
    "apart",
    "around",
    "batches",
    "by_hand",
    "choosing",
    "copies",
    "data",
    "further",
    "numbered",
    "padding",
    "quiet",
    "reading",
    "scores",
    "selection",
    "unseen",
    "weights",
]
