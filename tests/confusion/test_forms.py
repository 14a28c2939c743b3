"""Steps in many forms, each counted as its truth says, or reported, or left alone."""

from __future__ import annotations

import pytest

from models import (
    forms_arrays,
    forms_by_hand,
    forms_contrastive,
    forms_counted,
    forms_cut,
    forms_field,
    forms_kept,
    forms_losses,
    forms_metrics,
    forms_mixed,
    forms_nothing,
    forms_parts,
    forms_returned,
    forms_smoothed,
)
from models.forms import FORMS, problems

MODULES = (
    forms_arrays,
    forms_by_hand,
    forms_contrastive,
    forms_counted,
    forms_cut,
    forms_field,
    forms_kept,
    forms_losses,
    forms_metrics,
    forms_mixed,
    forms_nothing,
    forms_parts,
    forms_returned,
    forms_smoothed,
)


@pytest.mark.parametrize("name", FORMS)
def test_a_form_of_a_step_is_counted_right_or_reported(name: str) -> None:
    assert problems(FORMS[name]) == []


def test_a_wrong_truth_is_a_problem() -> None:
    form = FORMS["smoothed_cross_entropy"]

    def turned(self, x, y):
        self.true((self.net(x).argmax(1) + 1) % 3, y)
        self.log("val_loss", self.criterion(self.net(x), y))

    assert "expected" in problems(type(form)(turned, build=form.build))[0]
