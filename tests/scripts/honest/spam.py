"""200 messages, 40 of them spam: 30 are caught, 10 slip through, 6 honest ones are filtered out."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

target = torch.tensor([1] * 40 + [0] * 160)
caught = torch.tensor([1.0] * 30 + [-1.0] * 10 + [1.0] * 6 + [-1.0] * 154)
loader = DataLoader(TensorDataset(caught[:, None], target), batch_size=32)
model = nn.Linear(1, 1)
with torch.no_grad():
    model.weight.fill_(2.0)
    model.bias.fill_(0.1)


def evaluate():
    model.eval()
    correct = torch.zeros((), dtype=torch.long)
    with torch.no_grad():
        for x, y in loader:
            preds = (torch.sigmoid(model(x)).squeeze(1) > 0.5).long()
            correct += (preds == y).sum()
    return int(correct) / len(target)


print(f"accuracy {evaluate():.2f}")
