"""Torch's own settings."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from lightning_evalguard.checks.state.change import PUT_BACK, Change
from lightning_evalguard.checks.state.reported import Reported
from lightning_evalguard.instruments.settings import SETTINGS, settings


def setting_changes(
    before: Mapping[str, Any], when: str, reported: Reported
) -> list[Change]:
    """The settings that stand otherwise than `before`."""
    changes = []
    for setting, value in settings().items():
        was = before.get(setting, value)
        if value == was or not reported.is_new(setting):
            continue
        fact = f"went from {was} to {value} {when}"
        change = Change(setting, "", fact, f"{was} as before it", PUT_BACK)
        get, put = SETTINGS[setting]
        change.value = get
        change.rewind = functools.partial(put, was), functools.partial(put, value)
        changes.append(change)
    return changes
