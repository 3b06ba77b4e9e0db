"""Predict the rows of a CSV: `python example.py rows.csv`. Needs numpy and onnxruntime alone."""

import csv
import json
import re
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import onnxruntime

folder = Path(__file__).parent
about = json.loads((folder / "model.json").read_text("utf-8"))
session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])


def number(cell: str, column: dict) -> float:
    """A cell as the network takes it, by what model.json says of its column."""
    cell = cell.strip()
    if cell in about["missing"]:
        return np.nan
    if column["kind"] == "categorical":
        name = re.sub(r"^([+-]?(?:0|[1-9]\d*))\.0+$", r"\1", cell)  # 3.0 is 3, True is true
        name = name.lower() if name.lower() in ("true", "false") else name
        return column["categories"].index(name) if name in column["categories"] else -1
    if column["kind"] == "boolean":
        return float(cell.lower() in ("true", "yes", "t", "y"))
    value = date(cell, column) if column["kind"] == "date" else amount(cell, column["decimal"])
    return value - column["offset"]


def amount(cell: str, decimal: str) -> float:
    """A number without its unit and the marks between thousands; in brackets it is negative."""
    if not decimal:
        return float(cell)
    digits = re.sub(r"[^\d.,eE+-]", "", cell.replace("\u2212", "-").replace("\u2013", "-").replace("(", "-"))
    digits = re.findall(r"-?[\d.,]+(?:[eE][+-]?\d+)?", digits)[0]
    return float(digits.replace("." if decimal == "," else ",", "").replace(",", "."))


def date(cell: str, column: dict) -> float:
    """The days since 1970 of a date, or one of its places in the year, the week and the day."""
    form = column["date_format"]
    time = datetime.strptime(cell, form) if form else datetime.fromisoformat(cell)
    days = (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp() / 86400
    if column["part"] == "days":
        return days
    cycle, wave = column["part"].split()
    turns = {"year": days / 365.2425, "week": (days - 4) / 7, "day": days}[cycle]
    return getattr(np, wave)(2 * np.pi * (turns % 1))


with open(sys.argv[1], newline="", encoding="utf-8-sig") as file:
    rows = list(csv.DictReader(file))
columns = about["spec"]["columns"]
x = [[number(row[column["source"] or column["name"]], column) for column in columns] for row in rows]
x = np.array(x, dtype=np.float32)
output = np.asarray(session.run(None, {"x": x})[0])
if about["classes"]:
    shares = np.exp((output - output.max(1, keepdims=True)) / about["temperature"])
    shares /= shares.sum(1, keepdims=True)
    for row in shares:
        found = dict(zip(about["classes"], row.tolist(), strict=True))
        print(json.dumps({"prediction": max(found, key=found.__getitem__), "probability": found}))
else:
    offset = (about["spec"]["label"] or {"offset": 0})["offset"]
    for row in output.astype(np.float64) + offset:
        print(json.dumps({"prediction": row.tolist()}))
