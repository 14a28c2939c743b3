"""A new model and new loaders for each fold; predictions collected, scored by scikit-learn."""

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import accuracy_score, f1_score
from sklearn.model_selection import StratifiedKFold
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

x, y = load_breast_cancer(return_X_y=True)
x = (x - x.mean(0)) / x.std(0)
data = TensorDataset(torch.tensor(x, dtype=torch.float32), torch.tensor(y))


def fit(loader):
    model = nn.Sequential(nn.Linear(30, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 2))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(2):
        model.train()
        for xb, yb in loader:
            optimizer.zero_grad(set_to_none=True)
            nn.functional.cross_entropy(model(xb), yb).backward()
            optimizer.step()
    return model


@torch.inference_mode()
def predict(model, loader):
    model.eval()
    return np.concatenate([model(xb).argmax(1).numpy() for xb, _ in loader])


torch.manual_seed(0)
scores = []
for train, test in StratifiedKFold(3, shuffle=True, random_state=0).split(x, y):
    model = fit(DataLoader(Subset(data, train), 64, shuffle=True))
    predicted = predict(model, DataLoader(Subset(data, test), 64))
    scores.append((accuracy_score(y[test], predicted), f1_score(y[test], predicted)))
print(np.mean(scores, axis=0))
