"""The zoo: one tiny program for each way in which an evaluation lies, the honest way beside it."""

from models import (
    batch,
    data,
    grad,
    padding,
    rng,
    scores,
    selection,
    state,
    stochastic,
    weights,
)
from models.program import BATCH, CLASSES, FEATURES, PROGRAMS, Classifier, Program

__all__ = [
    "BATCH",
    "CLASSES",
    "FEATURES",
    "PROGRAMS",
    "Classifier",
    "Program",
    "batch",
    "data",
    "grad",
    "padding",
    "rng",
    "scores",
    "selection",
    "state",
    "stochastic",
    "weights",
]
