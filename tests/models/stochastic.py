"""Evaluations that draw random numbers: the same model, the same batch, another answer."""

from __future__ import annotations

import dataclasses
import functools
import random
import time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Categorical, Normal
from torchmetrics import MeanMetric
from torchmetrics.wrappers import BootStrapper

from models.program import BATCH, FEATURES, Classifier, bug, near_miss

# --- functional dropout, which no eval mode reaches ---------------------------------------------


@bug("stochastic")
class FunctionalDropout(Classifier):
    """`F.dropout` drops by default: ``training=True``."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(F.dropout(x, 0.5))  # <- here


@near_miss
class FunctionalDropoutFollowsTheMode(Classifier):
    """Told which mode it is in, it does nothing in eval mode."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(F.dropout(x, 0.5, self.training))


@near_miss
class FunctionalDropoutOfNothing(Classifier):
    """With ``p=0`` it draws nothing that matters, whatever the mode."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(F.dropout(x, 0.0))


@bug("stochastic", "block")
class FunctionalDropoutInASubmodule(Classifier):
    """The same two levels down; the submodule is the one to mend."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(FEATURES, FEATURES)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.linear(x).relu()
            return F.dropout(hidden, p=0.3)  # <- here

    def __init__(self) -> None:
        super().__init__()
        self.block = self.Block()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.block(x))


@near_miss
class FunctionalDropoutOfTheSubmodulesMode(FunctionalDropoutInASubmodule):
    """Each module asks its own mode."""

    class Block(FunctionalDropoutInASubmodule.Block):
        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(self.linear(x).relu(), p=0.3, training=self.training)


@bug("stochastic")
class InplaceDropout(Classifier):
    """``inplace=True`` draws as well."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = x.relu()
        F.dropout(hidden, 0.5, inplace=True)  # <- here
        return self.net(hidden)


@near_miss
class InplaceDropoutFollowsTheMode(Classifier):
    def forward(self, x: Tensor) -> Tensor:
        hidden = x.relu()
        F.dropout(hidden, 0.5, self.training, inplace=True)
        return self.net(hidden)


@bug("stochastic")
class Dropout1d(Classifier):
    """`F.dropout1d` drops by default."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(F.dropout1d(x[:, :, None]).flatten(1))  # <- here


@near_miss
class Dropout1dFollowsTheMode(Classifier):
    def forward(self, x: Tensor) -> Tensor:
        return self.net(F.dropout1d(x[:, :, None], training=self.training).flatten(1))


@bug("stochastic")
class Dropout2d(Classifier):
    """`F.dropout2d` drops by default: the torchvision DenseNet and MNIST tutorial mistake."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(F.dropout2d(x[:, :, None, None]).flatten(1))  # <- here


@near_miss
class Dropout2dFollowsTheMode(Classifier):
    def forward(self, x: Tensor) -> Tensor:
        return self.net(
            F.dropout2d(x[:, :, None, None], training=self.training).flatten(1)
        )


@bug("stochastic")
class Dropout3d(Classifier):
    """`F.dropout3d` drops by default."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(F.dropout3d(x[:, :, None, None, None]).flatten(1))  # <- here


@near_miss
class Dropout3dFollowsTheMode(Classifier):
    def forward(self, x: Tensor) -> Tensor:
        volume = x[:, :, None, None, None]
        return self.net(F.dropout3d(volume, training=self.training).flatten(1))


@bug("stochastic")
class AlphaDropout(Classifier):
    """A constant where the mode belongs."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(F.alpha_dropout(x, 0.2, training=True))  # <- here


@near_miss
class AlphaDropoutFollowsTheMode(Classifier):
    def forward(self, x: Tensor) -> Tensor:
        return self.net(F.alpha_dropout(x, 0.2, training=self.training))


@bug("stochastic")
class FeatureAlphaDropout(Classifier):
    """A constant where the mode belongs."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.feature_alpha_dropout(x[:, :, None], 0.2, training=True)  # <- here
        return self.net(hidden.flatten(1))


