"""Forwards without gradients that are a part of training, in models with dropout and batch norm."""

import copy

import torch
import torch.nn as nn
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
X, Y = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
loader = DataLoader(TensorDataset(X[:200], Y[:200]), 40, shuffle=True)


def network(outputs=10):
    return nn.Sequential(
        nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, outputs)
    )


def pseudo_labels():
    """FixMatch: the labels of unlabelled samples are the model's own, in train mode."""
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    net.train()
    for x, y in loader:
        unlabelled = X[300:340]
        with torch.no_grad():
            confidence, guess = net(unlabelled).softmax(1).max(1)
        mask = (confidence > 0.2).float()
        strong = net(unlabelled + 0.1 * torch.randn_like(unlabelled))
        loss = F.cross_entropy(net(x), y)
        loss = loss + (F.cross_entropy(strong, guess, reduction="none") * mask).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def mean_teacher_without_a_loader():
    student, teacher = network(), network()
    teacher.load_state_dict(student.state_dict())
    optimizer = torch.optim.SGD(student.parameters(), 0.1)
    for step in range(6):
        x, y = X[step * 20 : step * 20 + 20], Y[step * 20 : step * 20 + 20]
        out = student(x)
        with torch.no_grad():
            target = teacher(x + 0.05 * torch.randn_like(x)).softmax(1)
        consistency = ((out.softmax(1) - target) ** 2).mean()
        loss = F.cross_entropy(out, y) + consistency
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for t, s in zip(teacher.parameters(), student.parameters()):
                t.mul_(0.9).add_(s, alpha=0.1)


def queue_of_keys():
    """MoCo: keys come from a momentum encoder in train mode."""
    query, key = network(16), network(16)
    key.load_state_dict(query.state_dict())
    for p in key.parameters():
        p.requires_grad = False
    queue = F.normalize(torch.randn(16, 64), dim=0)
    optimizer = torch.optim.SGD(query.parameters(), 0.1)
    for x, _ in loader:
        q = F.normalize(query(x + 0.1 * torch.randn_like(x)), dim=1)
        with torch.no_grad():
            for a, b in zip(query.parameters(), key.parameters()):
                b.data = b.data * 0.99 + a.data * 0.01
            k = F.normalize(key(x + 0.1 * torch.randn_like(x)), dim=1)
        positive = (q * k).sum(1, keepdim=True)
        logits = torch.cat([positive, q @ queue], dim=1) / 0.1
        loss = F.cross_entropy(logits, torch.zeros(len(x), dtype=torch.long))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        queue = torch.cat([queue[:, len(x) :], k.t()], dim=1)


def advantages():
    """PPO: values and old log-probabilities of a rollout, before the epochs on it."""
    actor, critic = network(4), network(1)
    optimizer = torch.optim.Adam([*actor.parameters(), *critic.parameters()], 1e-3)
    for _ in range(3):
        states = torch.randn(32, 64)
        with torch.no_grad():
            policy = actor(states).log_softmax(1)
            actions = policy.exp().multinomial(1)
            old = policy.gather(1, actions)
            values = critic(states).squeeze(1)
        returns = torch.randn(32).cumsum(0)
        advantage = returns - values
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        for _ in range(2):
            new = actor(states).log_softmax(1).gather(1, actions)
            ratio = (new - old).exp().squeeze(1)
            gain = torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()
            loss = F.mse_loss(critic(states).squeeze(1), returns) - gain
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def q_targets():
    net, target = network(4), network(4)
    target.load_state_dict(net.state_dict())
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    for step in range(8):
        state, following, reward = torch.randn(16, 64), torch.randn(16, 64), torch.randn(16)
        action = torch.randint(0, 4, (16, 1))
        value = net(state).gather(1, action).squeeze(1)
        with torch.no_grad():
            best = target(following).max(1)[0]
        error = reward + 0.9 * best - value
        loss = (error**2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 4 == 3:
            target.load_state_dict(net.state_dict())


def looks_while_it_trains():
    """Shapes, a peek at the batch's own accuracy, the loss before and after a step."""
    net = network()
    print(net(X[:4]).shape)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for i, (x, y) in enumerate(loader):
        out = net(x)
        loss = F.cross_entropy(out, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if i % 2 == 0:
            with torch.no_grad():
                after = F.cross_entropy(net(x), y)
                print(loss.detach() - after, (out.argmax(1) == y).float().mean())


def features_for_clusters():
    """DeepCluster: the features of the set become its labels."""
    net = network(8)
    head = nn.Linear(8, 3)
    optimizer = torch.optim.SGD([*net.parameters(), *head.parameters()], 0.05)
    centers = torch.randn(3, 8)
    for _ in range(4):
        with torch.no_grad():
            features = net(X[:120])
        assigned = torch.cdist(features, centers).argmin(1)
        loss = F.cross_entropy(head(net(X[:120])), assigned)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        members = F.one_hot(assigned, 3).float()
        centers = members.t() @ features / (members.sum(0)[:, None] + 1e-6)


def samples_of_a_generator():
    generator, critic = network(64), network(1)
    fixed = torch.randn(16, 64)
    g, c = (torch.optim.Adam(m.parameters(), 1e-3) for m in (generator, critic))
    for i, (x, _) in enumerate(loader):
        z = torch.randn(len(x), 64)
        with torch.no_grad():
            fake = generator(z)
        c.zero_grad()
        (critic(fake).mean() - critic(x).mean()).backward()
        c.step()
        g.zero_grad()
        (-critic(generator(z)).mean()).backward()
        g.step()
        if i == 2:
            with torch.no_grad():
                picture = generator(fixed).view(16, 8, 8)
                print((picture - picture.mean()).abs().max().shape)


def fast_weights():
    """MAML: adapts a copy on the support set and trains on the query set's loss."""
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    for task in range(3):
        support, query = slice(task * 40, task * 40 + 20), slice(task * 40 + 20, task * 40 + 40)
        learner = copy.deepcopy(net)
        inner = torch.optim.SGD(learner.parameters(), 0.1)
        for _ in range(2):
            inner.zero_grad()
            F.cross_entropy(learner(X[support]), Y[support]).backward()
            inner.step()
        optimizer.zero_grad()
        loss = F.cross_entropy(learner(X[query]), Y[query])
        for p, g in zip(net.parameters(), torch.autograd.grad(loss, list(learner.parameters()))):
            p.grad = g
        optimizer.step()


def hard_examples():
    """Online mining: a forward without gradients picks what the step trains on."""
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for x, y in loader:
        with torch.no_grad():
            losses = F.cross_entropy(net(x), y, reduction="none")
        hard = losses.topk(20).indices
        optimizer.zero_grad()
        F.cross_entropy(net(x[hard]), y[hard]).backward()
        optimizer.step()


for act in (
    pseudo_labels, mean_teacher_without_a_loader, queue_of_keys, advantages, q_targets,
    looks_while_it_trains, features_for_clusters, samples_of_a_generator, fast_weights,
    hard_examples,
):
    act()
