"""The confusion matrix as a figure that can be read at 2 classes and at 1,000."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_evalguard.confusion.lettering import families, labels
from lightning_evalguard.confusion.result import ConfusionResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# One scale for what is right and one for what is wrong: on a common one an error of 17 % of a
# class is nearly white.
_RIGHT = ("#eef3fa", "#7fa8d6", "#1f5a9e", "#0b2545")
_WRONG = ("#ffffff", "#fde3cf", "#f4a261", "#c8501d", "#7f2704")
_GREY, _INK, _MUTED = "#ededed", "#222222", "#555555"


def figure(
    result: ConfusionResult, title: str = "", *, max_shown: int = 20, dpi: int = 110
) -> Figure:
    """Draw `result`: rows are true, columns predicted, numbers in percent of the row.

    The diagonal is blue, errors are orange, each on its own scale. Above `max_shown` classes the
    most confused are shown and the others pooled in a grey ``other``. A multilabel result is drawn
    as one row a label, a result without a matrix as bars of its most confused pairs.

    Args:
        result: Of one evaluation.
        title: First line.
        max_shown: Classes that are shown one by one.
        dpi: Dots per inch.

    Returns:
        A figure on an Agg canvas that pyplot does not know, so that there is nothing to close.
    """
    if result.matrix is None:
        return _pair_figure(result, title, max_shown, dpi)
    if result.task == "multilabel":
        return _label_figure(result, title, max_shown, dpi)
    matrix, names = shown_classes(result, max_shown)
    pooled = 0
    if len(names) < result.num_classes:
        pooled = result.num_classes - (len(names) - 1)
    return _matrix_figure(result, matrix, labels(names), pooled, title, dpi)


def png(fig: Figure) -> bytes:
    """The figure as a PNG file's content."""
    import io

    content = io.BytesIO()
    fig.savefig(content, format="png")
    return content.getvalue()


def most_confused_classes(matrix: np.ndarray[Any, Any], k: int) -> np.ndarray[Any, Any]:
    """Indices, ascending, of the `k` classes that the most confused pairs are made of.

    Pair by pair, so that a class is shown beside the one it is taken for.
    """
    wrong = matrix.astype(np.float64)
    np.fill_diagonal(wrong, 0)
    wrong = np.triu(wrong + wrong.T)
    # Each pair adds a class or none is left, so that k * k pairs are more than enough.
    many = min(wrong.size, k * k + k)
    pairs = np.argpartition(-wrong, many - 1, axis=None)[:many]
    pairs = pairs[np.argsort(-wrong.flat[pairs], kind="stable")]
    rows_and_columns = np.stack(np.divmod(pairs, len(matrix)), axis=1)
    chosen = dict.fromkeys(rows_and_columns.ravel().tolist())
    return np.sort(list(chosen)[:k])


def shown_classes(
    result: ConfusionResult, max_shown: int = 20
) -> tuple[np.ndarray[Any, Any], list[str]]:
    """The matrix and its class names; above `max_shown` the most confused ones, others pooled."""
    assert result.matrix is not None
    matrix = result.matrix.clone().numpy()
    n = len(matrix)
    if n <= max_shown:
        return matrix, list(result.class_names)
    chosen = most_confused_classes(matrix, max_shown - 1)
    group = np.full(n, len(chosen))
    group[chosen] = np.arange(len(chosen))
    rows = np.zeros((len(chosen) + 1, n), dtype=np.int64)
    np.add.at(rows, group, matrix)
    small = np.zeros((len(chosen) + 1, len(chosen) + 1), dtype=np.int64)
    np.add.at(small.T, group, rows.T)
    return small, [
        *(result.class_names[i] for i in chosen),
        f"{n - len(chosen):,} others",
    ]


