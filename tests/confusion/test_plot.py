"""The figure: what it shows, and that nothing of it is left behind."""

from __future__ import annotations

import gc
import struct
import weakref

import numpy as np
import pytest
import torch

from lightning_evalguard.confusion.figure import figure, most_confused_classes, png
from lightning_evalguard.confusion.lettering import labels
from lightning_evalguard.confusion.matrix import ConfusionMatrix
from lightning_evalguard.confusion.result import ConfusionResult


def result_of(matrix: np.ndarray, names: list[str] | None = None) -> ConfusionResult:
    n = len(matrix)
    target, preds = np.divmod(np.repeat(np.arange(n * n), matrix.ravel()), n)
    confmat = ConfusionMatrix(n)
    confmat.update(torch.as_tensor(preds), torch.as_tensor(target))
    return confmat.result(names)


def texts(fig) -> list[str]:
    (ax,) = fig.axes
    return [t.get_text() for t in ax.texts]


def test_two_classes_show_percent_and_count() -> None:
    fig = figure(result_of(np.array([[990, 0], [9, 1]]), ["ok", "fraud"]), "val")
    assert texts(fig) == ["100 %\n990", "90 %\n9", "10 %\n1"]
    (ax,) = fig.axes
    assert [t.get_text() for t in ax.get_yticklabels()] == ["ok  990", "fraud  10"]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["ok", "fraud"]
    assert fig.texts[0].get_text() == "val"
    assert "accuracy 0.991" in fig.texts[1].get_text()


def test_errors_have_a_scale_of_their_own() -> None:
    matrix = np.full((10, 10), 1) + np.diag([82] * 10)
    matrix[3, 5] = 17
    (ax,) = figure(result_of(matrix)).axes
    colours = ax.images[0].get_array()
    assert colours[3, 5].min() < 0.35  # a strong orange, though only 17 % of its row
    assert colours[0, 1].min() > 0.8


def test_one_wrong_sample_in_forty_is_not_the_loudest_thing() -> None:
    matrix = np.diag([40, 40, 40])
    matrix[0, 0], matrix[0, 1] = 39, 1
    (ax,) = figure(result_of(matrix)).axes
    pale = ax.images[0].get_array()[0, 1]
    assert pale.min() > 0.7
    # a second error leaves the first one's colour, as between epochs
    matrix[2] = [20, 0, 20]
    (ax,) = figure(result_of(matrix)).axes
    assert np.allclose(ax.images[0].get_array()[0, 1], pale)


NAMES = {
    "chinese": ["猫", "狗", "狐狸"],
    "arabic": ["قطة", "كلب", "ثعلب"],
    "mixed": ["Köln", "東京", "$x$"],
    "no font has it": ["\U00013080", "\U00013081", "\u0378"],
    "blank": [" a\nb ", "a\tb", "c"],
}


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
def test_no_warning_leaves_the_figure_whatever_the_script(names: list[str]) -> None:
    fig = figure(result_of(np.diag([3, 4, 5]), names))
    assert png(fig)  # warnings are errors here
    (ax,) = fig.axes
    shown = [text.get_text() for text in ax.get_xticklabels()]
    assert len(set(shown)) == 3


def test_a_name_that_no_font_draws_is_numbered() -> None:
    assert labels(["cat", "\u0378"]) == ["cat", "class 1"]


def test_long_names_keep_both_ends_and_stay_apart() -> None:
    names = [
        f"a very long class name that goes on and {end}" for end in ("on", "off", "on ")
    ]
    assert labels(names) == [
        "a very lon…n and on (0)",
        "a very lon… and off",
        "a very lon…n and on (2)",
    ]
    assert [len(name) for name in labels(["x" * 60, "x" * 61])] == [23, 23]


def test_the_figure_says_what_its_numbers_are() -> None:
    many = figure(result_of(np.diag([2] * 30)))
    assert "in % of the row" in many.texts[1].get_text()


def test_a_thousand_classes_show_the_most_confused_pairs_and_pool_the_rest() -> None:
    matrix = np.diag([20] * 1000)
    pairs = [(7, 800), (999, 0), (500, 501), (10, 990)]
    for a, b in pairs:
        matrix[a, b] = 15
    fig = figure(result_of(matrix, [f"class_{i}" for i in range(1000)]))
    (ax,) = fig.axes
    names = [t.get_text() for t in ax.get_xticklabels()]
    assert len(names) == 20
    assert names[-1] == "981 others"
    assert {f"class_{c}" for pair in pairs for c in pair} <= set(names)
    assert texts(fig).count("43") == 4


def test_every_class_is_chosen_once_and_in_order() -> None:
    rng = np.random.default_rng(0)
    chosen = most_confused_classes(rng.integers(0, 9, (50, 50)), 19)
    assert len(chosen) == 19
    assert (np.diff(chosen) > 0).all()


def test_a_clean_matrix_and_an_empty_one_are_drawn() -> None:
    for matrix in (
        np.diag([5] * 30),
        np.zeros((30, 30), dtype=int),
        np.zeros((2, 2), dtype=int),
    ):
        assert png(figure(result_of(matrix), "val")).startswith(b"\x89PNG")


def test_many_classes_without_a_matrix_show_their_pairs() -> None:
    confmat = ConfusionMatrix(5000, full=False)
    confmat.update(torch.tensor([1, 1, 4]), torch.tensor([7, 7, 4]))
    fig = figure(confmat.result())
    (ax,) = fig.axes
    assert [t.get_text() for t in ax.get_yticklabels()] == ["7 → 1"]
    assert png(figure(ConfusionMatrix(5000, full=False).result())).startswith(
        b"\x89PNG"
    )


def test_a_multilabel_result_has_a_row_a_label() -> None:
    confmat = ConfusionMatrix(3, "multilabel")
    confmat.update(
        torch.tensor([[1, 0, 1], [0, 0, 1]]), torch.tensor([[1, 1, 1], [0, 0, 1]])
    )
    fig = figure(confmat.result(["cat", "dog", "fox"]))
    (ax,) = fig.axes
    assert [t.get_text() for t in ax.get_yticklabels()] == [
        "cat  1",
        "dog  1",
        "fox  2",
    ]
    assert len(ax.texts) == 12


def test_names_are_shortened_and_not_read_as_mathtext() -> None:
    fig = figure(
        result_of(np.eye(2, dtype=int), ["$x_", "a name that is far too long to show"])
    )
    (ax,) = fig.axes
    assert [t.get_text() for t in ax.get_xticklabels()] == [
        r"\$x_",
        "a name tha… to show",
    ]
    png(fig)


def test_nothing_of_a_figure_is_left_and_pyplot_never_knew_it() -> None:
    import sys

    fig = figure(result_of(np.eye(3, dtype=int)))
    content = png(fig)
    width, height = struct.unpack(">II", content[16:24])
    assert 200 < width < 1200
    assert 200 < height < 1200
    ref = weakref.ref(fig)
    del fig
    gc.collect()
    assert ref() is None
    if "matplotlib.pyplot" in sys.modules:
        assert sys.modules["matplotlib.pyplot"].get_fignums() == []