@near_miss
class FeatureAlphaDropoutFollowsTheMode(Classifier):
    def forward(self, x: Tensor) -> Tensor:
        hidden = F.feature_alpha_dropout(x[:, :, None], 0.2, training=self.training)
        return self.net(hidden.flatten(1))


@bug("stochastic")
class LowLevelDropout(Classifier):
    """`torch.dropout` has no default to get wrong, only a constant."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(torch.dropout(x, 0.5, True))  # <- here


@near_miss
class LowLevelDropoutFollowsTheMode(Classifier):
    def forward(self, x: Tensor) -> Tensor:
        return self.net(torch.dropout(x, 0.5, self.training))


@bug("stochastic")
class RandomLeakyRelu(Classifier):
    """`F.rrelu` draws a slope for each element while ``training=True``."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(F.rrelu(x, training=True))  # <- here


@near_miss
class RandomLeakyReluFollowsTheMode(Classifier):
    def forward(self, x: Tensor) -> Tensor:
        return self.net(F.rrelu(x, training=self.training))


@bug("stochastic", "drop")
class MonteCarloDropout(Classifier):
    """A dropout layer that was made to ignore its mode, left in the model for validation."""

    class Always(nn.Dropout):
        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(x, self.p, True)  # <- here

    def __init__(self) -> None:
        super().__init__()
        self.drop = self.Always(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.drop(x))


@near_miss
class OrdinaryDropout(MonteCarloDropout):
    """The layer as torch ships it."""

    Always = nn.Dropout  # type: ignore[assignment]


@bug("stochastic", entry="predict", stage="predict")
class DropoutInPredictAlone(Classifier):
    """Clean in validation, random where the answers are kept."""

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return self(F.dropout(batch[0], 0.5))  # <- here


@near_miss
class DropoutInTrainingAlone(Classifier):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return F.cross_entropy(self(F.dropout(batch[0], 0.5)), batch[1])


@bug("stochastic", entry="test", stage="test", guard={"weights": "ignore"})
class DropoutInTestAlone(Classifier):
    """Clean in validation, random in the figure that is published."""

    def test_step(self, batch: Any, batch_idx: int) -> Any:
        logits = self(F.dropout(batch[0], 0.5))  # <- here
        self.log("test_loss", F.cross_entropy(logits, batch[1]))
        return {"preds": logits}


@near_miss
class NoDropoutInTest(Classifier):
    def test_step(self, batch: Any, batch_idx: int) -> Any:
        logits = self(F.dropout(batch[0], 0.5, training=False))
        self.log("test_loss", F.cross_entropy(logits, batch[1]))
        return {"preds": logits}


# --- attention ----------------------------------------------------------------------------------


class Attention(nn.Module):
    """Self-attention over two tokens a sample; how it drops is what differs."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(FEATURES // 2, 3 * FEATURES // 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x.unflatten(1, (2, FEATURES // 2)))[:, None].chunk(3, -1)
        return self.attend(q, k, v).flatten(1)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v)


class Attentive(Classifier):
    """A classifier on top of its class's `Attention`."""

    Attention = Attention

    def __init__(self) -> None:
        super().__init__()
        self.attention = self.Attention()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.attention(x))


@bug("stochastic", "attention")
class SdpaDropout(Attentive):
    """`scaled_dot_product_attention` knows no mode: ``dropout_p`` always drops (nanoGPT#240)."""

    class Attention(Attention):
        def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(q, k, v, dropout_p=0.1)  # <- here


@near_miss
class SdpaDropoutFollowsTheMode(Attentive):
    class Attention(Attention):
        def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            drop = 0.1 if self.training else 0.0
            return F.scaled_dot_product_attention(q, k, v, dropout_p=drop)


@near_miss
class SdpaWithoutDropout(Attentive):
    """Tagged as a random operator all the same."""


