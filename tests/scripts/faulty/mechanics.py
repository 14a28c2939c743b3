"""Faults among what real scripts do besides; ``--fixed`` runs the same without the fault.

A line that is to be found ends with ``# NAME: check``; one that warns with ``# NAME: check?``.
"""

import argparse
import contextlib
import copy
import io

import torch
import torch.nn as nn
import torch.nn.functional as F
from sklearn.datasets import load_digits, load_iris
from sklearn.model_selection import KFold
from torch.optim.swa_utils import AveragedModel, update_bn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

parser = argparse.ArgumentParser()
parser.add_argument("name")
parser.add_argument("--fixed", action="store_true")
args = parser.parse_args()
BUG = not args.fixed
torch.manual_seed(1)
images, labels = load_digits(return_X_y=True)
digits = TensorDataset(torch.tensor(images, dtype=torch.float32)[:, None] / 16, torch.tensor(labels))
train_set, test_set = Subset(digits, range(300)), Subset(digits, range(1500, 1620))
train_loader = DataLoader(train_set, batch_size=50, shuffle=True)
test_loader = DataLoader(test_set, batch_size=40)


class Digits(nn.Module):
    def __init__(self, p=0.4):
        super().__init__()
        self.features = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(inplace=True)
        )
        self.dropout = nn.Dropout(p)
        self.classifier = nn.Linear(32, 10)

    def forward(self, x):
        return self.classifier(self.dropout(self.features(x)))


def train_one_epoch(model, optimizer, loader=train_loader):
    model.train()
    for x, y in loader:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


def amp():
    model = Digits()
    optimizer = torch.optim.Adam(model.parameters())
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    for _ in range(2):
        if not BUG:
            model.train()
        for x, y in train_loader:
            with torch.autocast("cpu", torch.bfloat16):
                loss = F.cross_entropy(model(x), y)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
        model.eval()  # amp: modes
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            right = sum((model(x).argmax(1) == y).sum() for x, y in test_loader)
    print(right)


def accumulated():
    model = Digits()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model.train()
    for i, (x, y) in enumerate(train_loader):
        loss = F.cross_entropy(model(x), y) / 2
        loss.backward()
        if i % 2 == 1:
            optimizer.step()
            optimizer.zero_grad()
            model.train(BUG)
            with torch.no_grad():
                for xv, yv in test_loader:
                    loss = F.cross_entropy(model(xv), yv)  # accumulated: modes
            model.train()
    print(loss)


def lbfgs():
    x, y = load_iris(return_X_y=True)
    x, y = torch.tensor(x, dtype=torch.float32), torch.tensor(y)
    net = nn.Sequential(nn.Linear(4, 12), nn.Tanh(), nn.Dropout(0.1), nn.Linear(12, 3))
    optimizer = torch.optim.LBFGS(net.parameters(), max_iter=4)

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x[::2]), y[::2])
        loss.backward()
        return loss

    for _ in range(3):
        net.train()
        optimizer.step(closure)
        net.train(BUG)
        with torch.no_grad():
            held_out = F.cross_entropy(net(x[1::3]), y[1::3])  # lbfgs: modes
    print(held_out)


def compiled():
    model = Digits()
    fast = torch.compile(model, backend="eager")
    optimizer = torch.optim.Adam(model.parameters())
    train_one_epoch(fast, optimizer)
    if not BUG:
        fast.eval()
    right = torch.zeros(())
    with torch.no_grad():
        for x, y in test_loader:
            right += (fast(x).argmax(1) == y).sum()  # compiled: modes
    print(right)


def parallel():
    model = nn.DataParallel(Digits())
    optimizer = torch.optim.Adam(model.parameters())
    train_one_epoch(model, optimizer)
    model.eval()
    if BUG:
        model.module.dropout.train()  # parallel: modes
    with torch.no_grad():
        print(sum((model(x).argmax(1) == y).sum() for x, y in test_loader))


