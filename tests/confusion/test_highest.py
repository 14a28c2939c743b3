"""The highest score among few and many classes, in every layout: NumPy's argmax, and NaN apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_evalguard.confusion.highest import highest

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def scores(*shape: int, seed: int = 0) -> Tensor:
    """Of few values, so that many are equal; some rows of one value, infinite, or with NaN."""
    g = torch.Generator().manual_seed(seed)
    made = torch.randint(-8, 8, shape, generator=g).float() / 4
    made[::7] = 0.5
    made[1::11, -1] = torch.inf
    made[2::13] = -torch.inf
    made[3::17, shape[1] // 2] = torch.nan
    made[4::19] = torch.nan
    return made


def expected(given: Tensor) -> list[int]:
    plain = given.double().numpy()
    return np.where(np.isnan(plain).any(1), given.shape[1], plain.argmax(1)).tolist()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("n", [1, 63, 64, 700, 2_000, 9_000])
def test_of_rows(n: int, dtype: torch.dtype) -> None:
    for classes in (
        1,
        2,
        3,
        10,
        33,
        63,
        64,
        65,
        100,
        127,
        128,
        191,
        255,
        256,
        300,
        1_000,
        4_200,
    ):
        if n * classes > 2**22:
            continue
        given = scores(n, classes).to(dtype)
        assert highest(given).tolist() == expected(given), classes
        assert highest(given).dtype == torch.int64


@pytest.mark.parametrize("classes", [2, 5, 100, 300])
def test_of_rows_that_lie_apart(classes: int) -> None:
    wide = scores(3_000, 2 * classes)
    for given in (
        wide[:, :classes], wide[::2, :classes], wide[:, ::2], wide.t().contiguous().t()[:, 1:],
        wide[:1, :classes].expand(3_000, classes),
    ):  # fmt: skip
        assert highest(given).tolist() == expected(given)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    "shape", [(4, 5, 64, 64), (2, 2, 200, 200), (3, 21, 40, 40), (64, 10, 50), (2, 300, 100),
              (900, 30, 3), (40, 7, 2, 50, 1), (0, 5, 8)],
)  # fmt: skip
def test_of_pixels_and_tokens(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    given = scores(*shape).to(dtype)
    last = given.movedim(1, -1).contiguous().movedim(-1, 1)
    assert highest(given).tolist() == highest(last).tolist() == expected(given)


def test_of_integers() -> None:
    given = torch.randint(5, (3_000, 4))
    assert highest(given).tolist() == expected(given)
