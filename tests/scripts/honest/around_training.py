"""What honest scripts do before and after training, with the modes and gradients that it needs."""

import torch
import torch.nn as nn
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
X, Y = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
train = DataLoader(TensorDataset(X[:300], Y[:300]), 50, shuffle=True)
test = DataLoader(TensorDataset(X[1500:1620], Y[1500:1620]), 40)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU())
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        return self.head(self.drop(self.backbone(x)))


def fitted(net, epochs=2):
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(epochs):
        net.train()
        for x, y in train:
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()
        net.eval()
        with torch.inference_mode():
            print(torch.stack([(net(x).argmax(1) == y).float().mean() for x, y in test]).mean())
    return net


def first_looks(net):
    """A first batch, the expected loss of chance, and one batch that is learned by heart."""
    x, y = next(iter(train))
    print(net(x).shape, F.cross_entropy(net(x), y).detach())
    optimizer = torch.optim.Adam(net.parameters())
    for _ in range(3):
        loss = F.cross_entropy(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(loss.detach())


def linear_probe(net):
    net.eval()
    with torch.no_grad():
        features = torch.cat([net.backbone(x) for x, _ in test])
    probe = LogisticRegression(max_iter=50).fit(features.numpy(), Y[1500:1620].numpy())
    print(probe.score(features.numpy(), Y[1500:1620].numpy()))


def saliency(net):
    net.eval()
    x = X[1500:1510].clone().requires_grad_()
    out = net(x)
    out.gather(1, out.argmax(1, keepdim=True)).sum().backward()
    print(x.grad.abs().mean())


def attacked(net):
    """FGSM: gradients of the input in an evaluation are what it is about."""
    net.eval()
    hits = 0
    for x, y in test:
        x.requires_grad_()
        loss = F.cross_entropy(net(x), y)
        (gradient,) = torch.autograd.grad(loss, x)
        with torch.no_grad():
            hits += (net(x + 0.1 * gradient.sign()).argmax(1) == y).sum()
    print(hits)


def statistics_for_the_new_weights(net):
    """Batch norms are calibrated on training samples, in train mode on purpose."""
    for p in net.parameters():
        p.data.mul_(0.99)
    net.train()
    with torch.no_grad():
        for x, _ in train:
            net(x)
    net.eval()


def monte_carlo_dropout(net, times=4):
    net.eval()
    with torch.no_grad():
        net.drop.train()
        spread = torch.stack([net(X[1500:1540]).softmax(1) for _ in range(times)]).std(0)
        net.drop.eval()
    print(spread.mean())


def fine_tuned(net):
    """The backbone is frozen and stays in eval mode; the head trains."""
    for p in net.backbone.parameters():
        p.requires_grad = False
    optimizer = torch.optim.SGD(net.head.parameters(), 0.05)
    for _ in range(2):
        net.train()
        net.backbone.eval()
        for x, y in train:
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()
        net.eval()
        with torch.no_grad():
            for x, y in test:
                F.cross_entropy(net(x), y)


def exported(net):
    net.eval()
    with torch.no_grad():
        traced = torch.jit.trace(net, X[:2])
        assert torch.equal(traced(X[:2]), net(X[:2]))


def swept(net):
    """A direction in the space of weights, as loss landscapes are drawn."""
    net.eval()
    weights = [p.detach().clone() for p in net.parameters()]
    with torch.no_grad():
        for step in (-0.1, 0.0, 0.1):
            for p, w in zip(net.parameters(), weights):
                p.copy_(w * (1 + step))
            print(step, sum(F.cross_entropy(net(x), y) for x, y in test))
        for p, w in zip(net.parameters(), weights):
            p.copy_(w)


first_looks(Net())
model = fitted(Net())
linear_probe(model)
saliency(model)
attacked(model)
statistics_for_the_new_weights(model)
monte_carlo_dropout(model)
exported(model)
swept(model)
fine_tuned(model)
