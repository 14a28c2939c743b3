"""Do training's and the evaluation's batches look alike: type, layout, scale, padding?

What is compared is the largest tensor of the batches, as the steps get them: of up to `_MOST`
samples a side, spread over the run. The bounds are set so that splits of one set, usual
augmentations, rare classes, sorted loaders and trends in time stay within them:

- *Inside a sample* (images, series): the standard deviation of its values. The medians of both
  sides differ by a factor above `_FACTOR`; jitter, crops and mixup stay below 2.
- *Outside of training*: of a table's column, or of a channel's means, more than `_OUTSIDE` of the
  evaluated values lie beyond all that training showed, by a tenth of its range; chance does that to
  samples of one set less than once in 1 / `_CHANCE` times; and the values lie a whole range away,
  or a table's column has another scale (`_FACTOR`). So do at least `_OUTSIDE` of the columns. A
  part of a set, however it was chosen, lies inside. Time goes on where training's ends: a narrower
  range just beyond it, and values that come in order (`_SMOOTH`), are no sign.
- *Far narrower*: of at least `_COLUMNS` columns nearly all vary less than a tenth as much.
- *Labels*: whole numbers that go from 0 to 9 in one set and from 1 to 10 in the other.
- *Padding* of token ids: all padded rows of one side end in one id, all of the other in another.
- *Special ids*: all padded rows of one side begin with one id and end with another one before the
  padding, those of the other side with two others: one of them may be a task's, or a language's.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_evalguard.data.batches import tensors

_MOST = 256  # samples of each side
_FEWEST = 16
_ROWS = 16  # of one batch
_VALUES = 1024  # of one channel
_FACTOR = 3.0
_OUTSIDE = 0.3
_CHANCE = 1e-4
_MARGIN = 0.1
# of the spread, from one sample to the next; 1.1 where they are in no order
_SMOOTH = 0.2
_ORDERED = 8  # values that rise by chance in one of 20,000 columns
_COLUMNS, _NARROW = 8, 0.1
_LABELS = 4  # tensors of a batch that may be labels
_FEWEST_LABELS, _MOST_LABELS = 4, 64  # different ones that are compared
_ENDS = 8  # samples of the least label and of the largest
_TAIL = 3  # equal ids at the end of a padded row
_PADDED = 8  # padded rows of a side


class _Look(NamedTuple):
    """Some samples of one batch, reduced: small tensors on its device.

    Attributes:
        means: ``(N, C)``: of each channel, or the values of a table's row.
        spreads: ``(N,)`` standard deviations inside the samples; empty for tables.
        tails: ``(N, 5)``: last token, whether the row is padded by it, the first token, the last
            one before the padding, and its place; empty for others.
        labels: ``(N, K)``: what stands beside the rows, one number a sample each.
    """

    means: Tensor
    spreads: Tensor
    tails: Tensor
    labels: Tensor


class Appearance:
    """What the batches of one side look like; nothing of them is kept but a few numbers."""

    def __init__(self) -> None:
        self.dtype: torch.dtype | None = None
        self.shape: tuple[int, ...] = ()
        self.place = -1  # of the tensor in its batch
        self._looks: list[_Look] = []
        self._samples = 0
        self._steps = 0

    @property
    def full(self) -> bool:
        """Whether enough was seen."""
        return self._samples >= _MOST

    def add(self, batch: object) -> None:
        """A step gets `batch`: the first steps are looked at, then ever fewer."""
        self._steps = n = self._steps + 1
        if (n > 8 and n & (n - 1)) or self.full:
            return
        held = tensors(batch)
        place, largest = _largest(held)
        if largest is None or largest.layout != torch.strided or not len(largest):
            return
        if largest.is_complex() or largest[0].numel() < 2 or largest.is_quantized:
            return
        if self.dtype is None:
            self.dtype, self.shape = largest.dtype, tuple(largest.shape[1:])
            self.place = place
        if largest.dtype != self.dtype or largest.ndim != len(self.shape) + 1:
            return
        # spread over the batch, which may be sorted
        step = max(1, -(-len(largest) // _ROWS))
        rows = largest.detach()[::step][:_ROWS]
        labels = rows.new_zeros(len(rows), 0)
        beside = [one.detach()[::step][:_ROWS] for one in _beside(held, largest)]
        if beside:
            labels = torch.stack([one.reshape(-1).double() for one in beside], 1)
        self._looks.append(_look(rows, labels))
        self._samples += len(rows)

    def means(self) -> Tensor:
        """``(N, C)`` on the host, in float64; empty where the samples differ in channels."""
        means = [look.means.double().cpu() for look in self._looks]
        if len({m.shape[1] for m in means}) != 1:
            return torch.zeros(0, 1)
        return torch.cat(means)

    def labels(self) -> Tensor:
        """``(N, K)`` on the host, beside `means`; K is 0 where nothing stands beside the rows."""
        labels = [look.labels.double().cpu() for look in self._looks]
        if len({one.shape[1] for one in labels}) != 1:
            return torch.zeros(0, 0)
        return torch.cat(labels)

    def spreads(self) -> Tensor:
        """``(N,)`` on the host."""
        return torch.cat(
            [look.spreads.double().cpu() for look in self._looks] or [torch.zeros(0)]
        )

    def padding(self) -> set[int] | None:
        """The ids in which padded rows end; None where too few are padded."""
        padded = self._padded()
        if len(padded) >= _PADDED:
            return {int(token) for token in padded[:, 0]}
        return None

    def special(self) -> tuple[int, int] | None:
        """The ids with which all padded rows begin, and end before the padding; None of others."""
        padded = self._padded()
        if len(padded) < _FEWEST or len(set(padded[:, 4].tolist())) < 2:
            return None
        first, end = padded[0, 2:4].tolist()
        if first == end or not bool((padded[:, 2:4] == padded[0, 2:4]).all()):
            return None
        return first, end

    def _padded(self) -> Tensor:
        tails = torch.cat(
            [look.tails.cpu() for look in self._looks] or [torch.zeros(0, 5)]
        )
        return tails[tails[:, 1] > 0].to(torch.int64)


def _largest(held: list[Tensor]) -> tuple[int, Tensor | None]:
    """The largest tensor with an entry a sample, and its place."""
    found: tuple[int, Tensor | None] = -1, None
    for place, tensor in enumerate(held):
        if tensor.ndim > 1 and (found[1] is None or tensor.numel() > found[1].numel()):
            found = place, tensor
    return found


def _beside(held: list[Tensor], largest: Tensor) -> list[Tensor]:
    """The tensors of one number a sample, which may be labels."""
    n = len(largest)
    flat = [one for one in held if one.ndim in (1, 2) and one.numel() == len(one) == n]
    return [one for one in flat if not one.is_complex()][:_LABELS]


def _look(rows: Tensor, labels: Tensor) -> _Look:
    empty = rows.new_zeros(0, dtype=torch.float32)
    tails = rows.new_zeros(0, 5, dtype=torch.int64)
    with torch.no_grad():
        if rows.ndim == 2:
            if not rows.is_floating_point() and rows.shape[1] > _TAIL:
                last = rows[:, -1:]
                padded = (rows[:, -_TAIL:] == last).all(1) & (
                    rows[:, :1] != last
                ).squeeze(1)
                place = (
                    torch.arange(rows.shape[1], device=rows.device) * (rows != last)
                ).amax(1)
                end = rows.gather(1, place.unsqueeze(1))
                told = [last.squeeze(1), padded, rows[:, 0], end.squeeze(1), place]
                tails = torch.stack(told, 1).to(torch.int64)
            return _Look(
                rows.float() if rows.is_floating_point() else rows,
                empty,
                tails,
                labels,
            )
        channels = 1
        if rows.shape[1] <= 4:
            channels = rows.shape[1]
        values = rows.reshape(len(rows), channels, -1)
        values = values[:, :, :: -(-values.shape[2] // _VALUES)].float()
        return _Look(values.mean(2), values.flatten(1).std(1), tails, labels)


def difference_in_looks(
    mine: Appearance, theirs: Appearance, values: bool = True
) -> str:
    """How an evaluated set's batches look otherwise than training's; empty where they do not.

    Args:
        mine: Of the evaluated set.
        theirs: Of training.
        values: Whether their values count, beside their type and shape.
    """
    if mine.dtype is None or theirs.dtype is None or mine.place != theirs.place:
        return ""
    said = _of_type(mine, theirs) or _of_layout(mine, theirs)
    if said or not values:
        return said
    return _of_values(mine, theirs)


def difference_in_numbers(mine: Appearance, theirs: Appearance) -> str:
    """How the labels of an evaluated set are numbered otherwise than training's, by one.

    Both go on without a gap from the least to the largest, of which each set has one that the other
    has not, `_ENDS` times at least: a part of a set that lacks a class has no other one for it.
    """
    ours, training = mine.labels(), theirs.labels()
    if ours.shape[1] != training.shape[1] or not len(ours) or not len(training):
        return ""
    for column in range(ours.shape[1]):
        a, b = (_ends(labels[:, column]) for labels in (ours, training))
        if (
            a is not None
            and b is not None
            and abs(a[0] - b[0]) == 1 == abs(a[1] - b[1])
        ):
            return (
                f"numbers its labels from {a[0]} to {a[1]}, expected {b[0]} to {b[1]} as the "
                f"training set has (of {len(ours)} and {len(training)} samples)"
            )
    return ""


def _ends(labels: Tensor) -> tuple[int, int] | None:
    """The least and the largest of labels without a gap, which are some of each; else None."""
    values, counts = torch.unique(labels, return_counts=True)
    if not _FEWEST_LABELS <= len(values) <= _MOST_LABELS:
        return None
    first, last = float(values[0]), float(values[-1])
    if first != round(first) or last - first != len(values) - 1:
        return None
    if not torch.equal(values, values.round()) or min(counts[0], counts[-1]) < _ENDS:
        return None
    return int(first), int(last)


def _of_type(mine: Appearance, theirs: Appearance) -> str:
    assert mine.dtype is not None
    assert theirs.dtype is not None
    if mine.dtype.is_floating_point == theirs.dtype.is_floating_point:
        return ""
    return f"gives inputs of {mine.dtype}, expected {theirs.dtype} as in training"


def _of_layout(mine: Appearance, theirs: Appearance) -> str:
    same_sizes = sorted(mine.shape) == sorted(theirs.shape)
    if mine.shape == theirs.shape or not same_sizes or len(mine.shape) < 3:
        return ""
    if mine.shape[0] == theirs.shape[0]:  # an image that stands on end
        return ""
    return f"gives inputs of shape {mine.shape}, expected {theirs.shape} as in training"


def _of_values(mine: Appearance, theirs: Appearance) -> str:
    assert mine.dtype is not None
    if len(mine.shape) == 1 and not mine.dtype.is_floating_point:
        return _of_padding(mine, theirs)
    if len(mine.shape) != len(theirs.shape):
        return ""
    ours, training = mine.spreads(), theirs.spreads()
    if min(len(ours), len(training)) >= _FEWEST:
        a = float(ours.nanmedian())
        b = float(training.nanmedian())
        if min(a, b) > 0 and max(a / b, b / a) > _FACTOR:
            return (
                f"the values of a sample have a standard deviation of {a:.3g}, expected about "
                f"{b:.3g} as in training (medians of {len(ours)} and {len(training)} samples)"
            )
    return _of_range(mine.means(), theirs.means(), table=len(mine.shape) == 1)


def _of_range(ours: Tensor, training: Tensor, table: bool) -> str:
    """How many values lie beyond all of training's: of a table, or means of larger samples."""
    if min(len(ours), len(training)) < 2 or ours.shape[1] != training.shape[1]:
        return ""
    # a column of one value says nothing of its range
    varies = training.max(0).values > training.min(0).values
    ours, training = ours[:, varies], training[:, varies]
    if not varies.any():
        return ""
    foreign = _foreign(ours, training, table)
    if _is_narrow(ours, training):
        foreign = torch.ones(ours.shape[1], dtype=torch.bool)
    if float(foreign.double().mean()) <= _OUTSIDE:
        return ""
    k = int(foreign.nonzero()[0])
    place = int(varies.nonzero()[k])
    return (
        f"{int(foreign.sum())} of {len(foreign)} columns or channels have another range than in "
        f"training: number {place} has values of {_range(ours[:, k])}, expected about "
        f"{_range(training[:, k])}"
    )