@bug("stochastic")
class FunctionalMultiheadAttention(Classifier):
    """`F.multi_head_attention_forward` has ``training=True`` by default."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.MultiheadAttention(FEATURES, 2, dropout=0.2)

    def attend(self, x: Tensor, **mode: bool) -> Tensor:
        m = self.heads
        out, _ = F.multi_head_attention_forward(  # <- here
            x, x, x, FEATURES, 2, m.in_proj_weight, m.in_proj_bias, None, None, False,
            m.dropout, m.out_proj.weight, m.out_proj.bias, need_weights=False, **mode,
        )  # fmt: skip
        return out

    def forward(self, x: Tensor) -> Tensor:
        # one token a sample, in a batch of them
        return self.net(self.attend(x[None])[0])


@near_miss
class FunctionalMultiheadAttentionFollowsTheMode(FunctionalMultiheadAttention):
    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.attend(x[None], training=self.training)[0])


@bug("stochastic")
class AttentionWeightsDropout(Classifier):
    """Attention written by hand, its weights dropped in every mode."""

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.unflatten(1, (2, FEATURES // 2))
        weights = (tokens @ tokens.mT).softmax(-1)
        weights = nn.functional.dropout(weights, 0.1)  # <- here
        return self.net((weights @ tokens).flatten(1))


@near_miss
class TransformerEncoder(Classifier):
    """Torch's own encoder with dropout everywhere, on its fast path in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.3, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.encoder(x.unflatten(1, (2, 4))).flatten(1))


# --- whole layers, masks and noise --------------------------------------------------------------


@bug("stochastic")
class DropPathByBernoulli(Classifier):
    """Stochastic depth that forgot to ask for the mode."""

    def drop_path(self, x: Tensor, drop: float = 0.2) -> Tensor:
        keep = x.new_empty(len(x), 1).bernoulli_(1 - drop)  # <- here
        return x * keep / (1 - drop)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x + self.drop_path(x.relu()))


@near_miss
class DropPathFollowsTheMode(DropPathByBernoulli):
    def drop_path(self, x: Tensor, drop: float = 0.2) -> Tensor:
        if drop == 0 or not self.training:
            return x
        return super().drop_path(x, drop)


@bug("stochastic", certain=False)
class LayersSkippedByRand(Classifier):
    """Stochastic depth by ``floor(keep + rand)``, as older timm wrote it."""

    def forward(self, x: Tensor) -> Tensor:
        keep = (0.8 + torch.rand(len(x), 1)).floor()  # <- here
        return self.net(x + x.relu() * keep / 0.8)


@near_miss
class LayersSkippedByRandInTraining(Classifier):
    def forward(self, x: Tensor) -> Tensor:
        keep = (0.8 + torch.rand(len(x), 1)).floor() / 0.8 if self.training else 1.0
        return self.net(x + x.relu() * keep)


@bug("stochastic", certain=False)
class LayerDropByNumpy(Classifier):
    """A whole layer skipped on numpy's say, as in LayerDrop."""

    def forward(self, x: Tensor) -> Tensor:
        if np.random.rand() < 0.5:  # <- here
            x = x.relu()
        return self.net(x)


@near_miss
class LayerDropInTraining(Classifier):
    def forward(self, x: Tensor) -> Tensor:
        if self.training and np.random.rand() < 0.5:
            x = x.relu()
        return self.net(x)


