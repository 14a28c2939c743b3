"""The guard around `transformers.Trainer`: importing this imports transformers."""

from lightning_evalguard.huggingface.callback import EvalGuardCallback

__all__ = ["EvalGuardCallback"]
