"""What scikit-learn's classification scores are asked, heard where all of them check arguments."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from lightning_evalguard.instruments.source import owner_of
from lightning_evalguard.instruments.tracebacks import cut


def _asked_by_user(frame: FrameType | None) -> str:
    """The score that was asked for, which may ask another one itself."""
    name = ""
    while frame is not None and owner_of(frame.f_code.co_filename) == "sklearn":
        if frame.f_code.co_name in vars(sys.modules["sklearn.metrics"]):
            name = frame.f_code.co_name
        frame = frame.f_back
    return name


def hear_sklearn(heard: Callable[[Any, Any, str], None]) -> Callable[[], None] | None:
    """Hear what scikit-learn's classification scores are asked.

    Args:
        heard: Is given ``y_true``, ``y_pred`` and the name of the score.

    Returns:
        What ends it; None where scikit-learn is not loaded, or has no such function.
    """
    home = sys.modules.get("sklearn.metrics._classification")
    original = getattr(home, "_check_targets", None)
    if home is None or original is None or hasattr(original, "_evalguard"):
        return None

    @functools.wraps(original)
    def checked(y_true: Any, y_pred: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            result = original(y_true, y_pred, *args, **kwargs)
        except BaseException as error:
            cut(error)
            raise
        heard(y_true, y_pred, _asked_by_user(sys._getframe(1)))
        return result

    checked._evalguard = True  # type: ignore[attr-defined]
    vars(home)["_check_targets"] = checked

    def stop() -> None:
        if vars(home).get("_check_targets") is checked:
            vars(home)["_check_targets"] = original

    return stop
