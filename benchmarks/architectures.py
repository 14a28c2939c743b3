"""Real architectures in small: what the libraries ship, with an input that each accepts."""

from __future__ import annotations

import copy
import inspect
import itertools
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Batch = Any  # a tuple of positional inputs, or a dict of keyword inputs
BATCH, LENGTH, IMAGE, VOCABULARY = 4, 16, 32, 128
MOST_PARAMETERS = 8_000_000


@dataclass(frozen=True)
class Architecture:
    """One architecture.

    Attributes:
        name: ``library/name``.
        build: Makes the model and a batch for it; whatever it raises means "cannot be built".
    """

    name: str
    build: Callable[[], tuple[nn.Module, Batch]]


def call(model: nn.Module, batch: Batch) -> Any:
    """The model's output for a batch."""
    return model(**batch) if isinstance(batch, dict) else model(*batch)


def architectures() -> list[Architecture]:
    """Everything that the installed libraries offer."""
    found: list[Architecture] = []
    for collect in (torch_nn, transformers, torch_geometric, timm):
        try:
            found += collect()
        except ImportError as e:  # noqa: PERF203
            warnings.warn(f"{collect.__name__} is left out: {e}", stacklevel=2)
    return found


# --- torch.nn -----------------------------------------------------------------------------------


def _x(*shape: int) -> Tensor:
    return torch.randn(BATCH, *shape)


_SHAPES: dict[int, tuple[int, ...]] = {
    0: (4, 8),
    1: (4, 16),
    2: (4, 8, 8),
    3: (4, 4, 8, 8),
}


def _dims(name: str) -> int:
    return next((d for d in (1, 2, 3) if f"{d}d" in name), 0)


# Arguments of the constructor, then the inputs; for the others both follow from the name.
_SPECIAL: dict[
    str, tuple[tuple[Any, ...], dict[str, Any], Callable[[], tuple[Any, ...]]]
] = {
    "Bilinear": ((8, 8, 4), {}, lambda: (_x(8), _x(8))),
    "Embedding": ((16, 8), {}, lambda: (torch.randint(16, (BATCH, 5)),)),
    "EmbeddingBag": ((16, 8), {}, lambda: (torch.randint(16, (BATCH, 5)),)),
    "Linear": ((8, 4), {}, lambda: (_x(8),)),
    "LazyLinear": ((4,), {}, lambda: (_x(8),)),
    "LinearCrossEntropyLoss": ((8, 5), {}, lambda: (_x(8), torch.randint(5, (BATCH,)))),
    "RNN": ((8, 4, 2), {"dropout": 0.3, "batch_first": True}, lambda: (_x(5, 8),)),
    "LSTM": ((8, 4, 2), {"dropout": 0.3, "batch_first": True}, lambda: (_x(5, 8),)),
    "GRU": ((8, 4, 2), {"dropout": 0.3, "batch_first": True}, lambda: (_x(5, 8),)),
    "RNNCell": ((8, 4), {}, lambda: (_x(8),)),
    "LSTMCell": ((8, 4), {}, lambda: (_x(8),)),
    "GRUCell": ((8, 4), {}, lambda: (_x(8),)),
    "MultiheadAttention": (
        (8, 2),
        {"dropout": 0.2, "batch_first": True},
        lambda: (_x(5, 8), _x(5, 8), _x(5, 8)),
    ),
    "Transformer": (
        (8, 2, 1, 1, 16),
        {"dropout": 0.2, "batch_first": True},
        lambda: (_x(5, 8), _x(5, 8)),
    ),
    "TransformerEncoderLayer": (
        (8, 2, 16),
        {"dropout": 0.2, "batch_first": True},
        lambda: (_x(5, 8),),
    ),
    "TransformerDecoderLayer": (
        (8, 2, 16),
        {"dropout": 0.2, "batch_first": True},
        lambda: (_x(5, 8), _x(5, 8)),
    ),
    "LayerNorm": ((8,), {}, lambda: (_x(8),)),
    "RMSNorm": ((8,), {}, lambda: (_x(8),)),
    "GroupNorm": ((2, 4), {}, lambda: (_x(4, 8),)),
    "LocalResponseNorm": ((2,), {}, lambda: (_x(4, 8, 8),)),
    "CrossMapLRN2d": ((2,), {}, lambda: (_x(4, 8, 8),)),
    "Softmax": ((1,), {}, lambda: (_x(8),)),
    "Softmin": ((1,), {}, lambda: (_x(8),)),
    "LogSoftmax": ((1,), {}, lambda: (_x(8),)),
    "Threshold": ((0.1, 0.0), {}, lambda: (_x(8),)),
    "Softmax2d": ((), {}, lambda: (_x(4, 8, 8),)),
    "PReLU": ((), {}, lambda: (_x(8),)),
    "GLU": ((), {}, lambda: (_x(8),)),
    "PixelShuffle": ((2,), {}, lambda: (_x(4, 8, 8),)),
    "PixelUnshuffle": ((2,), {}, lambda: (_x(4, 8, 8),)),
    "ChannelShuffle": ((2,), {}, lambda: (_x(4, 8, 8),)),
    "Upsample": ((), {"scale_factor": 2}, lambda: (_x(4, 8, 8),)),
    "UpsamplingNearest2d": ((), {"scale_factor": 2}, lambda: (_x(4, 8, 8),)),
    "UpsamplingBilinear2d": ((), {"scale_factor": 2}, lambda: (_x(4, 8, 8),)),
    "Fold": (((8, 8), 2), {"stride": 2}, lambda: (_x(8, 16),)),
    "Unfold": ((2,), {}, lambda: (_x(4, 8, 8),)),
    "Unflatten": ((1, (2, 4)), {}, lambda: (_x(8),)),
    "CosineSimilarity": ((), {}, lambda: (_x(8), _x(8))),
    "PairwiseDistance": ((), {}, lambda: (_x(8), _x(8))),
    "FractionalMaxPool2d": ((2,), {"output_size": 4}, lambda: (_x(4, 8, 8),)),
    "FractionalMaxPool3d": (
        (2,),
        {"output_size": (2, 4, 4)},
        lambda: (_x(4, 4, 8, 8),),
    ),
    "AdaptiveLogSoftmaxWithLoss": (
        (8, 10, [4]),
        {},
        lambda: (_x(8), torch.randint(10, (BATCH,))),
    ),
    "MaxUnpool1d": (
        (2,),
        {},
        lambda: (_x(4, 8), torch.arange(0, 16, 2).expand(BATCH, 4, 8)),
    ),
    "MaxUnpool2d": (
        (2,),
        {},
        lambda: (_x(4, 4, 4), torch.arange(0, 64, 4).view(4, 4).expand(BATCH, 4, 4, 4)),
    ),
    "MaxUnpool3d": (
        (2,),
        {},
        lambda: (
            _x(4, 2, 4, 4),
            torch.arange(0, 256, 8).view(2, 4, 4).expand(BATCH, 4, 2, 4, 4),
        ),
    ),
}