@bug("stochastic", certain=False)
class RandomMasking(Classifier):
    """Masks a random half of the input in every mode, as ViT-MAE does."""

    def forward(self, x: Tensor) -> Tensor:
        order = torch.rand(x.shape).argsort(dim=1)  # <- here
        return self.net(x * (order < FEATURES // 2))


@near_miss
class FixedMasking(Classifier):
    """The same masking, from numbers that were drawn once."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("order", torch.rand(FEATURES).argsort())

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x * (self.order < FEATURES // 2))


@bug("stochastic", certain=False)
class NoiseByRandnLike(Classifier):
    """A VAE's reparametrisation: right in training, a choice in validation."""

    def __init__(self) -> None:
        super().__init__()
        self.log_std = nn.Linear(FEATURES, FEATURES)

    def latent(self, x: Tensor) -> Tensor:
        std = self.log_std(x).exp()
        return x + std * torch.randn_like(std)  # <- here

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.latent(x))


@near_miss
class MeanOfTheLatent(NoiseByRandnLike):
    """The mean in eval mode."""

    def latent(self, x: Tensor) -> Tensor:
        return super().latent(x) if self.training else x


@bug("stochastic", certain=False)
class NoiseInPlace(Classifier):
    """The old idiom of the VAE tutorial: an empty tensor filled with `normal_`."""

    def forward(self, x: Tensor) -> Tensor:
        noise = torch.empty_like(x).normal_(std=0.1)  # <- here
        return self.net(x + noise)


@near_miss
class NoiseOfNoSize(Classifier):
    """A tensor made and filled, but with a constant."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x + torch.empty_like(x).fill_(0.1))


@bug("stochastic", certain=False)
class UniformDequantisation(Classifier):
    """Dequantisation noise of a flow, in the likelihood that is reported."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x + torch.zeros_like(x).uniform_(0, 1 / 256))  # <- here


@near_miss
class UniformDequantisationInTraining(Classifier):
    def forward(self, x: Tensor) -> Tensor:
        return self.net(x + (torch.rand_like(x) / 256 if self.training else 1 / 512))


@bug("stochastic", certain=False)
class GumbelSoftmax(Classifier):
    """`F.gumbel_softmax` has no mode."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(F.gumbel_softmax(x, tau=0.5, hard=True))  # <- here


@near_miss
class ArgmaxInEval(Classifier):
    """The most probable choice in eval mode."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return self.net(F.gumbel_softmax(x, tau=0.5, hard=True))
        return self.net(F.one_hot(x.argmax(1), FEATURES).to(x.dtype))


@bug("stochastic", certain=False)
class Multinomial(Classifier):
    """Picks a feature of each sample by chance."""

    def forward(self, x: Tensor) -> Tensor:
        chosen = torch.multinomial(x.softmax(1), 1)  # <- here
        return self.net(torch.zeros_like(x).scatter(1, chosen, 1.0))


@near_miss
class TopOne(Classifier):
    """Picks the most probable."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(torch.zeros_like(x).scatter(1, x.argmax(1, keepdim=True), 1.0))


@bug("stochastic", certain=False)
class Permutation(Classifier):
    """Shuffles the features, as a permutation-importance study left in the model."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x[:, torch.randperm(FEATURES)])  # <- here


@near_miss
class FixedPermutation(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.order = torch.randperm(FEATURES).tolist()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x[:, self.order])


@bug("stochastic", certain=False)
class RandomCrop(Classifier):
    """The training transform, used for validation too."""

    def forward(self, x: Tensor) -> Tensor:
        start = torch.randint(0, 4, ())  # <- here
        window = (torch.arange(FEATURES) >= start) & (
            torch.arange(FEATURES) < start + 4
        )
        return self.net(x * window)


@near_miss
class CentreCrop(Classifier):
    def forward(self, x: Tensor) -> Tensor:
        return self.net(F.pad(x[:, 2:6], (2, 2)))


@bug("stochastic", certain=False)
class DiffusionTimestep(Classifier):
    """A validation loss at a random timestep: it moves by luck from epoch to epoch."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        t = torch.randint(0, 10, (len(x), 1))  # <- here
        loss = F.cross_entropy(self(x * t / 10), y)
        self.log("val_loss", loss)


@near_miss
class DiffusionTimestepsInTurn(Classifier):
    """Fixed timesteps for validation."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        t = torch.arange(len(x))[:, None] % 10
        self.log("val_loss", F.cross_entropy(self(x * t / 10), y))


@bug("stochastic", certain=False)
class NormalSample(Classifier):
    """`torch.distributions` samples in every mode."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(Normal(x, 0.1).rsample())  # <- here


@near_miss
class NormalMean(Classifier):
    def forward(self, x: Tensor) -> Tensor:
        latent = Normal(x, 0.1)
        return self.net(latent.rsample() if self.training else latent.mean)


@bug("stochastic", certain=False)
class CategoricalSample(Classifier):
    """Sampled actions in the evaluation of a policy."""

    def forward(self, x: Tensor) -> Tensor:
        action = Categorical(logits=x).sample()  # <- here
        return self.net(F.one_hot(action, FEATURES).to(x.dtype))


@near_miss
class CategoricalMode(Classifier):
    """A distribution asked for what is not random: its mode, its entropy, a log-probability."""

    def forward(self, x: Tensor) -> Tensor:
        policy = Categorical(logits=x)
        return self.net(
            F.one_hot(policy.mode, FEATURES).to(x.dtype) * policy.entropy()[:, None]
        )


@bug("stochastic", certain=False)
class PoissonNoise(Classifier):
    """Shot noise of a simulated detector."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(torch.poisson(x.abs()))  # <- here


@near_miss
class PoissonLoss(Classifier):
    """A name alone is not a draw."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) + F.poisson_nll_loss(
            x[:, :1], x[:, :1].abs(), reduction="none"
        )


@bug("stochastic", "pool", certain=False)
class FractionalPooling(Classifier):
    """`nn.FractionalMaxPool2d` draws its regions in every mode."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.FractionalMaxPool2d(2, output_size=(4, 2))

    def forward(self, x: Tensor) -> Tensor:
        image = x[:, None, :, None].expand(-1, 1, FEATURES, 4)
        return self.net(self.pool(image).flatten(1))  # <- here


@near_miss
class OrdinaryPooling(FractionalPooling):
    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d((2, 2))


@bug("stochastic", certain=False)
class BootstrappedMetric(Classifier):
    """A confidence interval by resampling: meant to be random, said so with one `allow`."""

    def __init__(self) -> None:
        super().__init__()
        self.interval = BootStrapper(MeanMetric(), num_bootstraps=2)

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.interval.update(  # <- here
            F.cross_entropy(self(batch[0]), batch[1], reduction="none")
        )


@near_miss
class OrdinaryMetric(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.mean = MeanMetric()

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.mean.update(F.cross_entropy(self(batch[0]), batch[1], reduction="none"))
        self.log("val_loss", self.mean)


# --- other generators ---------------------------------------------------------------------------


@bug("stochastic", certain=False)
class PythonsGenerator(Classifier):
    """Test-time flips by `random`."""

    def forward(self, x: Tensor) -> Tensor:
        if random.random() < 0.5:  # <- here
            x = x.flip(1)
        return self.net(x)


@near_miss
class BothFlips(Classifier):
    """Test-time augmentation that takes every variant."""

    def forward(self, x: Tensor) -> Tensor:
        return (self.net(x) + self.net(x.flip(1))) / 2


@bug("stochastic", certain=False)
class NumpysGenerator(Classifier):
    """Noise that passed through numpy."""

    def forward(self, x: Tensor) -> Tensor:
        noise = np.random.normal(size=x.shape).astype(np.float32)  # <- here
        return self.net(x + torch.from_numpy(noise))


@near_miss
class NumpysGeneratorSeededHere(Classifier):
    """A generator of its own, made afresh from a constant: the same noise each time."""

    def forward(self, x: Tensor) -> Tensor:
        noise = np.random.default_rng(0).normal(size=x.shape).astype(np.float32)
        return self.net(x + torch.from_numpy(noise))


@bug("stochastic", certain=False)
class PrivateGenerator(Classifier):
    """A `torch.Generator` of its own, which goes on from batch to batch."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x + torch.randn(x.shape, generator=self.generator))  # <- here


@near_miss
class PrivateGeneratorSeededHere(Classifier):
    """The same noise each time."""

    def forward(self, x: Tensor) -> Tensor:
        same = torch.Generator().manual_seed(0)
        return self.net(x + torch.randn(x.shape, generator=same))


@bug("stochastic", certain=False)
class PrivateNumpyGenerator(Classifier):
    """Numpy's own advice, `default_rng`: no global state tells that it moved."""

    def __init__(self) -> None:
        super().__init__()
        self.draws = np.random.default_rng(0)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x * (1 + self.draws.random()))  # <- here


@near_miss
class PrivateNumpyGeneratorInTraining(PrivateNumpyGenerator):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.training else self.net(x)


@bug("stochastic", certain=False)
class PrivatePythonGenerator(Classifier):
    """A `random.Random` of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.draws = random.Random(0)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x * self.draws.uniform(1, 2))  # <- here


@near_miss
class PrivatePythonGeneratorInTraining(PrivatePythonGenerator):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.training else self.net(x)


@bug("stochastic", certain=False)
class SystemEntropy(Classifier):
    """Random numbers of the operating system: no seed, no state."""

    def forward(self, x: Tensor) -> Tensor:
        entropy = random.SystemRandom()
        scales = [entropy.uniform(1, 2) for _ in range(FEATURES)]
        return self.net(x * torch.tensor(scales))  # <- here


@near_miss
class NoEntropy(Classifier):
    def forward(self, x: Tensor) -> Tensor:
        return self.net(x * 1.5)


@bug("stochastic", certain=False)
class Clock(Classifier):
    """The answer depends on when it was asked."""

    def forward(self, x: Tensor) -> Tensor:
        now = time.perf_counter_ns()
        primes = (947, 953, 967, 971, 977, 983, 991, 997)
        return self.net(x + torch.tensor([now % prime for prime in primes]))  # <- here


@near_miss
class Stopwatch(Classifier):
    """Reads the clock, and only logs how long it took."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        began = time.perf_counter()
        out = super().validation_step(batch, batch_idx)
        self.log("val_ms", (time.perf_counter() - began) * 1e3)
        return out


@bug("stochastic", also=("rng",), certain=False)
class SeedsInTheStep(Classifier):
    """Seeds the global generator in the step: each epoch of training repeats the same numbers."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        torch.manual_seed(0)  # <- here
        return super().validation_step(batch, batch_idx)


@near_miss
class SeedsInAFork(Classifier):
    """The same noise each time, and the global generator is put back."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            noise = torch.randn_like(batch[0])
        return super().validation_step([batch[0] + noise, batch[1]], batch_idx)


# --- when, and where else -----------------------------------------------------------------------


@bug("stochastic")
class DropoutFromTheSecondBatchOn(Classifier):
    """The first batch is clean."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        if batch_idx > 0:
            x = F.dropout(x, 0.5)  # <- here
        return super().validation_step([x, y], batch_idx)


@near_miss
class DropoutFromTheSecondTrainingBatchOn(Classifier):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        return super().training_step([F.dropout(x, 0.5, batch_idx > 0), y], batch_idx)


@bug("stochastic", certain=False)
class NoiseFromTheSecondBatchOn(Classifier):
    """The first batch is clean."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        if batch_idx > 0:
            x = x + 0.1 * torch.randn_like(x)  # <- here
        return super().validation_step([x, y], batch_idx)


@near_miss
class ConstantFromTheSecondBatchOn(Classifier):
    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        return super().validation_step([x + 0.1 if batch_idx > 0 else x, y], batch_idx)


@bug("stochastic", None, certain=False)
class NoiseWhileTheBatchIsMoved(Classifier):
    """Augmentation on the device, in a hook that runs in every stage."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        x, y = batch
        return [x + 0.1 * torch.randn_like(x), y]  # <- here


@near_miss
class NoiseWhileATrainingBatchIsMoved(Classifier):
    """Lightning's documented way: ask the trainer."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        x, y = batch
        return [x + 0.1 * torch.randn_like(x) if self.trainer.training else x, y]


# --- modules that .eval() cannot reach ----------------------------------------------------------


@bug("stochastic", "layers[0]")
class DropoutInAList(Classifier):
    """A plain list hides its modules from `.eval()`."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = [nn.Dropout(0.5)]

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)  # <- here
        return self.net(x)


@near_miss
class DropoutInAModuleList(DropoutInAList):
    def __init__(self) -> None:
        super().__init__()
        del self.layers
        self.layers = nn.ModuleList([nn.Dropout(0.5)])


@near_miss
class ModulesSharedThroughAList(Classifier):
    """A plain list beside the registration is only another way to reach them."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.layers = [self.drop]

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.layers[0](x))