def _matrix_figure(
    result: ConfusionResult,
    matrix: np.ndarray[Any, Any],
    names: list[str],
    pooled: int,
    title: str,
    dpi: int,
) -> Figure:
    n = len(matrix)
    support = matrix.sum(1)
    share = np.divide(
        matrix, support[:, None], out=np.zeros(matrix.shape), where=support[:, None] > 0
    )
    wrong = share.copy()
    np.fill_diagonal(wrong, 0)
    if pooled:
        wrong[:, -1] = wrong[-1] = 0
    colours = _scale(_WRONG)(_depth(wrong))[..., :3]
    d = np.arange(n)
    colours[d, d] = _scale(_RIGHT)(share[d, d])[:, :3]
    if pooled:
        colours[-1] = colours[:, -1] = _rgb(_GREY)
    colours[support == 0] = _rgb(_GREY)

    size = 7.5
    if n <= 12:
        size = 9.0
    cell = 0.42
    if n <= 4:
        cell = 1.0
    elif n <= 12:
        cell = 0.52
    rows = [f"{name}  {count:,}" for name, count in zip(names, support, strict=True)]
    left = max(map(len, rows)) * size * 0.0085 + 0.45
    bottom = max(map(len, names)) * size * 0.0066 + 0.55
    fig, ax = _canvas(
        n * cell, n * cell, left, bottom, title, _subtitle(result, pooled), dpi
    )
    ax.imshow(colours, interpolation="nearest", aspect="auto")
    _write_shares(ax, share, matrix, bool(pooled), size)
    fonts = list(families(names))
    ax.set_xticks(
        range(n),
        names,
        fontsize=size,
        fontfamily=fonts,
        **_slant(names),
    )
    ax.set_yticks(range(n), rows, fontsize=size, fontfamily=fonts)
    ax.set_xlabel("predicted", fontsize=size, color=_MUTED)
    ax.set_ylabel("true, with count", fontsize=size, color=_MUTED)
    return fig


def _write_shares(
    ax: Axes,
    share: np.ndarray[Any, Any],
    matrix: np.ndarray[Any, Any],
    pooled: bool,
    size: float,
) -> None:
    """The share of its row in each cell that has one worth reading."""
    n = len(matrix)
    least = 0.02
    if n <= 12:
        least = 0.005
    for i, j in zip(*np.nonzero(matrix), strict=True):
        value = share[i, j]
        grey = pooled and (i == n - 1 or j == n - 1)
        if i != j and value < least:
            continue
        depth = 0.0
        if not grey:
            depth = value if i == j else _depth(value)
        text = _percent(value) + (f" %\n{matrix[i, j]:,}" if n <= 4 else "")
        ax.text(
            j,
            i,
            text,
            ha="center",
            va="center",
            fontsize=size,
            color="white" if depth > (0.45 if i == j else 0.6) else _INK,
        )


def _label_figure(
    result: ConfusionResult, title: str, max_shown: int, dpi: int
) -> Figure:
    table = result.table()
    hidden = max(0, len(table) - max_shown)
    if hidden:
        table = sorted(table, key=lambda row: float(row["f1"]))[:max_shown]
    columns = ("precision", "recall", "f1", "specificity")
    values = np.array([[row[c] for c in columns] for row in table])
    names = labels([str(row["class"]) for row in table])
    rows = [
        f"{name}  {row['support']:,}" for name, row in zip(names, table, strict=True)
    ]
    size = 7.5
    if len(rows) <= 12:
        size = 9.0
    left = max(map(len, rows)) * size * 0.0085 + 0.45
    subtitle = _subtitle(result, 0, "numbers in %") + (
        f", {hidden:,} labels with a higher F1 hidden" * bool(hidden)
    )
    fig, ax = _canvas(
        len(columns) * 0.8, len(rows) * 0.4, left, 1.0, title, subtitle, dpi
    )
    ax.imshow(_scale(_RIGHT)(values)[..., :3], interpolation="nearest", aspect="auto")
    for (i, j), value in np.ndenumerate(values):
        ax.text(
            j,
            i,
            _percent(value),
            ha="center",
            va="center",
            fontsize=size,
            color="white" if value > 0.45 else _INK,
        )
    ax.set_xticks(
        range(len(columns)),
        columns,
        fontsize=size,
        **_slant(columns),
    )
    ax.set_yticks(
        range(len(rows)), rows, fontsize=size, fontfamily=list(families(rows))
    )
    ax.set_ylabel("label, with count", fontsize=size, color=_MUTED)
    return fig


