"""Several models, one loader: their mean is scored, and each is made in a loop of its own."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_iris
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
x, y = load_iris(return_X_y=True)
order = torch.randperm(150)
x, y = torch.tensor(x).float()[order], torch.tensor(y)[order]
train, test = TensorDataset(x[:100], y[:100]), TensorDataset(x[100:], y[100:])
models = nn.ModuleList(
    nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3)) for _ in range(3)
)
for model in models:
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for epoch in range(3):
        for xb, yb in DataLoader(train, 20, shuffle=True):
            optimizer.zero_grad()
            F.cross_entropy(model(xb), yb).backward()
            optimizer.step()
models.eval()
correct = 0
with torch.inference_mode():
    for xb, yb in DataLoader(test, 10):
        probs = torch.stack([model(xb).softmax(1) for model in models]).mean(0)
        correct += (probs.argmax(1) == yb).sum()
print(int(correct))
