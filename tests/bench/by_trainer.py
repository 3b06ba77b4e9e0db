"""Fine-tuning with transformers' Trainer, on the same texts, weights, split and number of epochs as ours.

python tests/bench/by_trainer.py OUT frozen|full EPOCHS default|grouped [bf16]
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments

from research.data.docstrings import Docstrings
from research.engine.pretrained import PACKAGED, locate, tokenizer

PACKAGES = ["tkinter", "distutils", "asyncio", "email", "importlib", "logging", "xml", "multiprocessing"]
FRACTIONS = [0.8, 0.04, 0.16]
RATES = {"frozen": 3e-3, "full": 5e-5}


def main(out: str, what: str, epochs: str, sampling: str, precision: str = "") -> None:
    data = Docstrings(
        PACKAGES,
        batch_size=32,
        max_length=128,
        fractions=FRACTIONS,
        split_seed=0,
        split="random",
        duplicates=True,
        tokenizer=None,
        shuffle=True,
        seed=0,
    )
    data.setup()
    rows: dict[str, Any] = {
        name: [{"input_ids": ids.tolist(), "labels": int(y)} for ids, y in zip(part.ids, part.y, strict=True)]  # pyright: ignore
        for name, part in data.rows.items()
    }
    model: Any = AutoModelForSequenceClassification.from_pretrained(locate(PACKAGED), num_labels=len(PACKAGES))
    if what == "frozen":
        for parameter in model.base_model.parameters():
            parameter.requires_grad = False
    more: dict[str, Any] = {"train_sampling_strategy": "group_by_length"} if sampling == "grouped" else {}
    with tempfile.TemporaryDirectory() as place:
        arguments = TrainingArguments(
            output_dir=place,
            num_train_epochs=int(epochs),
            learning_rate=RATES[what],
            per_device_train_batch_size=32,
            per_device_eval_batch_size=32,
            report_to="none",
            use_cpu=not torch.cuda.is_available(),
            bf16=precision == "bf16",
            **more,
        )
        trainer = Trainer(
            model=model, args=arguments, train_dataset=rows["train"], processing_class=tokenizer(PACKAGED)
        )
        trainer.train()
        predicted: Any = trainer.predict(rows["test"])
    accuracy = float((predicted.predictions.argmax(1) == predicted.label_ids).mean())
    Path(out).write_text(json.dumps({"test/acc": accuracy}))


if __name__ == "__main__":
    main(*sys.argv[1:])