def _loss_inputs(name: str) -> tuple[Any, ...]:
    labels, signs = torch.randint(5, (BATCH,)), torch.ones(BATCH)
    if name in ("MarginRankingLoss",):
        return _x(), _x(), signs
    if name == "CosineEmbeddingLoss":
        return _x(8), _x(8), signs
    if name.startswith("Triplet"):
        return _x(8), _x(8), _x(8)
    if name in ("HingeEmbeddingLoss", "SoftMarginLoss"):
        return _x(), signs
    if name in ("CrossEntropyLoss", "NLLLoss", "MultiMarginLoss"):
        return _x(5), labels
    if name == "NLLLoss2d":
        return _x(5, 4, 4), torch.randint(5, (BATCH, 4, 4))
    if name == "MultiLabelMarginLoss":
        return _x(5), torch.randint(5, (BATCH, 5))
    if name == "CTCLoss":
        log_probs = _x(6, 5).transpose(0, 1).log_softmax(2)
        lengths = torch.full((BATCH,), 6), torch.full((BATCH,), 3)
        return log_probs, torch.randint(1, 5, (BATCH, 3)), *lengths
    if name == "GaussianNLLLoss":
        return _x(5), _x(5), _x(5).abs()
    return torch.rand(BATCH, 5), torch.rand(BATCH, 5)


def _nn_module(name: str) -> tuple[nn.Module, Batch]:
    model, inputs = _nn_parts(name)
    if "Lazy" in name:
        model(*inputs)  # a dry run, as torch's documentation says
    return model, inputs


def _nn_parts(name: str) -> tuple[nn.Module, Batch]:
    kind = getattr(nn, name)
    if name in _SPECIAL:
        args, kwargs, inputs = _SPECIAL[name]
        return kind(*args, **kwargs), inputs()
    if name.endswith("Loss") or name in ("NLLLoss2d",):
        return kind(), _loss_inputs(name)
    dims = _dims(name)
    x = (_x(*_SHAPES[dims]),)
    if "Lazy" in name and "Conv" in name:
        return kind(4, 3), x
    if "Conv" in name:
        return kind(4, 4, 3), x
    if "Pad" in name:
        return kind(1, 0.5) if "Constant" in name else kind(1), x
    if "LPPool" in name:
        return kind(2, 2), x
    if "AdaptiveMax" in name or "AdaptiveAvg" in name or "Pool" in name:
        return kind(2), x
    if "Lazy" in name:
        return kind(), x
    if "BatchNorm" in name or "InstanceNorm" in name:
        return kind(4), x
    return kind(), x


class _Residual(nn.Module):
    """A residual block with every usual part."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Dropout2d(0.1),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.body(x)).relu_()


class _UNet(nn.Module):
    """Down, up, and a skip."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.down = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, 2, 1)
        self.norm = nn.GroupNorm(4, 16)
        self.up, self.last = nn.ConvTranspose2d(16, 8, 2, 2), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.first(x).relu()
        deep = self.norm(self.down(skip)).relu()
        return self.last(torch.cat([skip, self.up(deep)], 1))


