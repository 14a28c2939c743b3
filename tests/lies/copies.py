"""Weights that are copied, picked or drawn by hand; each lie with its honest twin."""

import copy

from lies.common import *
from lies.honest import honest
from lightning.pytorch.callbacks import StochasticWeightAveraging


def normed():
    """A small net with batch norm."""
    return nn.Sequential(
        nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10)
    )


# averages made by hand, whose buffers nobody follows
class Average(nn.Module):
    """An average of parameters, in the form that many projects have."""

    def __init__(self, net, decay=0.9):
        super().__init__()
        self.module = copy.deepcopy(net).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, net, buffers):
        pairs = zip(self.module.parameters(), net.parameters(), strict=True)
        for mine, theirs in pairs:
            mine.lerp_(theirs, 1 - self.decay)
        if buffers:
            for mine, theirs in zip(self.module.buffers(), net.buffers(), strict=True):
                mine.copy_(theirs)


class Averaged(Net):
    """Trains one net, and evaluates an average of it."""

    buffers = registered = True

    def __init__(self, net=None):
        super().__init__()
        self.net = net or normed()
        average = Average(self.net)
        if self.registered:
            self.average = average
        else:
            self.__dict__["average"] = average

    def on_train_batch_end(self, *_):
        self.average.update(self.net, self.buffers)

    def validation_step(self, batch, i):
        z = self.average.module(batch[0])
        loss = F.cross_entropy(z, batch[1])
        self.log("val_loss", loss, batch_size=len(batch[1]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.net.parameters(), 1e-2)


@lie
def an_average_without_the_buffers(fixed):
    class N(Averaged):
        buffers = fixed

    return fitted(N())


@lie
def an_average_of_a_pretrained_net_without_the_buffers(fixed):
    class N(Averaged):
        buffers = fixed

    net = normed()
    for _ in range(3):
        net(TRAIN[0][:100])
    return fitted(N(net))


@lie
def an_average_in_a_plain_attribute_without_the_buffers(fixed):
    class N(Averaged):
        buffers = fixed
        registered = False

    return fitted(N())


@lie
def averaging_begins_after_the_last_epoch(fixed):
    swa = StochasticWeightAveraging(swa_lrs=1e-3, swa_epoch_start=1 if fixed else 20)
    return fitted(Net(), swa, epochs=3)


# loads that bring nothing
@lie
def a_filter_of_keys_lets_none_through(fixed):
    whole = {f"model.encoder.{k}": v for k, v in Net().net.state_dict().items()}
    prefix = "model.encoder." if fixed else "encoder."
    picked = {k[len(prefix) :]: v for k, v in whole.items() if k.startswith(prefix)}
    net = Net()
    net.net.load_state_dict(picked, strict=False)
    return fitted(net, epochs=1)


# draws without a bias of zeros
def draws_late(name, draw, layer):
    def f(fixed):
        net, _ = trained()
        late = Net()
        late.load_state_dict(net.state_dict())
        if not fixed:
            draw(late.net[layer].weight)
        return tested(late)

    f.__name__ = name
    return lie(f)


draws_late("a_layer_is_drawn_by_normal_", lambda w: nn.init.normal_(w, std=0.02), 0)
draws_late("a_layer_is_drawn_by_kaiming_normal_", nn.init.kaiming_normal_, 0)
draws_late("a_layer_is_drawn_in_its_data", lambda w: w.data.normal_(0, 0.01), 3)


@honest
def an_output_of_a_layer_is_left_alone():
    """As `BertModel`'s pooler, where a head reads the hidden states."""

    class Body(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden = nn.Linear(64, 32)
            self.pooler = nn.Sequential(nn.Linear(32, 32), nn.Tanh())

        def forward(self, x):
            hidden = self.hidden(x).relu()
            return {"hidden": hidden, "pooled": self.pooler(hidden)}

    class N(Net):
        def __init__(self):
            super().__init__()
            self.net = Body()
            self.head = nn.Linear(32, 10)

        def forward(self, x):
            return self.head(self.net(x)["hidden"])

    return fitted(N())


@lie
def an_output_of_a_layer_is_read_without_a_gradient(fixed):
    class N(Net):
        def __init__(self):
            super().__init__()
            self.pooler = nn.Sequential(nn.Linear(64, 64), nn.Tanh())

        def forward(self, x):
            pooled = self.pooler(x)
            return self.net(pooled if fixed else pooled.detach())

    return fitted(N())


@honest
def a_teacher_with_statistics_of_its_own():
    class N(Net):
        def __init__(self):
            super().__init__()
            self.net = normed()
            self.teacher = normed()
            self.teacher.load_state_dict(normed().state_dict())
            self.teacher.requires_grad_(False)

        def on_train_epoch_start(self):
            self.teacher.eval()

        def training_step(self, batch, i):
            z = self(batch[0])
            taught = F.mse_loss(z, self.teacher(batch[0]))
            return F.cross_entropy(z, batch[1]) + taught

        def validation_step(self, batch, i):
            super().validation_step(batch, i)
            taught = F.mse_loss(self(batch[0]), self.teacher(batch[0]))
            self.log("val_taught", taught, batch_size=len(batch[1]))

    return fitted(N())


@honest
def weights_that_features_gave():
    """A head imprinted by the means of each class, beside the bias that was loaded."""
    net, _ = trained()
    late = Net()
    late.load_state_dict(net.state_dict())
    with torch.no_grad():
        features = late.net[:3](TRAIN[0])
        means = torch.stack([features[TRAIN[1] == k].mean(0) for k in range(10)])
        late.net[3].weight.copy_(F.normalize(means - means.mean(0)))
    return tested(late)


def clears_gradients(name, act):
    """A layer of two loses its gradients before the step; honest in the first epoch alone."""

    class N(Net):
        def __init__(self, always):
            super().__init__()
            self.body = nn.Linear(64, 64)
            self.always = always

        def forward(self, x):
            return self.net(self.body(x).relu())

        def on_before_optimizer_step(self, optimizer):
            if self.always or self.current_epoch == 0:
                act(self.body)

    def f(fixed):
        return fitted(N(not fixed), epochs=3)

    f.__name__ = name
    return lie(f)


def set_to_none(layer):
    for parameter in layer.parameters():
        parameter.grad = None


clears_gradients("a_layer_s_gradients_are_set_to_none", set_to_none)
clears_gradients(
    "a_layer_s_gradients_are_zeroed", lambda layer: layer.zero_grad(set_to_none=False)
)
