"""Faults in loops that slice their sets by hand, each by its name; ``--fixed`` runs without it."""

import copy
import sys

import torch
import torch.nn.functional as F
from sklearn.datasets import load_wine
from torch import nn

NAME = sys.argv[1]
BUG = NAME if "--fixed" not in sys.argv else ""
torch.manual_seed(0)
x, y = load_wine(return_X_y=True)
order = torch.randperm(len(x))
x = torch.tensor((x - x.mean(0)) / x.std(0), dtype=torch.float32)[order]
y = torch.tensor(y)[order]
xt, yt, xv, yv = x[:120], y[:120], x[120:], y[120:]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.enc = nn.Sequential(nn.Linear(13, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Dropout(0.4))
        self.head = nn.Linear(24, 3)

    def forward(self, x):
        return self.head(self.enc(x))


class Learner:
    def __init__(self, net):
        self.net = net
        self.opt = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9)

    def epoch(self, bs=20):
        self.net.train()
        perm = torch.randperm(len(xt))
        for i in range(0, len(xt), bs):
            ix = perm[i : i + bs]
            self.opt.zero_grad(set_to_none=True)
            loss = F.cross_entropy(self.net(xt[ix]), yt[ix])
            loss.backward()
            self.opt.step()

    def evaluate(self):
        raise NotImplementedError


def sliced_evaluation_in_train_mode():
    learner = Learner(Net())
    learner.epoch()
    right = 0
    if not BUG:
        learner.net.eval()
    with torch.no_grad():
        for i in range(0, len(xv), 16):
            out = learner.net(xv[i : i + 16])  # sliced_evaluation_in_train_mode: modes
            right += (out.argmax(1) == yv[i : i + 16]).sum()
    print(right)


def generator_of_predictions():
    learner = Learner(Net())
    learner.epoch()

    @torch.inference_mode()
    def predictions(net, chunks):
        for c in chunks:
            yield net(c)  # generator_of_predictions: modes

    if not BUG:
        learner.net.eval()
    print((torch.cat(list(predictions(learner.net, xv.split(16)))).argmax(1) == yv).float().mean())


def early_stop_never_wakes():
    learner = Learner(Net())
    net = learner.net
    net.train()
    for _ in range(3):
        if not BUG:
            net.train()
        for i in range(0, 120, 20):
            learner.opt.zero_grad()
            F.cross_entropy(net(xt[i : i + 20]), yt[i : i + 20]).backward()
            learner.opt.step()
        net.eval()  # early_stop_never_wakes: modes
        with torch.no_grad():
            v = F.cross_entropy(net(xv), yv)
    print(v)


def lbfgs_with_frozen_mode():
    net = Net()
    if BUG:
        net.eval()  # lbfgs_with_frozen_mode: modes?
    opt = torch.optim.LBFGS(net.parameters(), max_iter=3)

    def closure():
        opt.zero_grad()
        loss = F.cross_entropy(net(xt), yt)
        loss.backward()
        return loss

    for _ in range(2):
        opt.step(closure)


def amp_evaluation_with_a_graph():
    learner = Learner(Net())
    learner.epoch()
    learner.net.eval()
    outs = []
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.set_grad_enabled(bool(BUG)):
        for i in range(0, len(xv), 16):
            out = learner.net(xv[i : i + 16])  # amp_evaluation_with_a_graph: grad
            outs.append(out.float())
    print((torch.cat(outs).argmax(1) == yv).float().mean())


def ema_copy_in_train_mode():
    learner = Learner(Net())
    ema = copy.deepcopy(learner.net).requires_grad_(False)
    for _ in range(2):
        learner.epoch()
        with torch.no_grad():
            for a, b in zip(ema.parameters(), learner.net.parameters(), strict=True):
                a.lerp_(b, 0.5)
    if not BUG:
        ema.eval()
    with torch.no_grad():
        s = sum(
            (ema(a).argmax(1) == b).sum()  # ema_copy_in_train_mode: modes
            for a, b in zip(xv.split(20), yv.split(20), strict=True)
        )
    print(s)


def mc_noise_in_eval():
    class Noisy(Net):
        def forward(self, x):
            h = self.enc(x)
            if self.training or BUG:
                h = h + 0.1 * torch.randn(h.shape)  # mc_noise_in_eval: stochastic?
            return self.head(h)

    learner = Learner(Noisy())
    learner.epoch()
    learner.net.eval()
    with torch.no_grad():
        for a, b in zip(xv.split(20), yv.split(20), strict=True):
            print((learner.net(a).argmax(1) == b).float().mean())


def running_norm_by_hand():
    class Own(Net):
        def __init__(self):
            super().__init__()
            self.register_buffer("m", torch.zeros(24))

        def forward(self, x):
            h = self.enc(x)
            if self.training or BUG:
                self.m = 0.9 * self.m + 0.1 * h.detach().mean(0)  # running_norm_by_hand: state
            return self.head(h - self.m)

    learner = Learner(Own())
    learner.epoch()
    learner.net.eval()
    with torch.no_grad():
        print(
            sum(
                (learner.net(a).argmax(1) == b).sum()
                for a, b in zip(xv.split(20), yv.split(20), strict=True)
            )
        )


def batch_standardised():
    class Std(Net):
        def forward(self, x):
            if BUG and not self.training:
                x = x - x.mean(0)  # batch_standardised: batch?
            return super().forward(x)

    learner = Learner(Std())
    learner.epoch()
    learner.net.eval()
    with torch.no_grad():
        print(
            sum(
                (learner.net(a).argmax(1) == b).sum()
                for a, b in zip(xv.split(20), yv.split(20), strict=True)
            )
        )


def two_nets_one_asleep():
    a, b = Net(), Net()
    la, lb = Learner(a), Learner(b)
    la.epoch()
    lb.epoch()
    a.eval()
    if not BUG:
        b.eval()
    with torch.no_grad():
        mean = [
            a(c).softmax(1) + b(c).softmax(1)  # two_nets_one_asleep: modes
            for c in xv.split(20)
        ]
    print((torch.cat(mean).argmax(1) == yv).float().mean())


def functional_call_with_params():
    learner = Learner(Net())
    learner.epoch()
    if not BUG:
        learner.net.eval()
    params = {**dict(learner.net.named_parameters()), **dict(learner.net.named_buffers())}
    with torch.no_grad():
        for c, t in zip(xv.split(20), yv.split(20), strict=True):
            call = torch.func.functional_call
            out = call(learner.net, params, (c,))  # functional_call_with_params: modes
            print(F.cross_entropy(out, t))


def trains_after_a_metric_pass():
    learner = Learner(Net())
    for _ in range(2):
        for i in range(0, 120, 40):
            learner.opt.zero_grad()
            F.cross_entropy(learner.net(xt[i : i + 40]), yt[i : i + 40]).backward()
            learner.opt.step()
            learner.net.eval()  # trains_after_a_metric_pass: modes
            with torch.no_grad():
                acc = (learner.net(xv).argmax(1) == yv).float().mean()
            if not BUG:
                learner.net.train()
    print(acc)


globals()[NAME]()