@bug("stochastic", "layers[0]")
class DropoutInATuple(Classifier):
    """A tuple hides them too."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = (nn.Dropout(0.5), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        drop, act = self.layers
        return self.net(act(drop(x)))  # <- here


@near_miss
class TupleOfWhatHasNoMode(Classifier):
    """Unregistered, still in train mode, and without consequence."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = (nn.Identity(), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        first, act = self.layers
        return self.net(act(first(x)))


@bug("stochastic", "heads['a']")
class DropoutInADict(Classifier):
    """A dict of heads, each with its own regularisation (mt-dnn#45)."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = {"a": nn.Dropout(0.5)}

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.heads["a"](x))  # <- here


@near_miss
class DropoutInAModuleDict(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({"a": nn.Dropout(0.5)})

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.heads["a"](x))


@bug("stochastic", "heads['a']")
class AttentionInADict(Classifier):
    """A whole encoder layer that `.eval()` cannot reach."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = {
            "a": nn.TransformerEncoderLayer(4, 2, 8, dropout=0.3, batch_first=True)
        }

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.heads["a"](x.unflatten(1, (2, 4))).flatten(1))  # <- here


@near_miss
class AttentionInAModuleDict(AttentionInADict):
    def __init__(self) -> None:
        super().__init__()
        layers = self.heads
        del self.heads
        self.heads = nn.ModuleDict(layers)


