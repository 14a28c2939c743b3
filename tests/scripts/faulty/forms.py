"""Faults of five kinds in other forms, each by its name; ``--fixed`` runs the same without it.

A line that is to be found ends with ``# NAME: check``; one that warns with ``# NAME: check?``.
"""

import sys

import torch
import torch.nn.functional as F
from sklearn.datasets import load_wine
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

NAME = sys.argv[1]
BUG = NAME if "--fixed" not in sys.argv else ""
torch.manual_seed(0)
x, y = load_wine(return_X_y=True)
order = torch.randperm(len(x))
x = torch.tensor((x - x.mean(0)) / x.std(0), dtype=torch.float32)[order]
y = torch.tensor(y)[order]
train_loader = DataLoader(TensorDataset(x[:120], y[:120]), 20, shuffle=True)
val_loader = DataLoader(TensorDataset(x[120:], y[120:]), 12)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(13, 24), nn.BatchNorm1d(24), nn.ReLU())
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(24, 3)
        self.seen = 0
        self.loose = [nn.Dropout(0.5)]
        self.register_buffer("center", torch.zeros(24))

    def forward(self, x):
        h = self.drop(self.body(x))
        if BUG == "functional_dropout":
            h = F.dropout(h, 0.3)  # functional_dropout: stochastic
        if BUG == "unregistered":
            h = self.loose[0](h)  # unregistered: stochastic
        if BUG == "buffer_moves":
            self.center.mul_(0.9).add_(h.detach().mean(0), alpha=0.1)  # buffer_moves: state
        if BUG == "attention":
            q = h.view(-1, 1, 4, 6)
            h = F.scaled_dot_product_attention(q, q, q, dropout_p=0.1)  # attention: stochastic
            h = h.reshape(-1, 24)
        if BUG == "data_write":
            self.center.data[0] += 1  # data_write: state
        return self.head(h)


model = Net()
optimizer = torch.optim.Adam(model.parameters(), 1e-2)
criterion = nn.CrossEntropyLoss()


def fit(net=model, opt=optimizer, mode=True):
    if mode:
        net.train()
    for xb, yb in train_loader:
        opt.zero_grad()
        criterion(net(xb), yb).backward()
        opt.step()


def score(net=model):
    if net.training:
        net.eval()
    with torch.no_grad():
        return int(sum((net(xb).argmax(1) == yb).sum() for xb, yb in val_loader))


def neither():
    fit()
    if not BUG:
        model.eval()
    with torch.set_grad_enabled(bool(BUG)):
        total, hits = 0, 0
        for xb, yb in val_loader:
            out = model(xb)  # neither: modes grad
            total += criterion(out, yb).detach()
            hits += (out.argmax(1) == yb).sum()
    print(total, hits)


def one_phase_loop():
    for phase in ("train", "val", "train", "val"):
        if phase == "train" or not BUG:
            model.train(phase == "train")
        for xb, yb in train_loader if phase == "train" else val_loader:
            with torch.set_grad_enabled(phase == "train"):
                loss = criterion(model(xb), yb)  # one_phase_loop: modes
            if phase == "train":
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()


def only_a_part():
    fit()
    if BUG:
        model.body.eval()
    else:
        model.eval()
    with torch.inference_mode():
        for xb, yb in val_loader:
            loss = criterion(model(xb), yb)  # only_a_part: modes
    print(loss)


def a_part_is_woken():
    fit()
    model.eval()
    if BUG:
        model.drop.train()  # a_part_is_woken: modes
    with torch.no_grad():
        print(sum(criterion(model(xb), yb) for xb, yb in val_loader))


def whole_set():
    for _ in range(8):
        model.train()
        optimizer.zero_grad()
        criterion(model(x[:120]), y[:120]).backward()
        optimizer.step()
        if not BUG:
            model.eval()
        with torch.no_grad():
            out = model(x[120:])  # whole_set: modes
            loss = criterion(out, y[120:])
    print(loss, (out.argmax(1) == y[120:]).sum())


@torch.no_grad()
def estimate_loss():
    out = {}
    if not BUG:
        model.eval()
    for split, first, last in (("train", 0, 120), ("val", 120, 178)):
        losses = torch.zeros(4)
        for k in range(4):
            ix = torch.randint(first, last, (8,))
            losses[k] = criterion(model(x[ix]), y[ix])  # estimated: modes
        out[split] = losses.mean()
    model.train()
    return out


def estimated():
    for it in range(12):
        if it % 5 == 0:
            print(estimate_loss())
        ix = torch.randint(0, 120, (16,))
        optimizer.zero_grad()
        criterion(model(x[ix]), y[ix]).backward()
        optimizer.step()


def collected():
    fit()
    if not BUG:
        model.eval()
    preds = []
    with torch.no_grad():
        for xb, _ in val_loader:
            preds.append(model(xb).argmax(1))  # collected: modes
    print((torch.cat(preds) == y[120:]).float().mean())