class _Vae(nn.Module):
    """Samples in training, the mean in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(8, 8), nn.Linear(4, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_std = self.encoder(x).chunk(2, 1)
        z = mean + log_std.exp() * torch.randn_like(mean) if self.training else mean
        return self.decoder(z), mean, log_std


class _Tagger(nn.Module):
    """Embeddings, a bidirectional LSTM over packed sequences, a head for each token."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 8, padding_idx=0)
        self.lstm = nn.LSTM(8, 8, 2, dropout=0.2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(16, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        lengths = (tokens != 0).sum(1).clamp(min=1)
        packed = nn.utils.rnn.pack_padded_sequence(
            self.embedding(tokens), lengths, batch_first=True, enforce_sorted=False
        )
        out, _ = nn.utils.rnn.pad_packed_sequence(
            self.lstm(packed)[0], batch_first=True, total_length=tokens.shape[1]
        )
        return self.head(out)


class _WeightStandardised(nn.Conv2d):
    """Standardises its weight by `F.batch_norm`, as NFNets and BiT do."""

    def forward(self, x: Tensor) -> Tensor:
        weight = nn.functional.batch_norm(
            self.weight.reshape(1, self.out_channels, -1), None, None, training=True
        ).reshape_as(self.weight)
        return nn.functional.conv2d(x, weight, self.bias)


class _AutoregressiveTransformer(nn.Module):
    """A causal transformer with tied embeddings and a cached mask."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 16)
        layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.1, batch_first=True)
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.mask: Tensor | None = None

    def forward(self, tokens: Tensor) -> Tensor:
        n = tokens.shape[1]
        if self.mask is None:
            self.mask = nn.Transformer.generate_square_subsequent_mask(n)
        hidden = self.body(self.embedding(tokens), mask=self.mask, is_causal=True)
        return hidden @ self.embedding.weight.T


def _nets() -> dict[str, Callable[[], tuple[nn.Module, Batch]]]:
    image = lambda: (_x(3, IMAGE, IMAGE),)  # noqa: E731
    tokens = lambda: (torch.randint(1, 50, (BATCH, LENGTH)),)  # noqa: E731
    p = nn.utils.parametrizations
    mlp = lambda *extra: nn.Sequential(nn.Linear(8, 16), *extra, nn.Linear(16, 3))  # noqa: E731
    encoder = nn.TransformerEncoderLayer
    return {
        "MLP": lambda: (mlp(nn.ReLU(), nn.Dropout(0.5)), (_x(8),)),
        "MLP with BatchNorm": lambda: (mlp(nn.BatchNorm1d(16), nn.GELU()), (_x(8),)),
        "self-normalising MLP": lambda: (mlp(nn.SELU(), nn.AlphaDropout(0.1)), (_x(8),)),
        "MLP with spectral norm": lambda: (p.spectral_norm(nn.Linear(8, 3)), (_x(8),)),
        "MLP with weight norm": lambda: (p.weight_norm(nn.Linear(8, 3)), (_x(8),)),
        "orthogonal layer": lambda: (p.orthogonal(nn.Linear(8, 8)), (_x(8),)),
        "ResNet": lambda: (
            nn.Sequential(
                nn.Conv2d(3, 8, 3, padding=1),
                *(_Residual() for _ in range(3)),
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
                nn.Linear(8, 5),
            ),
            image(),
        ),
        "LeNet": lambda: (
            nn.Sequential(
                nn.Conv2d(3, 6, 5), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(6, 16, 5), nn.Tanh(),
                nn.AvgPool2d(2), nn.Flatten(), nn.Linear(400, 10),
            ),
            image(),
        ),
        "U-Net": lambda: (_UNet(), image()),
        "VAE": lambda: (_Vae(), (_x(8),)),
        "tagger": lambda: (_Tagger(), tokens()),
        "language model": lambda: (_AutoregressiveTransformer(), tokens()),
        "weight standardisation": lambda: (_WeightStandardised(3, 8, 3), image()),
        "TransformerEncoder": lambda: (
            nn.TransformerEncoder(encoder(8, 2, 16, dropout=0.2, batch_first=True), 2),
            (_x(5, 8),),
        ),
        "TransformerEncoder, norm first": lambda: (
            nn.TransformerEncoder(
                encoder(8, 2, 16, dropout=0.2, batch_first=True, norm_first=True),
                2,
                enable_nested_tensor=False,
            ),
            (_x(5, 8),),
        ),
        "TransformerDecoder": lambda: (
            nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 16, batch_first=True), 2),
            (_x(5, 8), _x(5, 8)),
        ),
        "text CNN": lambda: (
            nn.Sequential(
                nn.Embedding(50, 8), nn.Conv1d(LENGTH, 8, 3), nn.BatchNorm1d(8), nn.ReLU(),
                nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(8, 3),
            ),
            tokens(),
        ),
        "autoencoder": lambda: (
            nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.InstanceNorm2d(8), nn.LeakyReLU(),
                          nn.ConvTranspose2d(8, 3, 2, 2), nn.Sigmoid()),
            image(),
        ),
    }  # fmt: skip


def torch_nn() -> list[Architecture]:
    """Every module of torch.nn that is one, and typical nets of them."""
    bases = {"Module", "Container", "Sequential", "ModuleList", "ModuleDict", "ParameterList",
             "ParameterDict", "RNNBase", "RNNCellBase", "Buffer", "Parameter", "TransformerEncoder",
             "TransformerDecoder", "DataParallel"}  # fmt: skip
    names = sorted(
        n for n, kind in vars(nn).items()
        if inspect.isclass(kind) and issubclass(kind, nn.Module) and n not in bases
    )  # fmt: skip
    modules = [Architecture(f"torch.nn/{n}", lambda n=n: _nn_module(n)) for n in names]
    return modules + [Architecture(f"nets/{n}", build) for n, build in _nets().items()]


# --- transformers -------------------------------------------------------------------------------

_SMALL: tuple[tuple[tuple[str, ...], int], ...] = (
    (("num_key_value_heads", "num_kv_heads", "n_kv_heads"), 4),
    (("num_experts_per_tok", "moe_topk", "top_k", "num_selected"), 2),
    (("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    (("head_dim", "d_kv", "kv_channels", "attention_head_size", "v_head_dim", "d_head"), 16),
    (("qk_nope_head_dim", "qk_rope_head_dim"), 8),
    (("q_lora_rank", "kv_lora_rank", "low_rank"), 16),
    (("num_heads", "n_head", "n_heads", "attention_heads", "num_attention_heads"), 4),
    (("layers", "num_layers", "n_layer", "n_layers", "depth", "num_blocks"), 2),
    (("vocab_size", "num_codevectors_per_group", "vocab_size_per_layer_input"), VOCABULARY),
    (("image_size",), IMAGE),
    (("intermediate_size", "ffn_dim", "d_ff", "n_inner", "mlp_dim", "d_inner", "ffn_hidden_size",
      "dim_feedforward", "inner_dim"), 128),
    (("hidden_size", "d_model", "n_embd", "embed_dim", "embedding_size", "hidden_dim", "dim",
      "emb_dim", "projection_dim", "out_hidden_size", "decoder_hidden_size", "conv_dim",
      "channels", "backbone_hidden_size", "mask_feature_size", "feature_size"), 64),
    (("max_position_embeddings", "n_positions", "max_sequence_length", "n_ctx", "context_length",
      "max_seq_len"), 256),
    (("num_queries", "num_latents", "num_query_tokens"), 8),
    (("d_latents",), 32),
)  # fmt: skip


def _smaller(key: str, value: Any, keep: frozenset[str]) -> Any:
    """A config's value in small; lists keep their length."""
    if isinstance(value, bool) or value is None or key in keep:
        return value
    if isinstance(value, int):
        if key.endswith(("_token_id", "_token_index")):
            return (
                value
                if value < VOCABULARY
                else 3 + sum(map(ord, key)) % (VOCABULARY - 8)
            )
        for names, small in _SMALL:
            if any(key == n or key.endswith(f"_{n}") for n in names):
                return min(value, small)
        return value
    return value


_LISTS: dict[str, Callable[[int], list[int]]] = {
    "depths": lambda n: [1] * n,
    "hidden_sizes": lambda n: [16 * 2**i for i in range(n)],
    "num_attention_heads": lambda n: [1 * 2**i for i in range(n)],
    "num_heads": lambda n: [1 * 2**i for i in range(n)],
    "embed_dims": lambda n: [16 * 2**i for i in range(n)],
    "encoder_hidden_sizes": lambda n: [16 * 2**i for i in range(n)],
    "decoder_depths": lambda n: [1] * n,
    "layer_depths": lambda n: [1] * n,
}


def _shrink(config: Any, keep: frozenset[str] = frozenset(), seen: int = 0) -> Any:
    """`config` and the configs in it, shrunk in place."""
    from transformers import PretrainedConfig

    for key, value in list(vars(config).items()):
        if isinstance(value, PretrainedConfig) and seen < 4:
            _shrink(value, keep, seen + 1)
            continue
        small = _smaller(key, value, keep)
        if (
            isinstance(value, (list, tuple))
            and key in _LISTS
            and value
            and key not in keep
        ):
            small = _LISTS[key](len(value))
        if isinstance(value, (list, tuple)) and key.endswith("layer_types") and value:
            layers = getattr(config, "num_hidden_layers", 2)
            period = list(dict.fromkeys(value))
            small = (
                list(value[:1]) + [v for v in period if v != value[0]] + list(value)
            )[:layers]
        if small is not value and small != value:
            try:
                setattr(config, key, small)
            except (AttributeError, ValueError, TypeError, NotImplementedError):
                continue
    return config


def _variants(make: Callable[[], Any]) -> Iterator[Any]:
    """A config shrunk in several ways, smallest first."""
    widths = frozenset(n for names, _ in _SMALL[9:12] for n in names)
    keep_all = frozenset(n for names, _ in _SMALL for n in names)
    layers = frozenset(_SMALL[7][0])
    prefixed = lambda config, names: frozenset(  # noqa: E731
        k for k in vars(config) if any(k == n or k.endswith(f"_{n}") for n in names)
    )
    for kept in (frozenset(), frozenset(_LISTS), widths, keep_all - layers):
        try:
            config = make()
        except Exception:
            return
        subs = [c for c in vars(config).values() if hasattr(c, "to_dict")]
        keep = kept | frozenset(
            itertools.chain.from_iterable(prefixed(c, kept) for c in (config, *subs))
        )
        yield _shrink(config, keep)


def _count(make: Callable[[], nn.Module]) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in make().parameters())


def _value(config: Any, name: str, default: Any) -> Any:
    for owner in (config, *(getattr(config, s, None) for s in (
        "vision_config", "text_config", "audio_config", "backbone_config", "encoder", "decoder",
    ))):  # fmt: skip
        value = getattr(owner, name, None) if owner is not None else None
        if value is not None:
            return value
    return default


def _transformer_inputs(model: nn.Module, config: Any) -> Iterator[dict[str, Tensor]]:
    accepted = inspect.signature(model.forward).parameters
    size = _value(config, "image_size", IMAGE)
    size = (size, size) if isinstance(size, int) else tuple(size)[-2:]
    channels = _value(config, "num_channels", _value(config, "in_channels", 3))
    frames = _value(config, "num_frames", 2)
    mel = _value(config, "num_mel_bins", _value(config, "feature_size", 80))
    vocabulary = min(VOCABULARY, _value(config, "vocab_size", VOCABULARY))
    ids = torch.randint(5, max(vocabulary - 5, 6), (BATCH, LENGTH))
    mask = torch.ones(BATCH, LENGTH, dtype=torch.long)
    span = 2 * _value(config, "max_source_positions", 100)
    context = _value(config, "context_length", None) or _value(
        config, "prediction_length", 16
    )
    lags = max(_value(config, "lags_sequence", [0]) or [0])
    past = context + lags
    times = _value(config, "num_time_features", 0)
    future = _value(config, "prediction_length", None) or 4
    made: dict[str, Callable[[], Tensor]] = {
        "input_ids": lambda: ids,
        "attention_mask": lambda: mask,
        "decoder_input_ids": lambda: ids,
        "pixel_values": lambda: torch.randn(BATCH, channels, *size),
        "input_features": lambda: torch.randn(BATCH, mel, span),
        "input_values": lambda: torch.randn(BATCH, 4000),
        "bbox": lambda: torch.zeros(BATCH, LENGTH, 4, dtype=torch.long),
        "inputs": lambda: torch.randint(5, 100, (BATCH, LENGTH)),
    }
    tries: list[dict[str, Callable[[], Tensor]]] = [
        {"input_ids": made["input_ids"]},
        {"input_ids": made["input_ids"], "attention_mask": made["attention_mask"]},
        {
            "input_ids": made["input_ids"],
            "decoder_input_ids": made["decoder_input_ids"],
        },
        {"pixel_values": made["pixel_values"]},
        {"pixel_values": lambda: torch.randn(BATCH, frames, channels, *size)},
        {"pixel_values_videos": lambda: torch.randn(BATCH, frames, channels, *size)},
        {"input_ids": made["input_ids"], "pixel_values": made["pixel_values"]},
        {
            "input_ids": made["input_ids"],
            "pixel_values": made["pixel_values"],
            "attention_mask": made["attention_mask"],
        },
        {"input_ids": made["input_ids"], "bbox": made["bbox"]},
        {
            "input_ids": made["input_ids"],
            "bbox": made["bbox"],
            "pixel_values": made["pixel_values"],
        },
        {
            "pixel_values": made["pixel_values"],
            "decoder_input_ids": made["decoder_input_ids"],
        },
        {"input_values": made["input_values"]},
        {"input_values": lambda: torch.randn(BATCH, 1, 4000)},
        {
            "input_values": lambda: torch.randn(
                BATCH, _value(config, "max_length", 64), mel
            )
        },
        {"input_values": lambda: torch.randn(BATCH, 16, 80)},
        {
            "input_values": lambda: torch.randn(BATCH, 16, 80),
            "decoder_input_values": lambda: torch.randn(BATCH, 8, 80),
        },
        {
            "input_values": made["input_values"],
            "decoder_input_ids": made["decoder_input_ids"],
        },
        {"input_features": made["input_features"]},
        {"input_features": lambda: torch.randn(BATCH, span, mel)},
        {
            "input_features": made["input_features"],
            "decoder_input_ids": made["decoder_input_ids"],
        },
        {
            "input_features": lambda: torch.randn(BATCH, 64, mel),
            "decoder_input_ids": made["decoder_input_ids"],
        },
        {"input_ids": made["input_ids"], "input_features": made["input_features"]},
        {
            "input_ids": made["input_ids"],
            "input_features": lambda: torch.randn(BATCH, 1, 64, 64),
        },
        {"inputs": made["inputs"]},
        {"hidden_states": lambda: torch.randn(BATCH, LENGTH, 64)},
        {
            "past_values": lambda: torch.randn(
                BATCH, past, _value(config, "num_input_channels", 1)
            )
        },
        {
            "past_values": lambda: torch.randn(BATCH, past),
            "past_time_features": lambda: torch.randn(BATCH, past, times),
            "past_observed_mask": lambda: torch.ones(BATCH, past),
            "future_values": lambda: torch.randn(BATCH, future),
            "future_time_features": lambda: torch.randn(BATCH, future, times),
        },
        {
            "past_values": lambda: torch.randn(BATCH, 32),
            "past_values_padding": lambda: torch.zeros(BATCH, 32, dtype=torch.long),
            "freq": lambda: torch.zeros(BATCH, 1, dtype=torch.long),
        },
        {"input_embeds": lambda: torch.randn(BATCH, LENGTH, 64)},
        {"inputs_embeds": lambda: torch.randn(BATCH, LENGTH, 64)},
        {
            "input_ids": made["input_ids"],
            "visual_feats": lambda: torch.randn(
                BATCH, 5, _value(config, "visual_feat_dim", 64)
            ),
            "visual_pos": lambda: torch.rand(BATCH, 5, 4),
        },
        {
            "pixel_values": lambda: torch.randn(BATCH, channels, *size),
            "input_ids": made["input_ids"],
            "decoder_input_ids": made["decoder_input_ids"],
        },
    ]
    main = getattr(model, "main_input_name", "input_ids")
    tries.sort(key=lambda t: (main not in t, len(t)))
    for inputs in tries:
        if all(name in accepted for name in inputs):
            yield {name: make() for name, make in inputs.items()}


_FITTING: dict[str, tuple[Any, dict[str, Tensor]]] = {}  # found once by trial


def _transformer(kind: str) -> tuple[nn.Module, Batch]:
    """The base model of a model type, never run before, in a size that is small and runs."""
    from transformers import AutoModel

    if kind not in _FITTING:
        _FITTING[kind] = _fitting(kind)
    config, inputs = _FITTING[kind]
    return AutoModel.from_config(copy.deepcopy(config)).float(), inputs


def _fitting(kind: str) -> tuple[Any, dict[str, Tensor]]:
    from transformers import AutoModel
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    errors: list[Exception] = []
    for config in _variants(CONFIG_MAPPING[kind]):
        kept = copy.deepcopy(config)
        try:
            if (
                _count(lambda config=config: AutoModel.from_config(config))
                > MOST_PARAMETERS
            ):
                continue
            model = AutoModel.from_config(copy.deepcopy(kept)).float()
        except Exception as e:
            errors.append(e)
            continue
        for inputs in _transformer_inputs(model.eval(), config):
            try:
                with torch.no_grad():
                    out = model(**inputs)
                if any(t.is_floating_point() for t in tensors(out)):
                    return kept, inputs
            except Exception as e:  # noqa: PERF203
                errors.append(e)
    raise (
        errors[0]
        if errors
        else RuntimeError("no variant of the config is small enough")
    )


def transformers() -> list[Architecture]:
    """The base model of every model type that has one."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    kinds = sorted(k for k in MODEL_MAPPING_NAMES if k in CONFIG_MAPPING_NAMES)
    return [
        Architecture(f"transformers/{k}", lambda k=k: _transformer(k)) for k in kinds
    ]


def tensors(out: Any) -> list[Tensor]:
    """The tensors of an output: of containers, model outputs, distributions apart."""
    if isinstance(out, Tensor):
        return [out]
    if isinstance(out, dict):
        return [t for v in out.values() for t in tensors(v)]
    if isinstance(out, (list, tuple)):
        return [t for v in out for t in tensors(v)]
    if hasattr(out, "__dict__") and type(out).__module__.startswith("transformers"):
        return [t for v in vars(out).values() if isinstance(v, Tensor) for t in (v,)]
    return []


# --- torch-geometric ----------------------------------------------------------------------------

_NODES, _EDGES = 24, 60


def _graph() -> dict[str, Any]:
    nodes = torch.arange(_NODES)
    ring = torch.stack([nodes, (nodes + 1) % _NODES])
    more = torch.randint(_NODES, (2, _EDGES // 2 - _NODES // 2))
    edges = torch.cat([ring, more], 1)
    edges = torch.cat([edges, edges.flip(0)], 1)
    edges = edges[:, edges[0] != edges[1]].unique(dim=1)
    count = edges.shape[1]
    return {
        "x": torch.randn(_NODES, 16),
        "edge_index": edges,
        "edge_attr": torch.randn(count, 16),
        "edge_weight": torch.rand(count),
        "edge_type": torch.randint(3, (count,)),
        "batch": torch.arange(_NODES) // (_NODES // 2),
        "batch_index": torch.arange(_NODES) // (_NODES // 2),
        "pos": torch.randn(_NODES, 3),
        "z": torch.randint(1, 10, (_NODES,)),
        "index": torch.arange(_NODES) // (_NODES // 2),
        "pseudo": torch.rand(count, 3),
        "x_0": torch.randn(_NODES, 16),
        "x0": torch.randn(_NODES, 16),
        "node_type": torch.randint(3, (_NODES,)),
        "pos_edge_index": edges,
        "num_nodes": _NODES,
        "num_hyperedges": None,
        "hyperedge_index": torch.stack([nodes, nodes // 4]),
        "adj": (torch.rand(2, 12, 12) > 0.5).float(),
        "edge_label_index": edges[:, :8],
        "h": torch.randn(_NODES, 16),
    }


_GEOMETRIC_ARGUMENTS: dict[str, Any] = {
    "in_channels": 16,
    "out_channels": 16,
    "hidden_channels": 16,
    "channels": 16,
    "num_layers": 2,
    "num_nodes": _NODES,
    "num_relations": 3,
    "num_types": 3,
    "num_node_types": 3,
    "num_edge_types": 3,
    "edge_dim": 16,
    "dim": 3,
    "kernel_size": 3,
    "K": 2,
    "heads": 2,
    "depth": 2,
    "dropout": 0.2,
    "num_embeddings": 20,
    "embedding_dim": 16,
    "num_timesteps": 2,
    "num_groups": 4,
    "groups": 4,
    "ratio": 0.5,
    "aggregators": ["mean", "max"],
    "scalers": ["identity", "amplification"],
    "deg": torch.tensor([0, 4, 8, 8, 4]),
    "aggrs": ["mean", "max"],
    "alpha": 0.1,
    "num_iterations": 2,
    "processing_steps": 2,
    "num_bases": 2,
    "num_kernels": 2,
    "mode": "cat",
    "mid_channels": 16,
    "num_blocks": 1,
    "num_seed_points": 2,
    "dim_in": 16,
    "dim_out": 16,
    "num_encoder_blocks": 1,
    "num_decoder_blocks": 1,
    "max_num_elements": _NODES,
    "max_num_elements_in": _NODES,
    "max_num_elements_out": 4,
    "k": 4,
    "in_dim": 16,
    "out_dim": 16,
    "hidden_dim": 16,
    "num_interactions": 2,
    "num_filters": 16,
    "cutoff": 5.0,
    "num_hops": 2,
    "nb_heads": 2,
    "max_len": _NODES,
    "max_dist": 5,
}
_MADE: dict[str, Callable[[], Any]] = {
    "nn": lambda: nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16)),
    "local_nn": lambda: nn.Linear(19, 16),
    "global_nn": lambda: nn.Linear(16, 16),
    "gate_nn": lambda: nn.Linear(16, 1),
    "encoder": lambda: _two_layer_gcn(),
    "conv": lambda: _gcn(),
    "block": lambda: nn.Linear(16, 16),
    "mlp": lambda: nn.Linear(16, 16),
}


def _gcn() -> nn.Module:
    from torch_geometric.nn import GCNConv

    return GCNConv(16, 16)


def _two_layer_gcn() -> nn.Module:
    from torch_geometric.nn import GCN

    return GCN(16, 16, 2)


# Those whose arguments or inputs mean something of their own.
_Geometric = Callable[[Any, dict[str, Any]], tuple[nn.Module, Any]]
_DENSE = (
    "DenseGCNConv",
    "DenseGINConv",
    "DenseGraphConv",
    "DenseSAGEConv",
    "DenseGATConv",
)
_TRIPLES = ("TransE", "ComplEx", "DistMult", "RotatE")
_RELATIONAL = ("RGCNConv", "FastRGCNConv", "RGATConv")


def _dense(graph: dict[str, Any]) -> tuple[Tensor, Tensor]:
    return torch.randn(2, 12, 16), graph["adj"]


_GEOMETRIC: dict[str, _Geometric] = {
    "EdgeConv": lambda kind, g: (kind(nn.Linear(32, 16)), None),
    "DynamicEdgeConv": lambda kind, g: (kind(nn.Linear(32, 16), k=4), None),
    "NNConv": lambda kind, g: (kind(16, 16, nn.Linear(16, 256)), None),
    "ECConv": lambda kind, g: (kind(16, 16, nn.Linear(16, 256)), None),
    "GMMConv": lambda kind, g: (kind(16, 16, dim=16, kernel_size=2), None),
    "CGConv": lambda kind, g: (kind(16, dim=16), None),
    "GINEConv": lambda kind, g: (kind(nn.Linear(16, 16), edge_dim=16), None),
    "GENConv": lambda kind, g: (kind(16, 16, edge_dim=16), None),
    "MixHopConv": lambda kind, g: (kind(16, 16, powers=[0, 1]), None),
    "GCN2Conv": lambda kind, g: (kind(16, alpha=0.1), None),
    "FiLMConv": lambda kind, g: (kind(16, 16), None),
    "GraphUNet": lambda kind, g: (kind(16, 16, 16, depth=2), None),
    "GPSConv": lambda kind, g: (kind(16, _gcn(), heads=2, dropout=0.2), None),
    "DeepGCNLayer": lambda kind, g: (
        kind(_gcn(), nn.LayerNorm(16), nn.ReLU(), dropout=0.1),
        (g["x"], g["edge_index"]),
    ),
    "LayerNorm": lambda kind, g: (kind(16), None),
    "JumpingKnowledge": lambda kind, g: (kind("lstm", 16, 2), ([g["x"], g["h"]],)),
    "MLP": lambda kind, g: (kind([16, 16, 4], dropout=0.2), (g["x"],)),
    "PMLP": lambda kind, g: (kind(16, 16, 4, 2, dropout=0.2), (g["x"], g["edge_index"])),
    "PNA": lambda kind, g: (
        kind(16, 16, 2, aggregators=["mean", "max"], scalers=["identity"],
             deg=_GEOMETRIC_ARGUMENTS["deg"]),
        None,
    ),
    "GAE": lambda kind, g: (kind(_two_layer_gcn()), (g["x"], g["edge_index"])),
    "DNAConv": lambda kind, g: (
        kind(16, dropout=0.2), (torch.randn(_NODES, 3, 16), g["edge_index"])
    ),
    "DMoNPooling": lambda kind, g: (kind(16, 4, dropout=0.2), _dense(g)),
    "EquilibriumAggregation": lambda kind, g: (kind(16, 16, [16]), (g["x"], g["index"])),
    "GroupAddRev": lambda kind, g: (kind(nn.Identity(), num_groups=2), None),
    "HeteroLinear": lambda kind, g: (kind(16, 16, 3), (g["x"], g["node_type"])),
    "HeteroLayerNorm": lambda kind, g: (kind(16, 3), (g["x"], g["node_type"])),
    "HeteroBatchNorm": lambda kind, g: (kind(16, 3), (g["x"], g["node_type"])),
    "HypergraphConv": lambda kind, g: (
        kind(16, 16, dropout=0.2), (g["x"], g["hyperedge_index"])
    ),
    "LabelPropagation": lambda kind, g: (kind(2, 0.9), (g["node_type"], g["edge_index"])),
    "MaskLabel": lambda kind, g: (
        kind(3, 16), (g["x"], g["node_type"], torch.arange(_NODES) % 2 == 0)
    ),
    "MemPooling": lambda kind, g: (kind(16, 16, 2, 4), (g["x"], g["batch"])),
    "MessageNorm": lambda kind, g: (kind(True), (g["x"], g["h"])),
    "MLPAggregation": lambda kind, g: (
        kind(16, 16, _NODES // 2, num_layers=1), (g["x"], g["index"])
    ),
    "QuantileAggregation": lambda kind, g: (kind(0.5), (g["x"], g["index"])),
    "DegreeScalerAggregation": lambda kind, g: (
        kind("mean", "identity", _GEOMETRIC_ARGUMENTS["deg"]), (g["x"], g["index"])
    ),
    "PatchTransformerAggregation": lambda kind, g: (
        kind(16, 16, 4, 16, 1, dropout=0.2), (g["x"], g["index"])
    ),
    "PerformerAttention": lambda kind, g: (
        kind(16, heads=2, head_channels=8, dropout=0.2), (torch.randn(2, 12, 16),)
    ),
    "SignedConv": lambda kind, g: (
        kind(16, 16, first_aggr=True), (g["x"], g["edge_index"], g["edge_index"].flip(0))
    ),
    **{name: lambda kind, g: (kind(16, 16), _dense(g)) for name in _DENSE},
    "DenseGINConv": lambda kind, g: (kind(nn.Linear(16, 16)), _dense(g)),
    **{name: lambda kind, g: (kind(_NODES, 3, 16), tuple(torch.randint(3, (3, 8)).unbind()))
       for name in _TRIPLES},
    **{name: lambda kind, g: (kind(16, 16, 3), (g["x"], g["edge_index"], g["edge_type"]))
       for name in _RELATIONAL},
}  # fmt: skip


def _arguments(kind: Any) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for parameter in inspect.signature(kind.__init__).parameters.values():
        if parameter.name == "self" or parameter.kind in (2, 4):
            continue
        needed = parameter.default is inspect.Parameter.empty
        if needed and parameter.name in _MADE:
            given[parameter.name] = _MADE[parameter.name]()
        elif needed or parameter.name in ("dropout", "edge_dim", "heads", "num_layers"):
            if parameter.name in _GEOMETRIC_ARGUMENTS:
                given[parameter.name] = _GEOMETRIC_ARGUMENTS[parameter.name]
            elif needed:
                raise TypeError(f"{kind.__name__} wants {parameter.name}")
    return given


def _graph_for(model: nn.Module, graph: dict[str, Any], more: bool) -> dict[str, Any]:
    """What `model` takes of a graph by name; with `more`, weights and attributes of edges too."""
    wanted: dict[str, Any] = {}
    for parameter in inspect.signature(model.forward).parameters.values():
        needed = (
            parameter.default is inspect.Parameter.empty
            and parameter.kind not in (2, 4)
        )
        if needed and parameter.name not in graph:
            raise TypeError(f"{type(model).__name__}.forward wants {parameter.name}")
        if needed or (more and parameter.name in ("edge_attr", "edge_weight", "batch")):
            wanted[parameter.name] = graph[parameter.name]
    return wanted


def _geometric(kind: Any) -> tuple[nn.Module, Batch]:
    errors: list[Exception] = []
    for more in (False, True):
        torch.manual_seed(0)
        graph = _graph()
        try:
            if kind.__name__ in _GEOMETRIC:
                model, inputs = _GEOMETRIC[kind.__name__](kind, graph)
            else:
                model, inputs = kind(**_arguments(kind)), None
            inputs = _graph_for(model, graph, more) if inputs is None else inputs
            with torch.no_grad():
                out = call(copy.deepcopy(model).eval(), inputs)
            if any(t.is_floating_point() for t in tensors(out)):
                return model, inputs
        except Exception as e:
            errors.append(e)
    raise errors[0] if errors else TypeError("its forward takes no simple graph")


def torch_geometric() -> list[Architecture]:
    """Every module of torch_geometric.nn."""
    import torch_geometric.nn as gnn

    kinds = {}
    for part in (gnn, gnn.models, gnn.conv, gnn.norm, gnn.pool, gnn.aggr, gnn.dense):
        for name, kind in vars(part).items():
            if (
                inspect.isclass(kind)
                and issubclass(kind, nn.Module)
                and name[0].isupper()
            ):
                kinds.setdefault(name, kind)
    return [
        Architecture(f"torch_geometric/{name}", lambda kind=kind: _geometric(kind))
        for name, kind in sorted(kinds.items())
    ]


# --- timm ---------------------------------------------------------------------------------------


def timm() -> list[Architecture]:
    """The smallest variant of each family, where timm is installed."""
    from timm import create_model, list_models, list_modules

    def build(name: str) -> tuple[nn.Module, Batch]:
        size = 224
        if _count(lambda: create_model(name, num_classes=5)) > 4 * MOST_PARAMETERS:
            raise RuntimeError("no small variant")
        model = create_model(name, num_classes=5).eval()
        size = model.pretrained_cfg.get("input_size", (3, size, size))
        return model, (torch.randn(2, *size),)

    found = []
    for family in list_modules():
        names = list_models(module=family)
        small = sorted(names, key=lambda n: (not any(s in n for s in _LITTLE), len(n)))
        if small:
            name = small[0]
            found.append(Architecture(f"timm/{name}", lambda name=name: build(name)))
    return found


_LITTLE = (
    "test_",
    "atto",
    "femto",
    "pico",
    "nano",
    "xxt",
    "tiny",
    "_t_",
    "_s",
    "18",
    "b0",
)
