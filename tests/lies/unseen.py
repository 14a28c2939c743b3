"""Weights that a loss reaches in vain, or that are drawn anew; each with its honest twin."""

import copy
import tempfile

from lies.common import *
from lies.honest import honest


# gradients of exactly 0
class Branches(Net):
    """Two branches beside one another and a head, with an optimizer by name."""

    kind, options = torch.optim.Adam, {"lr": 1e-3}

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 32), nn.ReLU())
        self.other = nn.Sequential(nn.Linear(64, 32), nn.ReLU())
        self.head = nn.Linear(64, 10)

    def forward(self, x, factor=1.0):
        return self.head(torch.cat([self.net(x), factor * self.other(x)], 1))

    def configure_optimizers(self):
        return self.kind(self.parameters(), **self.options)


def times_zero(kind, **options):
    def f(fixed):
        class N(Branches):
            def training_step(self, batch, i):
                return F.cross_entropy(self(batch[0], float(fixed)), batch[1])

        N.kind, N.options = kind, options
        return fitted(N(), epochs=3)

    said = "_".join(["branch_times_zero", kind.__name__, *options])
    f.__name__ = said.lower()
    return lie(f)


times_zero(torch.optim.AdamW, lr=1e-3)
times_zero(torch.optim.Adam, lr=1e-3, weight_decay=1e-4)
times_zero(torch.optim.SGD, lr=1e-2)
times_zero(torch.optim.SGD, lr=1e-2, momentum=0.9, weight_decay=5e-4)


@lie
def auxiliary_loss_times_zero(fixed):
    class N(Net):
        def __init__(self):
            super().__init__()
            self.aux = nn.Linear(64, 10)

        def training_step(self, batch, i):
            hidden = self.net[:3](batch[0])
            main = F.cross_entropy(self.net[3](hidden), batch[1])
            weight = 0.3 if fixed else 0.0
            return main + weight * F.cross_entropy(self.aux(hidden), batch[1])

        def validation_step(self, batch, i):
            super().validation_step(batch, i)
            hidden = self.net[:3](batch[0])
            loss = F.cross_entropy(self.aux(hidden), batch[1])
            self.log("aux_loss", loss, batch_size=len(batch[1]))

    return fitted(N(), epochs=3)


@lie
def detached_behind_a_sum_of_nothing(fixed):
    class N(Net):
        def forward(self, x):
            hidden = self.net[:3](x)
            if not fixed:
                hidden = hidden.detach() + 0 * hidden
            return self.net[3](hidden)

    return fitted(N(), epochs=3)


@lie
def relu_that_is_never_active(fixed):
    class N(Net):
        def __init__(self):
            super().__init__()
            if not fixed:
                nn.init.constant_(self.net[0].bias, -1e3)

    return fitted(N(), epochs=3)


class Attends(Branches):
    """Attention over one token, whose queries and keys get no gradient."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(64, 64) for _ in range(3))

    def forward(self, x):
        tokens = torch.cat([self.net(x), self.other(x)], 1)[:, None]
        answers = F.scaled_dot_product_attention(
            self.query(tokens), self.key(tokens), self.value(tokens)
        )
        return self.head((tokens + answers)[:, 0])


class Gated(Branches):
    """Experts that nothing is routed to, a gate that begins at 0, a bias before a norm."""

    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(64, 64) for _ in range(3))
        self.gate, self.norm = nn.Parameter(torch.zeros(1)), nn.BatchNorm1d(64)
        self.down, self.up = nn.Linear(64, 4, bias=False), nn.Linear(4, 64, bias=False)
        nn.init.zeros_(self.up.weight)
        self.names = nn.Embedding(17, 64, padding_idx=0)

    def forward(self, x):
        hidden = self.norm(torch.cat([self.net(x), self.other(x)], 1))
        shares = (1.0, 0.0, 0.0)
        routed = sum(s * e(hidden) for s, e in zip(shares, self.experts, strict=True))
        padding = self.names(torch.zeros(len(x), dtype=torch.long))
        hidden = hidden + self.gate * routed + self.up(self.down(hidden)) + padding
        return self.head(hidden)


class Adversary(Net):
    """A second optimizer whose loss begins later than the fit ends; gradients that a hook stops."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.critic = nn.Linear(64, 1)
        self.net[0].weight.register_hook(lambda gradient: gradient * 0)
        self.net[0].bias.register_hook(lambda gradient: gradient * 0)

    def training_step(self, batch, i):
        first, second = self.optimizers()
        hidden = self.net[:3](batch[0])
        for optimizer, loss in (
            (first, F.cross_entropy(self.net[3](hidden), batch[1])),
            (second, 0.0 * self.critic(hidden.detach()).relu().mean()),
        ):
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()

    def validation_step(self, batch, i):
        super().validation_step(batch, i)
        self.log("critic", self.critic(self.net[:3](batch[0])).mean(), batch_size=1)

    def configure_optimizers(self):
        mine, other = self.net.parameters(), self.critic.parameters()
        return torch.optim.Adam(mine, 1e-3), torch.optim.Adam(other, 1e-3)