def traced():
    model = Digits()
    train_one_epoch(model, torch.optim.Adam(model.parameters()))
    if not BUG:
        model.eval()
    example = next(iter(test_loader))[0]
    with torch.no_grad():
        script = torch.jit.trace(model, example, check_trace=False)
        total = 0
        for x, y in test_loader:
            total += (model(x).argmax(1) == y).sum()  # traced: modes
    print(total, type(script).__name__)


def averaged():
    model = Digits()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    swa = AveragedModel(model)
    for _ in range(2):
        train_one_epoch(model, optimizer)
        swa.update_parameters(model)
    update_bn(train_loader, swa)
    swa.train(BUG)
    total = 0.0
    with torch.no_grad():
        for x, y in test_loader:
            total += F.cross_entropy(swa(x), y, reduction="sum")  # averaged: modes
    print(total / len(test_set))


def ema():
    model = Digits()
    shadow = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(2):
        model.train()
        for x, y in train_loader:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            with torch.no_grad():
                for s, p in zip(shadow.state_dict().values(), model.state_dict().values()):
                    s.copy_(p) if not s.is_floating_point() else s.lerp_(p, 0.1)
        shadow.train(BUG)
        correct = 0
        with torch.inference_mode():
            for x, y in test_loader:
                correct += (shadow(x).max(dim=1)[1] == y).sum()  # ema: modes
        print(correct)


def reloaded():
    model = Digits()
    optimizer = torch.optim.Adam(model.parameters())
    buffer = io.BytesIO()
    train_one_epoch(model, optimizer)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, buffer)
    buffer.seek(0)
    state = torch.load(buffer)
    best = Digits()
    best.load_state_dict(state["model"])
    if not BUG:
        best.eval()
    hits = 0
    with torch.no_grad():
        for x, y in test_loader:
            hits += best(x).argmax(1).eq(y).sum()  # reloaded: modes
    print(hits)


def folds():
    x, y = load_iris(return_X_y=True)
    x, y = torch.tensor(x, dtype=torch.float32), torch.tensor(y)
    for train, valid in KFold(3, shuffle=True, random_state=0).split(x):
        net = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
        optimizer = torch.optim.Adam(net.parameters(), 0.05)
        for _ in range(5):
            optimizer.zero_grad()
            F.cross_entropy(net(x[train]), y[train]).backward()
            optimizer.step()
        if not BUG:
            net.eval()
        with torch.no_grad():
            guess = net(x[valid]).argmax(dim=1)  # folds: modes
        print((guess == y[valid]).float().mean())


def range_test():
    model = Digits()
    optimizer = torch.optim.SGD(model.parameters(), 1e-4)
    before = copy.deepcopy(model.state_dict())
    model.train()
    for i, (x, y) in enumerate(train_loader):
        for group in optimizer.param_groups:
            group["lr"] = 1e-4 * 10**i
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    model.load_state_dict(before)
    best = torch.inf
    for _ in range(2):
        train_one_epoch(model, optimizer)
        model.eval()
        with torch.set_grad_enabled(BUG):
            loss = 0
            for x, y in test_loader:
                loss = loss + F.cross_entropy(model(x), y)  # range_test: grad
        best = min(best, float(loss))
    print(best)


class Records(Dataset):
    def __init__(self, first, last):
        self.first, self.last = first, last

    def __len__(self):
        return self.last - self.first

    def __getitem__(self, i):
        return {"pixels": digits[self.first + i][0], "label": digits[self.first + i][1], "id": i}


class Learner:
    """A class of the script's own, with a step for each kind of batch."""

    def __init__(self, model):
        self.model = model
        self.optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
        self.losses = []

    def step(self, batch):
        logits = self.model(batch["pixels"])  # own_class: modes
        return F.cross_entropy(logits, batch["label"]), logits

    def fit(self, train, valid, epochs=2):
        for _ in range(epochs):
            self.model.train()
            for batch in train:
                loss, _ = self.step(batch)
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
            self.losses.append(self.validate(valid))

    @torch.no_grad()
    def validate(self, loader):
        if not BUG:
            self.model.eval()
        total = 0.0
        for batch in loader:
            loss, _ = self.step(batch)
            total += loss
        return total / len(loader)


def own_class():
    learner = Learner(Digits())
    learner.fit(DataLoader(Records(0, 200), 40), DataLoader(Records(1500, 1600), 25))
    print(learner.losses)