def _foreign(ours: Tensor, training: Tensor, table: bool) -> Tensor:
    """(C,) bool: the columns that are of another scale, which larger samples show inside."""
    low = training.min(0).values
    high = training.max(0).values
    width = high - low
    outside = ((ours < low - _MARGIN * width) | (ours > high + _MARGIN * width)).sum(0)
    # of exchangeable samples so many lie beyond all others with about this chance
    share = len(ours) / (len(ours) + len(training))
    certain = 2 * share ** outside.double() < _CHANCE
    beyond = certain & (outside > _OUTSIDE * len(ours))
    if float(beyond.double().mean()) <= _OUTSIDE:  # too few in any case
        return beyond
    ratio = ours.std(0) / training.std(0)
    wider, narrower = ratio > _FACTOR, ratio < 1 / _FACTOR
    away = (ours.mean(0) - training.mean(0)).abs() > width
    other = away & ~_in_order(ours)
    if table:
        other |= wider | (narrower & ~_goes_on(ours, low, high) & ~_in_order(ours))
    return beyond & other


def _in_order(values: Tensor) -> Tensor:
    """(C,) bool: where one sample's value is near the last one's, as they are in order of time.

    What lies before it in time, or after it, may be anywhere.
    """
    steps = values.diff(dim=0)
    if len(values) < _ORDERED:
        return torch.zeros(values.shape[1], dtype=torch.bool)
    rises = (steps > 0).all(0) | (steps < 0).all(0)
    return rises | (steps.abs().mean(0) < _SMOOTH * values.std(0))


