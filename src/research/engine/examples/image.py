"""Predict pictures: `python example.py a.png b.jpg`. Needs numpy, onnxruntime and pillow alone."""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

folder = Path(__file__).parent
about = json.loads((folder / "model.json").read_text("utf-8"))
session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])

_, channels, height, width = about["inputs"][0]["shape"]
pictures = []
for name in sys.argv[1:]:
    picture = ImageOps.exif_transpose(Image.open(name)).convert("RGB" if channels == 3 else "L")
    picture = ImageOps.fit(picture, (width, height), Image.Resampling.BILINEAR)
    pictures.append(np.asarray(picture).reshape(height, width, channels).transpose(2, 0, 1))
output = np.asarray(session.run(None, {"x": np.stack(pictures).astype(np.float32) / 255})[0])
shares = np.exp((output - output.max(1, keepdims=True)) / about["temperature"])
shares /= shares.sum(1, keepdims=True)
for row in shares:
    found = dict(zip(about["classes"], row.tolist(), strict=True))
    print(json.dumps({"prediction": max(found, key=found.__getitem__), "probability": found}))
