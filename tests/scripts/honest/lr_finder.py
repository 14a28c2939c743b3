"""A warm-up of lazy layers, a debugging forward, a range test whose weights are put back."""

import copy

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images).float() / 16, torch.tensor(labels)
loader = DataLoader(TensorDataset(x[:1400], y[:1400]), 100, shuffle=True)
test_loader = DataLoader(TensorDataset(x[1400:], y[1400:]), 100)
model = nn.Sequential(nn.LazyLinear(64), nn.LazyBatchNorm1d(), nn.ReLU(), nn.Dropout(0.2),
                      nn.LazyLinear(10))  # fmt: skip
model(torch.zeros(2, 64))
xb, yb = next(iter(loader))
with torch.no_grad():
    print("initial loss", nn.functional.cross_entropy(model(xb), yb).item())
criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.SGD(model.parameters(), 1e-4, momentum=0.9)


def range_test():
    state, losses = copy.deepcopy((model.state_dict(), optimizer.state_dict())), []
    it = iter(loader)
    for step in range(10):
        xb, yb = next(it)
        optimizer.param_groups[0]["lr"] = 1e-4 * 2**step
        optimizer.zero_grad()
        loss = criterion(model(xb), yb)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    model.load_state_dict(state[0])
    optimizer.load_state_dict(state[1])
    return float(torch.stack(losses).min())


print("best loss", range_test())
for epoch in range(2):
    for i, (xb, yb) in enumerate(loader):
        optimizer.zero_grad()
        out = model(xb)
        criterion(out, yb).backward()
        optimizer.step()
        if i == 0:
            with torch.no_grad():
                print("a look at one sample", model(xb[:2])[0, :3].tolist())
    model.eval()
    with torch.inference_mode():
        hits = sum((model(xb).argmax(1) == yb).sum() for xb, yb in test_loader)
    model.train()
    print(int(hits))