def gan():
    noise, real = torch.randn(64, 8), digits[:64][0].flatten(1)
    generator = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 64))
    critic = nn.Sequential(nn.Linear(64, 32), nn.LeakyReLU(0.2), nn.Dropout(0.3), nn.Linear(32, 1))
    g_opt = torch.optim.Adam(generator.parameters(), 1e-3)
    c_opt = torch.optim.Adam(critic.parameters(), 1e-3)
    judged = DataLoader(TensorDataset(digits[64:128][0].flatten(1)), 16)
    for _ in range(3):
        c_opt.zero_grad()
        fake = generator(noise)
        loss = critic(fake.detach()).mean() - critic(real).mean()
        loss.backward()
        c_opt.step()
        g_opt.zero_grad()
        (-critic(generator(noise)).mean()).backward()
        g_opt.step()
    if not BUG:
        critic.eval()
    with torch.no_grad():
        scores = [critic(x) for (x,) in judged]  # gan: modes
    print(torch.cat(scores).mean())


def distilled():
    teacher, student = Digits(0.5), Digits(0.0)
    train_one_epoch(teacher, torch.optim.Adam(teacher.parameters()))
    teacher.eval()
    optimizer = torch.optim.Adam(student.parameters())
    for _ in range(2):
        student.train()
        for x, y in train_loader:
            with torch.no_grad():
                soft = teacher(x).softmax(1)
            optimizer.zero_grad()
            out = student(x)
            loss = F.kl_div(out.log_softmax(1), soft, reduction="batchmean")
            (loss + F.cross_entropy(out, y)).backward()
            optimizer.step()
        if not BUG:
            student.eval()
        agree = 0
        with torch.no_grad():
            for x, y in test_loader:
                agree += (student(x).argmax(1) == y).sum()  # distilled: modes
        print(agree)


def voted():
    members = [Digits() for _ in range(3)]
    for member in members:
        train_one_epoch(member, torch.optim.Adam(member.parameters()))
    for member in members[BUG:]:
        member.eval()
    hits = 0
    with torch.no_grad():
        for x, y in test_loader:
            votes = torch.stack([m(x).softmax(1) for m in members])  # voted: modes
            hits += (votes.mean(0).argmax(1) == y).sum()
    print(hits)


def stops_early():
    model = Digits()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    best, bad = float("inf"), 0

    def held_out():
        model.eval()  # stops_early: modes
        with torch.no_grad():
            return torch.stack([F.cross_entropy(model(x), y) for x, y in test_loader]).mean()

    model.train()
    for epoch in range(4):
        if not BUG:
            model.train()
        for x, y in train_loader:
            optimizer.zero_grad(), F.cross_entropy(model(x), y).backward(), optimizer.step()
        loss = held_out()
        if loss < best:
            best, bad = loss, 0
        elif (bad := bad + 1) == 2:
            break
    print(best)


def interrupted():
    model = Digits()
    optimizer = torch.optim.Adam(model.parameters())
    for _ in range(2):
        for x, y in train_loader:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        model.eval()  # interrupted: modes
        with contextlib.suppress(StopIteration), torch.no_grad():
            batches = iter(test_loader)
            while True:
                x, y = next(batches)
                hits = (model(x).argmax(1) == y).sum()
        if not BUG:
            model.train()
    print(hits)


def epochs_by_steps():
    model = Digits()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    batches, step = iter(train_loader), 0
    model.train()
    while step < 10:
        try:
            x, y = next(batches)
        except StopIteration:
            batches = iter(train_loader)
            continue
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        step += 1
        if step % 5 == 0:
            if not BUG:
                model.eval()
            with torch.no_grad():
                print(sum(F.cross_entropy(model(x), y) for x, y in test_loader))  # epochs_by_steps: modes
            model.train()


