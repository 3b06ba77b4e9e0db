"""Predict rows of numbers: `python example.py rows.npy`, of shape (rows, numbers). Needs numpy and onnxruntime."""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime

folder = Path(__file__).parent
about = json.loads((folder / "model.json").read_text("utf-8"))
session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])

x = np.load(sys.argv[1], allow_pickle=False).astype(np.float32)
output = np.asarray(session.run(None, {"x": x})[0])
if about["classes"]:
    shares = np.exp((output - output.max(1, keepdims=True)) / about["temperature"])
    shares /= shares.sum(1, keepdims=True)
    for row in shares:
        found = dict(zip(about["classes"], row.tolist(), strict=True))
        print(json.dumps({"prediction": max(found, key=found.__getitem__), "probability": found}))
else:
    for row in output:
        print(json.dumps({"prediction": row.tolist()}))
