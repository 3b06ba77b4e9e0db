"""Predict texts: `python example.py "a text" "another"`. Needs numpy, onnxruntime and tokenizers alone."""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

folder = Path(__file__).parent
about = json.loads((folder / "model.json").read_text("utf-8"))
session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])

tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
tokenizer.enable_truncation(about["tokenizer"]["max_length"])
tokenizer.enable_padding(pad_id=about["tokenizer"]["pad_id"])
read = tokenizer.encode_batch([text.strip() for text in sys.argv[1:]])
inputs = {"input_ids": [text.ids for text in read], "attention_mask": [text.attention_mask for text in read]}
arrays = {name: np.array(value, dtype=np.int64) for name, value in inputs.items()}
output = np.asarray(session.run(None, arrays)[0])
shares = np.exp((output - output.max(1, keepdims=True)) / about["temperature"])
shares /= shares.sum(1, keepdims=True)
for row in shares:
    found = dict(zip(about["classes"], row.tolist(), strict=True))
    print(json.dumps({"prediction": max(found, key=found.__getitem__), "probability": found}))