def in_the_training_loop():
    step = 0
    model.train()
    for _ in range(2):
        for xb, yb in train_loader:
            optimizer.zero_grad()
            criterion(model(xb), yb).backward()
            optimizer.step()
            step += 1
            if step % 4 == 0:
                model.train(bool(BUG))
                with torch.no_grad():
                    for xv, yv in val_loader:
                        loss = criterion(model(xv), yv)  # in_the_training_loop: modes
                model.train()
    print(loss)


def returns_early():
    def validate():
        model.eval()  # returns_early: modes
        with torch.no_grad():
            for xb, _ in val_loader:
                out = model(xb)
                if len(out) < 20:
                    if not BUG:
                        model.train()
                    return out
        model.train()
        return None

    for _ in range(2):
        fit(mode=False)
        validate()


def an_exception_passes():
    def validate():
        model.eval()  # an_exception_passes: modes
        try:
            with torch.no_grad():
                for i, (xb, yb) in enumerate(val_loader):
                    criterion(model(xb), yb)
                    if i == 2:
                        raise ValueError("a bad sample")
            model.train()
        finally:
            if not BUG:
                model.train()

    for _ in range(2):
        fit(mode=False)
        try:
            validate()
        except ValueError as error:
            print(error)


def a_part_stays():
    for _ in range(2):
        fit(mode=False)
        model.drop.eval()  # a_part_stays: modes
        model.body.eval()  # a_part_stays: modes
        with torch.no_grad():
            print(sum(criterion(model(xb), yb) for xb, yb in val_loader))
        if not BUG:
            model.train()


def loaded_for_inference():
    net = Net()
    net.load_state_dict(model.state_dict())
    net.eval()  # loaded_for_inference: modes
    with torch.no_grad():
        print(sum(criterion(net(xb), yb) for xb, yb in val_loader))
    if not BUG:
        net.train()
    fit(net, torch.optim.SGD(net.parameters(), 1e-2), mode=False)


def trained_once():
    model.train()
    for _ in range(3):
        fit(mode=not BUG)
        model.eval()  # trained_once: modes
        print(score())


def hoards_outputs():
    fit()
    model.eval()
    kept = []
    with torch.set_grad_enabled(bool(BUG)):
        for xb, _ in val_loader:
            kept.append(model(xb))  # hoards_outputs: grad
    print(torch.cat(kept).argmax(1).bincount())


def hoards_losses():
    fit()
    model.eval()
    total = 0.0
    with torch.set_grad_enabled(bool(BUG)):
        for xb, yb in val_loader:
            total = total + criterion(model(xb), yb)  # hoards_losses: grad
    print(total / len(val_loader))


def model_of_models():
    others = [Net(), Net()]
    for net in others:
        fit(net, torch.optim.Adam(net.parameters(), 1e-2))
    for net in others:
        if net is others[0] or not BUG:
            net.eval()
    hits = 0
    with torch.no_grad():
        for xb, yb in val_loader:
            out = others[0](xb)
            out = out + others[1](xb)  # model_of_models: modes
            hits += (out.argmax(1) == yb).sum()
    print(hits)


def steps_in_evaluation():
    fit()
    model.eval()
    with torch.no_grad():
        for xb, yb in val_loader:
            loss = criterion(model(xb), yb)
            if BUG:
                optimizer.step()  # steps_in_evaluation: state
    print(loss)


def functional_dropout():
    fit()
    print(score())


unregistered = buffer_moves = attention = data_write = functional_dropout


def reads_every_step():
    total = 0.0
    model.train()
    for xb, yb in train_loader:
        optimizer.zero_grad()
        loss = criterion(model(xb), yb)
        loss.backward()
        optimizer.step()
        total += loss.item() if BUG else loss.detach()  # reads_every_step: sync?
    print(total)


def copies_every_step():
    fit()
    model.eval()
    kept = []
    with torch.no_grad():
        for xb, _ in val_loader:
            out = model(xb)
            kept.append(out.cpu().numpy() if BUG else out)  # copies_every_step: sync?
    print(len(kept))


def prints_every_step():
    model.train()
    for xb, yb in train_loader:
        optimizer.zero_grad()
        loss = criterion(model(xb), yb)
        loss.backward()
        optimizer.step()
        if BUG:
            print(f"loss {loss:.3f}")  # prints_every_step: sync?


def mc_dropout():
    def mc_predict(n):
        model.eval()
        if BUG:
            model.drop.train()  # mc_dropout: modes?
        with torch.no_grad():
            spread = 0.0
            for xb, _ in val_loader:
                samples = torch.stack([model(xb) for _ in range(n)])
                spread = spread + samples.softmax(2).std(0).mean()
            return spread

    fit()
    print(mc_predict(3))


def frozen_part_woken():
    for p in model.body.parameters():
        p.requires_grad = False
    model.body.eval()
    for _ in range(2):
        fit(mode=False)
        with torch.no_grad():
            model.eval()
            print(sum(criterion(model(xb), yb) for xb, yb in val_loader))
        model.train()  # frozen_part_woken: modes
        if not BUG:
            model.body.eval()


globals()[NAME]()
