"""A trained model is loaded and evaluated, with torchmetrics; nothing trains."""

import io

import torch
from sklearn.datasets import load_iris
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

torch.manual_seed(0)
x, y = load_iris(return_X_y=True)
loader = DataLoader(TensorDataset(torch.tensor(x).float(), torch.tensor(y)), 30)


def build():
    return nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2),
                         nn.Linear(16, 3))  # fmt: skip


file = io.BytesIO()
torch.save(build().state_dict(), file)
file.seek(0)
model = build()
model.load_state_dict(torch.load(file, weights_only=True))
model.eval()
accuracy, f1 = MulticlassAccuracy(3, average="micro"), MulticlassF1Score(3)
with torch.no_grad():
    for xb, yb in loader:
        preds = model(xb)
        accuracy.update(preds, yb)
        f1(preds, yb)
print(float(accuracy.compute()), float(f1.compute()))
