"""The textbook case: 92 % accuracy, and a quarter of the spam slips through."""

import torch

from lightning_evalguard.confusion.matrix import ConfusionMatrix

# 200 messages, 40 of them spam: 30 are caught, 10 slip through, 6 honest ones are filtered out.
target = torch.tensor([1] * 40 + [0] * 160)
preds = torch.tensor([1] * 30 + [0] * 10 + [1] * 6 + [0] * 154)

confmat = ConfusionMatrix(2, task="binary")
confmat.update(preds, target)
result = confmat.result(["ham", "spam"])
for name in ("accuracy", "precision", "recall", "f1"):
    print(f"{name:9} {result.scores[name]:.4f}")
missed = int(result.support[1] - result.true_positives[1])
print(
    f"A quarter of the spam slipped through: {missed} of {int(result.support[1])} messages."
)