@bug("stochastic", "layers[0]")
class RecurrentDropoutInAList(Classifier):
    """The dropout between the layers of an LSTM is part of one operator."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = [nn.LSTM(4, 4, num_layers=2, dropout=0.5, batch_first=True)]

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.layers[0](x.unflatten(1, (2, 4)))  # <- here
        return self.net(out.flatten(1))


@near_miss
class RegisteredRecurrentDropout(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 4, num_layers=2, dropout=0.5, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.lstm(x.unflatten(1, (2, 4)))
        return self.net(out.flatten(1))


@bug("stochastic", "parts.drop")
class DropoutInADataclass(Classifier):
    """A dataclass of parts hides them as well."""

    @dataclasses.dataclass
    class Parts:
        drop: nn.Module
        scale: float = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.parts = self.Parts(nn.Dropout(0.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.parts.drop(x) * self.parts.scale)  # <- here


@near_miss
class DropoutRateInADataclass(Classifier):
    """Configuration in the dataclass, the module registered."""

    @dataclasses.dataclass
    class Parts:
        p: float = 0.5

    def __init__(self) -> None:
        super().__init__()
        self.parts = self.Parts()
        self.drop = nn.Dropout(self.parts.p)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.drop(x))


@bug("stochastic", None)
class DropoutInAClosure(Classifier):
    """A function that closed over a module."""

    def __init__(self) -> None:
        super().__init__()
        drop = nn.Dropout(0.5)

        def regularise(x: Tensor) -> Tensor:
            return drop(x)  # <- here

        self.regularise = regularise

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.regularise(x))


@near_miss
class RegisteredDropoutInAClosure(Classifier):
    """The same closure over a module that is registered too."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = drop = nn.Dropout(0.5)
        self.regularise = lambda x: drop(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.regularise(x))