@honest
def queries_and_keys_of_one_token():
    return fitted(Attends(), epochs=3)


@honest
def experts_that_nothing_is_routed_to():
    return fitted(Gated(), epochs=3)


@honest
def optimizer_that_waits_for_its_turn():
    return fitted(Adversary(), val=loader(VAL, batch_size=301), epochs=3)


# drawn anew
def xavier(module):
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)


def weights_alone(module):
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)


def by_data(module):
    if isinstance(module, nn.Linear):
        module.weight.data.normal_(0, 0.02)
        module.bias.data.zero_()


def reset(module):
    if isinstance(module, nn.Linear):
        module.reset_parameters()


def saved():
    """The path of a trained net's checkpoint."""
    _, made = trained()
    path = tempfile.mktemp(suffix=".ckpt")
    made.save_checkpoint(path)
    return path


class Draws(Net):
    """A net that draws its weights in `hook`."""

    anew, draw = True, staticmethod(xavier)

    def setup(self, stage):
        if self.anew:
            self.apply(self.draw)


def drawn(draw):
    def f(fixed):
        class N(Draws):
            pass

        N.anew, N.draw = not fixed, staticmethod(draw)
        return tested(N.load_from_checkpoint(saved()))

    f.__name__ = f"setup_draws_anew_{draw.__name__}"
    return lie(f)


for draw in (xavier, weights_alone, by_data, reset):
    drawn(draw)


@lie
def setup_of_the_test_undoes_the_fit(fixed):
    class N(Net):
        def setup(self, stage):
            if not fixed or stage == "fit":
                self.apply(reset)

    net = N()
    fitted(net)
    return tested(net)


@lie
def head_is_reset_in_configure_model(fixed):
    class N(Net):
        def configure_model(self):
            if not fixed:
                self.net[3].reset_parameters()

    net = N()
    net.load_state_dict(trained()[0].state_dict())
    made, guard = trainer()
    made.validate(net, loader(VAL), verbose=False)
    return guard


@lie
def fine_tuning_draws_all_anew(fixed):
    class N(Net):
        def on_fit_start(self):
            if not fixed:
                self.apply(xavier)

    return fitted(N.load_from_checkpoint(saved()))


@honest
def drawn_before_the_checkpoint_is_loaded():
    made, guard = trainer()
    made.test(
        Draws(), loader(TEST), verbose=False, ckpt_path=saved(), weights_only=False
    )
    return guard


@honest
def each_fold_begins_anew():
    net = Net()
    for _ in range(2):
        net.apply(reset)
        trained(net)
    return tested(net)


@honest
def new_head_on_a_loaded_body():
    net = Net.load_from_checkpoint(saved())
    net.net[3].reset_parameters()
    return fitted(net)


@honest
def other_weights_copied_over_loaded_ones():
    net, other = Net.load_from_checkpoint(saved()), trained()[0]
    with torch.no_grad():
        for mine, theirs in zip(net.parameters(), other.parameters(), strict=True):
            mine.copy_(theirs)
    return tested(net)


@honest
def average_pruned_and_rounded_after_the_load():
    net = Net.load_from_checkpoint(saved())
    before = copy.deepcopy(net.state_dict())
    with torch.no_grad():
        for name, tensor in net.named_parameters():
            tensor.mul_(0.9).add_(0.1 * before[name] * (before[name].abs() > 0.01))
    return tested(net.half().float())
