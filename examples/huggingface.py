"""Code or prose? A tiny BERT on the text of the standard library, under guard."""

from __future__ import annotations

import ast
import json
import pathlib
import tempfile

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainingArguments,
)

from lightning_evalguard.huggingface import EvalGuardCallback

LENGTH = 64


def texts() -> list[dict[str, torch.Tensor]]:
    """Docstrings of the standard library (1) and its lines of code (0), as bytes."""
    samples: list[tuple[str, int]] = []
    for path in sorted(pathlib.Path(json.__file__).parents[1].glob("[a-h]*.py")):
        source = path.read_text(encoding="utf-8", errors="replace")
        nodes = (
            n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef)
        )
        samples += [(doc, 1) for node in nodes if (doc := ast.get_docstring(node))][:6]
        samples += [
            (line.strip(), 0) for line in source.splitlines()[80:400:20] if line.strip()
        ]
    # some lines stand in many files: each once, or they stand in both sets
    once = list(
        {text.encode()[:LENGTH]: (text, label) for text, label in samples}.values()
    )
    made = torch.Generator().manual_seed(0)
    order = torch.randperm(len(once), generator=made)[:600]
    return [encoded(*once[i]) for i in order.tolist()]


def encoded(text: str, label: int) -> dict[str, torch.Tensor]:
    ids = torch.tensor(list(text.encode()[:LENGTH].ljust(LENGTH, b"\0")))
    mask = (ids != 0).long()
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor(label)}


def main() -> None:
    config = BertConfig(
        vocab_size=256, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=LENGTH, id2label={0: "code", 1: "prose"},
    )  # fmt: skip
    data, guard = texts(), EvalGuardCallback()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, num_train_epochs=2, learning_rate=5e-3, eval_strategy="epoch", report_to=[],
            save_strategy="best", metric_for_best_model="f1_macro", load_best_model_at_end=True,
            use_cpu=True, disable_tqdm=True, per_device_train_batch_size=32,
            per_device_eval_batch_size=50,
        )  # fmt: skip
        torch.manual_seed(0)
        model = BertForSequenceClassification(config)
        trainer = Trainer(model, arguments, train_dataset=data[:450], eval_dataset=data[450:],
                          callbacks=[guard])  # fmt: skip
        trainer.train()
    print(guard.report)


if __name__ == "__main__":
    main()