def _pair_figure(
    result: ConfusionResult, title: str, max_shown: int, dpi: int
) -> Figure:
    pairs = result.most_confused(max_shown)
    ends = dict.fromkeys(end for pair in pairs for end in (pair.true, pair.predicted))
    known = dict(zip(ends, labels(list(ends)), strict=True))
    names = [f"{known[p.true]} → {known[p.predicted]}" for p in pairs] or [
        "no confused pair"
    ]
    left = max(map(len, names)) * 8 * 0.0085 + 0.3
    fig, ax = _canvas(
        4.0,
        len(names) * 0.3,
        left,
        0.6,
        title,
        _subtitle(result, 0, "% of the true class"),
        dpi,
    )
    ax.barh(range(len(pairs)), [p.count for p in pairs], color=_WRONG[2])
    for i, pair in enumerate(pairs):
        ax.text(
            pair.count,
            i,
            f" {pair.count:,}  ({_percent(pair.share)} %)",
            va="center",
            fontsize=7.5,
            color=_INK,
        )
    ax.set_yticks(
        range(len(names)), names, fontsize=8, fontfamily=list(families(names))
    )
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.margins(x=0.25)
    ax.tick_params(axis="x", labelsize=8)
    ax.set_xlabel("samples, true → predicted", fontsize=8, color=_MUTED)
    return fig


def _canvas(
    width: float,
    height: float,
    left: float,
    bottom: float,
    title: str,
    subtitle: str,
    dpi: int,
) -> tuple[Figure, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    top = 0.62
    whole = max(
        left + width + 0.25, 0.062 * len(subtitle) + 0.3, 0.085 * len(title) + 0.3
    )
    tall = bottom + height + top
    fig = Figure(figsize=(whole, tall), dpi=dpi)
    FigureCanvasAgg(fig)
    ax = fig.add_axes((left / whole, bottom / tall, width / whole, height / tall))
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_color("#bbbbbb")
    fig.text(
        0.15 / whole, 1 - 0.2 / tall, title, fontsize=10, weight="bold", va="center"
    )
    fig.text(
        0.15 / whole, 1 - 0.42 / tall, subtitle, fontsize=8, color=_MUTED, va="center"
    )
    return fig, ax


def _subtitle(
    result: ConfusionResult, pooled: int, unit: str = "numbers in % of the row"
) -> str:
    names = ("accuracy", "hamming_accuracy", "f1_macro", "mcc")
    said = [f"{k} {result.scores[k]:.3f}" for k in names if k in result.scores]
    said.append(
        f"{result.total:,} {'answers' if result.task == 'multilabel' else 'samples'}"
    )
    if pooled:
        said.append(
            f"{result.num_classes - pooled} most confused of {result.num_classes:,} classes"
        )
    said.append(unit)
    return " · ".join(said)


def _percent(share: float) -> str:
    text = f"{share * 100:.0f}"
    # What is neither nothing nor everything is not shown as if it were.
    if text == "0" and share > 0:
        return "<1"
    if text == "100" and share < 1:
        return ">99"
    return text


def _depth(share: Any) -> Any:
    """How strongly an error of that share of its class is coloured: the same in every figure.

    By its root: one sample in forty is pale, a fifth of a class orange, from half of it on brown.
    """
    return np.sqrt(np.minimum(np.asarray(share) / 0.5, 1.0))


def _scale(colours: tuple[str, ...]) -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("", colours)


def _slant(names: Sequence[str]) -> dict[str, Any]:
    """How the names of columns stand: upright where all are as short as a cell is wide."""
    if len(names) <= 20 and max(map(len, names)) <= 3:
        return {}
    return {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}


def _rgb(colour: str) -> Any:
    from matplotlib.colors import to_rgb

    return to_rgb(colour)