@bug("stochastic", None)
class DropoutInAPartial(Classifier):
    """A partial that carries a module among its arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.apply_to = functools.partial(self.through, nn.Dropout(0.5))

    @staticmethod
    def through(layer: nn.Module, x: Tensor) -> Tensor:
        return layer(x)  # <- here

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.apply_to(x))


@near_miss
class ActivationInAPartial(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.act = functools.partial(F.leaky_relu, negative_slope=0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.act(x))


@bug("stochastic")
class PartialOfFunctionalDropout(Classifier):
    """The default of `F.dropout`, frozen in a partial."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = functools.partial(F.dropout, p=0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.drop(x))  # <- here


@near_miss
class PartialThatIsToldTheMode(PartialOfFunctionalDropout):
    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.drop(x, training=self.training))


@bug("stochastic", None)
class DropoutInTheHyperparameters(Classifier):
    """A module among the hyper-parameters is not a submodule."""

    def __init__(self) -> None:
        super().__init__()
        self.hparams["regulariser"] = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.hparams["regulariser"](x))  # <- here


@near_miss
class DropoutRateInTheHyperparameters(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.hparams["p"] = 0.5
        self.drop = nn.Dropout(self.hparams["p"])

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.drop(x))


SHARED_DROPOUT = nn.Dropout(0.5)
SHARED_RELU = nn.ReLU()


