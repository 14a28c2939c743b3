"""Does a dataset give the same sample each time? Some are read again, outside of the steps."""

from __future__ import annotations

from collections.abc import Callable

from lightning_evalguard.checks.data.loader_facts import EvaluatedSet, workers
from lightning_evalguard.data import loaders as _loaders
from lightning_evalguard.data.loaders import Fact
from lightning_evalguard.data.samples import Budget, digest, is_cheap, undisturbed

_TWICE = 4  # samples that are read twice after an evaluation, where reading is costly


def reads_cheaply(one: EvaluatedSet) -> bool:
    """Whether a sample of an evaluated set costs next to nothing to read."""
    if workers(one.loader) or one.order == "unknown":
        return False
    dataset = one.loader.dataset
    if not _loaders.length(dataset):
        return False
    try:
        with undisturbed(dataset):
            return is_cheap(dataset, 0)
    except Exception:  # noqa: BLE001 - a dataset that cannot be read so
        return False


def read_twice(one: EvaluatedSet, note: Callable[[str], None]) -> list[Fact]:
    """Read samples of an evaluated set twice, until one differs.

    Args:
        one: The set.
        note: Takes the reason why they could not be read.
    """
    dataset = one.loader.dataset
    samples = _TWICE
    if reads_cheaply(one):
        samples = len(one.places)
    budget = Budget(2 * samples)
    with undisturbed(dataset):
        while one.places and budget.read(2):
            place = one.places.pop()
            try:
                same = digest(dataset[place]) == digest(dataset[place])
            except Exception as error:  # noqa: BLE001 - a dataset that cannot be read so
                one.places.clear()
                note(
                    f"the samples of `{one.name}` were not read twice: "
                    f"{type(error).__name__}: {error}"
                )
                break
            if not same:
                one.varies, one.places = True, []
                fact = (
                    f"sample {place} read twice differs, "
                    "expected the same evaluation set each time"
                )
                remedy = "Keep random transforms out of the evaluation's dataset."
                return [one.fact(fact, remedy)]
    return []