def phases():
    model = Digits()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    loaders = {"train": train_loader, "val": test_loader}
    for _ in range(2):
        for phase in ["train", "val"]:
            if phase == "train":
                model.train()
            elif not BUG:
                model.eval()
            running = 0
            for inputs, targets in loaders[phase]:
                optimizer.zero_grad()
                with torch.set_grad_enabled(phase == "train"):
                    outputs = model(inputs)  # phases: modes
                    loss = F.cross_entropy(outputs, targets)
                    if phase == "train":
                        loss.backward()
                        optimizer.step()
                running += torch.sum(outputs.max(1)[1] == targets)
            print(phase, running)


def autoencoder():
    net = nn.Sequential(nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 64))
    optimizer = torch.optim.Adam(net.parameters())
    for x, _ in train_loader:
        x = x.flatten(1)
        optimizer.zero_grad()
        ((net(x) - x) ** 2).mean().backward()
        optimizer.step()
    if not BUG:
        net.eval()
    errors = []
    with torch.no_grad():
        for x, _ in test_loader:
            x = x.flatten(1)
            errors.append(((net(x) - x) ** 2).mean(1))  # autoencoder: modes
    print(torch.cat(errors).mean())


def language():
    text = torch.randint(0, 20, (600,), generator=torch.Generator().manual_seed(0))

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(20, 16)
            self.rnn = nn.LSTM(16, 16, num_layers=2, dropout=0.2)
            self.out = nn.Linear(16, 20)

        def forward(self, tokens, state=None):
            hidden, state = self.rnn(self.embed(tokens), state)
            return self.out(hidden), state

    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), 0.5)

    def batches(data, size=10):
        data = data.view(4, -1).t()
        for i in range(0, len(data) - 1, size):
            yield data[i : i + size], data[i + 1 : i + 1 + size]

    for _ in range(2):
        model.train()
        state = None
        for x, y in batches(text[:400]):
            state = None if state is None else tuple(s.detach() for s in state)
            out, state = model(x[: len(y)], state)
            optimizer.zero_grad()
            F.cross_entropy(out.flatten(0, 1), y.flatten()).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.25)
            optimizer.step()
        if not BUG:
            model.eval()
        total, state = 0.0, None
        with torch.no_grad():
            for x, y in batches(text[400:]):
                out, state = model(x[: len(y)], state)  # language: modes
                total += F.cross_entropy(out.flatten(0, 1), y.flatten())
        print(total)


def calibrated():
    model = Digits()
    train_one_epoch(model, torch.optim.Adam(model.parameters()))
    model.eval()
    logits, targets = [], []
    with torch.set_grad_enabled(BUG):
        for x, y in test_loader:
            logits.append(model(x))  # calibrated: grad
            targets.append(y)
    temperature = torch.ones(1, requires_grad=True)
    optimizer = torch.optim.LBFGS([temperature], max_iter=5)
    logits, targets = torch.cat(logits).detach(), torch.cat(targets)

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(logits / temperature, targets)
        loss.backward()
        return loss

    optimizer.step(closure)
    print(temperature.detach())


class Scoring(nn.Module):
    """Computes its own loss, as language models do."""

    def __init__(self):
        super().__init__()
        self.body = Digits()

    def forward(self, x, targets=None):
        logits = self.body(x)
        return logits, None if targets is None else F.cross_entropy(logits, targets)


def own_loss():
    model = Scoring()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)

    def batch(first, last):
        rows = torch.randint(first, last, (16,))
        return digits[rows]

    def estimate():
        model.eval()
        losses = torch.zeros(4)
        with torch.set_grad_enabled(BUG):
            for k in range(4):
                x, y = batch(1500, 1700)
                _, loss = model(x, y)  # own_loss: grad
                losses[k] = loss.detach()
        model.train()
        return losses.mean()

    for step in range(9):
        if step % 4 == 0:
            print(step, estimate())
        x, y = batch(0, 300)
        _, loss = model(x, y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()


def looks_first():
    """Scores before the first step, and the whole set at once."""
    model = Digits()
    optimizer = torch.optim.Adam(model.parameters())
    x, y = digits[300:400]
    for _ in range(3):
        model.train(BUG)
        with torch.no_grad():
            out = model(x)  # looks_first: modes
        print((out.argmax(1) == y).float().mean())
        train_one_epoch(model, optimizer)


globals()[args.name]()
