"""Keep what is ours out of Dynamo's sight."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def skip_dynamo(function: F) -> F:
    """Keep Dynamo from compiling `function` and what it calls where it runs after a graph break."""
    from torch._C._dynamo import eval_frame as frames

    actions = vars(frames).get("_FrameAction")
    if actions is None:  # torch < 2.6 knows one way to skip
        skip_code = vars(frames).get("skip_code")
        if skip_code is not None:
            skip_code(function.__code__)
        return function
    skip = actions.SKIP
    frames.set_code_exec_strategy(
        function.__code__, frames._FrameExecStrategy(skip, skip)
    )
    return function
