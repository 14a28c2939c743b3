"""Actions chosen without gradients, a target network in eval mode, updates from a memory."""

import random

import torch
from torch import nn

torch.manual_seed(0)
random.seed(0)


def network():
    return nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 2))


policy_net, target_net = network(), network()
target_net.load_state_dict(policy_net.state_dict())
target_net.eval()
optimizer = torch.optim.AdamW(policy_net.parameters(), 1e-3)
memory = []


def select_action(state):
    if random.random() < 0.3:
        return torch.tensor([[random.randrange(2)]])
    with torch.no_grad():
        return policy_net(state).max(1).indices.view(1, 1)


def optimize_model():
    if len(memory) < 16:
        return
    states, actions, nexts, rewards = (torch.cat(c) for c in zip(*random.sample(memory, 16)))
    values = policy_net(states).gather(1, actions)
    with torch.no_grad():
        expected = rewards + 0.99 * target_net(nexts).max(1).values
    loss = nn.SmoothL1Loss()(values, expected.unsqueeze(1))
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_value_(policy_net.parameters(), 100)
    optimizer.step()


state = torch.randn(1, 4)
for step in range(60):
    action = select_action(state)
    following = 0.9 * state + 0.1 * (2 * action - 1)
    memory.append((state, action, following, -following.abs().sum(1)))
    state = following
    optimize_model()
    for key, value in target_net.state_dict().items():
        value.copy_(0.01 * policy_net.state_dict()[key] + 0.99 * value)
