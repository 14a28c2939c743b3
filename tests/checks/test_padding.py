"""Outputs that depend on the padding are found in models of all kinds; masks keep them silent."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from lightning_evalguard import EvalGuard, EvalGuardWarning, Report

Make = Callable[..., pl.Trainer]
WORDS = 30


def sentences(n: int = 12) -> list[Tensor]:
    made = torch.Generator().manual_seed(0)
    return [
        torch.randint(1, WORDS, (3 + 2 * (i % 4),), generator=made) for i in range(n)
    ]


def right(samples: list[Tensor]) -> dict[str, Tensor]:
    ids = pad_sequence(samples, batch_first=True)
    lengths = torch.tensor([len(x) for x in samples])
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    return {"input_ids": ids, "attention_mask": mask, "labels": lengths % 2}


def left(samples: list[Tensor]) -> dict[str, Tensor]:
    batch = right([x.flip(0) for x in samples])
    return {k: v.flip(1) if v.dim() > 1 else v for k, v in batch.items()}


def to_length(samples: list[Tensor]) -> dict[str, Tensor]:
    """Padded to one length for good: each batch has the same."""
    batch = right([*samples, torch.ones(16, dtype=torch.int64)])
    return {k: v[:-1] for k, v in batch.items()}


class Step(pl.LightningModule):
    """Runs `act(net, batch)` in its validation step."""

    def __init__(self, net: nn.Module, act: Callable[[Any, Any], Any]) -> None:
        super().__init__()
        self.net, self.act = net, act

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return sum(p.sum() for p in self.parameters()) * 0.0  # type: ignore[return-value]

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        return self.act(self.net, batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def guarded(
    trainer: Make,
    net: nn.Module,
    act: Any,
    collate: Any = right,
    data: Any = None,
    **kwargs: Any,
) -> Report:
    guard = EvalGuard(data="ignore", weights="ignore", metrics=None, sync="ignore")
    loader: DataLoader[Any] = DataLoader(
        sentences() if data is None else data,
        4,
        collate_fn=collate,
        **kwargs,  # type: ignore[arg-type]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EvalGuardWarning)
        warnings.filterwarnings("ignore", message=".*num_workers.*")
        trainer(callbacks=[guard]).fit(Step(net.train(), act), loader, loader)
    return guard.report


# --- transformers ---------------------------------------------------------------------------------


def bert() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=WORDS, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=32,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config)  # type: ignore[no-any-return]


def gpt2() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=WORDS, n_embd=16, n_layer=2, n_head=2, n_positions=32, bos_token_id=1,
        eos_token_id=1,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)  # type: ignore[no-any-return]


def t5() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=WORDS, d_model=16, d_kv=8, d_ff=16, num_layers=2, num_heads=2,
        decoder_start_token_id=0,
    )  # fmt: skip
    return transformers.T5ForConditionalGeneration(config)  # type: ignore[no-any-return]


def masked(net: Any, batch: Any) -> Any:
    return {"logits": net(**batch).logits}


def unmasked(net: Any, batch: Any) -> Any:
    return {"logits": net(input_ids=batch["input_ids"], labels=batch["labels"]).logits}


def only_loss(net: Any, batch: Any) -> None:
    net(input_ids=batch["input_ids"], labels=batch["labels"])


def last_word(net: Any, batch: Any) -> Any:
    logits = net(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
    ).logits
    return {"logits": logits[:, -1]}


def own_last_word(net: Any, batch: Any) -> Any:
    mask = batch["attention_mask"]
    logits = net(input_ids=batch["input_ids"], attention_mask=mask).logits
    return {"logits": logits[torch.arange(len(mask)), mask.sum(1) - 1]}


def counted_places(net: Any, batch: Any) -> Any:
    mask = batch["attention_mask"]
    places = (mask.cumsum(1) - 1).clamp(min=0)
    ids = batch["input_ids"]
    logits = net(input_ids=ids, attention_mask=mask, position_ids=places).logits
    return {"logits": logits[:, -1]}


def raw_places(net: Any, batch: Any) -> Any:
    ids, mask = batch["input_ids"], batch["attention_mask"]
    places = torch.arange(ids.shape[1])[None]
    logits = net(input_ids=ids, attention_mask=mask, position_ids=places).logits
    return {"logits": logits[:, -1]}


def translated(net: Any, batch: Any) -> Any:
    ids, mask = batch["input_ids"], batch["attention_mask"]
    return {
        "logits": net(
            input_ids=ids, attention_mask=mask, labels=ids[:, :3].contiguous()
        ).logits
    }


def translated_unmasked(net: Any, batch: Any) -> Any:
    ids = batch["input_ids"]
    return {"logits": net(input_ids=ids, labels=ids[:, :3].contiguous()).logits}


FOUND: dict[str, tuple[Callable[[], nn.Module], Any, Any]] = {
    "bert without its mask": (bert, unmasked, right),
    "bert without its mask, which returns nothing": (bert, only_loss, right),
    "bert without its mask, padded to one length": (bert, unmasked, to_length),
    "gpt2 read at the last position": (gpt2, last_word, right),
    "gpt2 with places counted over the padding": (gpt2, raw_places, left),
    "t5 without its mask": (t5, translated_unmasked, right),
}
SILENT: dict[str, tuple[Callable[[], nn.Module], Any, Any]] = {
    "bert": (bert, masked, right),
    "bert padded to one length": (bert, masked, to_length),
    "gpt2 padded on the right": (gpt2, own_last_word, right),
    "gpt2 padded on the left": (gpt2, counted_places, left),
    "t5": (t5, translated, right),
}


@pytest.mark.parametrize("case", FOUND)
def test_a_transformer_that_reads_the_padding_is_found(
    case: str, trainer: Make
) -> None:
    make, act, collate = FOUND[case]
    report = guarded(trainer, make(), act, collate)
    assert [(f.check, f.certain) for f in report.findings] == [("batch", False)], report
    assert "depends on the padding" in report.findings[0].fact


@pytest.mark.parametrize("case", SILENT)
def test_a_transformer_with_its_mask_is_silent(case: str, trainer: Make) -> None:
    make, act, collate = SILENT[case]
    report = guarded(trainer, make(), act, collate)
    assert report.findings == []
    assert report.notes == []


# --- each token from the ones before it ----------------------------------------------------------


class Reader(nn.Module):
    """Says the next token; `looks_ahead` reads the whole row, padding and all."""

    def __init__(self, looks_ahead: bool, outputs: int = WORDS) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.head = nn.Embedding(WORDS, 8), nn.Linear(8, outputs)
        self.reads = nn.GRU(8, 4 if looks_ahead else 8, 1, True, True, 0.0, looks_ahead)

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.head(self.reads(self.words(ids))[0])
        return out


def next_in_rows(net: Any, batch: Any) -> None:
    ids = batch["input_ids"]
    logits = net(ids)[:, :-1].reshape(-1, WORDS)
    nn.functional.cross_entropy(logits, ids[:, 1:].reshape(-1), ignore_index=0)


def next_in_columns(net: Any, batch: Any) -> None:
    ids = batch["input_ids"].t()
    logits = net(ids.t()).transpose(0, 1)[:-1].flatten(0, 1)
    nn.functional.cross_entropy(logits, ids[1:].flatten(), ignore_index=0)


def with_a_start(net: Any, batch: Any) -> None:
    ids = batch["input_ids"]
    start = torch.ones_like(ids[:, :1])
    logits = net(torch.cat((start, ids), 1))[:, 1:-1].flatten(0, 1)
    nn.functional.cross_entropy(logits, ids[:, 1:].flatten(), ignore_index=0)


@pytest.mark.parametrize("act", [next_in_rows, next_in_columns, with_a_start])
def test_the_next_tokens_of_all_samples_in_one_dimension(
    act: Any, trainer: Make
) -> None:
    assert guarded(trainer, Reader(False), act).findings == []
    (found,) = guarded(trainer, Reader(True), act).findings
    assert "depends on the padding" in found.fact
    assert found.subject == "net.reads"


def test_as_many_outputs_as_positions_or_nearly(trainer: Make) -> None:
    def act(net: Any, batch: Any) -> None:
        net(batch["input_ids"])

    assert guarded(trainer, Reader(False, 20), act).findings == []
    (found,) = guarded(trainer, Reader(True, 20), act).findings
    assert found.subject == "net.reads"