@bug("stochastic", None)
class GlobalDropout(Classifier):
    """A module at the top of a file belongs to no model."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(SHARED_DROPOUT(x))  # <- here


@near_miss
class GlobalActivation(Classifier):
    """Global too, and without a mode."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(SHARED_RELU(x))


@bug("stochastic", None)
class DropoutMadeInForward(Classifier):
    """A module made in `forward` is born in train mode, every time."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(nn.Dropout(0.5)(x))  # <- here


@near_miss
class DropoutMadeInForwardInMyMode(Classifier):
    def forward(self, x: Tensor) -> Tensor:
        return self.net(nn.Dropout(0.5).train(self.training)(x))


class Tower(nn.Module):
    """What gets traced below."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(FEATURES, FEATURES)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.linear(x), 0.5, training=self.training)


@bug("stochastic", "tower")
class TracedInTrainMode(Classifier):
    """`torch.jit.trace` baked train mode into the graph (pytorch_geometric#7745)."""

    def __init__(self) -> None:
        super().__init__()
        example = torch.ones(BATCH, FEATURES)
        self.tower = torch.jit.trace(Tower().train(), example, check_trace=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.tower(x))  # <- here


@near_miss
class TracedInEvalMode(TracedInTrainMode):
    def __init__(self) -> None:
        super().__init__()
        self.tower = torch.jit.trace(
            Tower().eval(), torch.ones(BATCH, FEATURES)
        ).train()


@bug("stochastic", "tower")
class FxTracedInTrainMode(Classifier):
    """`torch.fx` turned ``training=self.training`` into ``training=True``."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = torch.fx.symbolic_trace(Tower().train())

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.tower(x))  # <- here


@near_miss
class FxTracedModules(Classifier):
    """Modules stay modules in the graph, and follow the mode."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = torch.fx.symbolic_trace(
            nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5))
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.tower(x))


@bug("stochastic")
class FlagOfItsOwn(Classifier):
    """A flag of its own that nobody turns off."""

    def __init__(self) -> None:
        super().__init__()
        self.is_training = True

    def forward(self, x: Tensor) -> Tensor:
        return self.net(F.dropout(x, 0.5, self.is_training))  # <- here


@near_miss
class FlagOfItsOwnThatFollows(Classifier):
    @property
    def is_training(self) -> bool:
        return self.training

    def forward(self, x: Tensor) -> Tensor:
        return self.net(F.dropout(x, 0.5, self.is_training))


@bug("stochastic", "hidden[0]")
class TeacherBehindAnotherModule(Classifier):
    """A teacher kept out of `parameters()` by a list of one: it is never set to eval."""

    class Teacher(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(x, 0.5, self.training)  # <- here

    def __init__(self) -> None:
        super().__init__()
        self.hidden = [self.Teacher()]

    @property
    def teacher(self) -> nn.Module:
        return self.hidden[0]

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        return super().validation_step([x + self.teacher(x), y], batch_idx)


@near_miss
class TeacherPutInEvalByHand(TeacherBehindAnotherModule):
    """Unregistered on purpose, and set to eval once for all."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden[0].eval()