def _goes_on(ours: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """(C,) bool: where values begin near the end of training's, as those of a later time do."""
    first, last = ours.min(0).values, ours.max(0).values
    gap = torch.maximum(first - high, low - last)
    return gap < last - first


def _is_narrow(ours: Tensor, training: Tensor) -> bool:
    """Whether all columns vary far less, as no part of a set does in many columns at once."""
    spread = training.std(0)
    varies = spread > 0
    if min(len(ours), len(training)) < _FEWEST or int(varies.sum()) < _COLUMNS:
        return False
    ratio = ours.std(0)[varies] / spread[varies]
    narrow = ratio < _NARROW
    return bool((ratio > 0).any()) and float(narrow.double().mean()) > 0.95


def _range(values: Tensor) -> str:
    return f"{float(values.min()):.3g} to {float(values.max()):.3g}"


def _of_padding(mine: Appearance, theirs: Appearance) -> str:
    ours, training = mine.padding(), theirs.padding()
    if (
        ours is None
        or training is None
        or ours & training
        or len(ours) > 1
        or len(training) > 1
    ):
        return _of_special(mine, theirs)
    return f"pads its rows with {ours.pop()}, expected {training.pop()} as in training"


def _of_special(mine: Appearance, theirs: Appearance) -> str:
    """Another tokenizer begins its texts with another id, and ends them with another one."""
    ours, training = mine.special(), theirs.special()
    if ours is None or training is None or not set(ours).isdisjoint(training):
        return ""
    return (
        f"begins its rows with {ours[0]} and ends them with {ours[1]}, expected {training[0]} and "
        f"{training[1]} as in training"
    )
