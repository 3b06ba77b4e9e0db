"""The loop a careful person writes by hand for the work of `python src/train.py`; the yardstick of `make bench`.

Stratified split, scaling on train, Adam, dropout, four metrics and the loss on val each epoch, TensorBoard curves,
best and last checkpoint each epoch, a progress bar, the best checkpoint on val and test, a JSON of the result.

    python tests/bench/by_hand.py FOLDER mlp|cnn EPOCHS
"""

import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from torchmetrics import MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassAUROC,
    MulticlassCalibrationError,
    MulticlassF1Score,
)
from tqdm import tqdm


def mlp() -> nn.Module:
    layers = [[nn.Linear(a, b), nn.LayerNorm(b), nn.ReLU(), nn.Dropout(0.1)] for a, b in pairwise([64, 256, 256])]
    return nn.Sequential(nn.Flatten(), *(part for layer in layers for part in layer), nn.Linear(256, 10))


def cnn() -> nn.Module:
    class Block(nn.Module):
        def __init__(self, i: int, o: int, stride: int) -> None:
            super().__init__()
            self.body = nn.Sequential(
                nn.Conv2d(i, o, 3, stride, 1, bias=False),
                nn.BatchNorm2d(o),
                nn.ReLU(),
                nn.Conv2d(o, o, 3, 1, 1, bias=False),
                nn.BatchNorm2d(o),
            )
            same = stride == 1 and i == o
            self.skip = (
                nn.Identity() if same else nn.Sequential(nn.Conv2d(i, o, 1, stride, bias=False), nn.BatchNorm2d(o))
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.body(x) + self.skip(x))

    stem = [nn.Conv2d(1, 32, 3, 1, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU()]
    return nn.Sequential(
        *stem,
        Block(32, 32, 1),
        Block(32, 64, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(64, 10),
    )


def main(folder: Path, model: str, epochs: int) -> None:
    torch.manual_seed(42)
    digits: Any = load_digits()
    x = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    y = torch.tensor(digits.target)
    rest, test = train_test_split(range(len(y)), test_size=0.15, random_state=0, stratify=y)
    train, val = train_test_split(rest, test_size=0.15 / 0.85, random_state=0, stratify=y[rest])
    x = (x - x[train].mean()) / x[train].std()
    rows = {name: (x[ids], y[ids]) for name, ids in (("train", train), ("val", val), ("test", test))}
    net = {"mlp": mlp, "cnn": cnn}[model]()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    criterion = nn.CrossEntropyLoss()
    metrics = MetricCollection(
        {
            "acc": MulticlassAccuracy(10, average="micro", validate_args=False),
            "f1": MulticlassF1Score(10, validate_args=False),
            "auroc": MulticlassAUROC(10, validate_args=False),
            "ece": MulticlassCalibrationError(10, validate_args=False),
        }
    )

    def score(split: str) -> dict[str, float]:
        net.eval()
        metrics.reset()
        total, (xs, ys) = 0.0, rows[split]
        with torch.inference_mode():
            for i in range(0, len(ys), 64):
                logits = net(xs[i : i + 64])
                total += criterion(logits, ys[i : i + 64]).item() * len(logits)
                metrics.update(logits.softmax(1), ys[i : i + 64])
        values = {name: value.item() for name, value in metrics.compute().items()}
        return {f"{split}/{name}": value for name, value in {"loss": total / len(ys), **values}.items()}

    writer, best, step = SummaryWriter(str(folder)), float("inf"), 0
    xs, ys = rows["train"]
    for epoch in range(epochs):
        net.train()
        bar = tqdm(torch.randperm(len(ys)).split(64), desc=f"epoch {epoch}", leave=False)
        total = torch.zeros(())
        for batch in bar:
            loss = criterion(net(xs[batch]), ys[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(batch)
            if step % 10 == 9:
                writer.add_scalar("train/loss_step", loss.item(), step)
                bar.set_postfix(loss=loss.item())
            step += 1
        values = {"train/loss": total.item() / len(ys), **score("val")}
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        state = {"net": net.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}
        torch.save(state, folder / "last.ckpt")
        if values["val/loss"] < best:
            best = values["val/loss"]
            torch.save(state, folder / "best.ckpt")
    net.load_state_dict(torch.load(folder / "best.ckpt", weights_only=True)["net"])
    (folder / "metrics.json").write_text(json.dumps({**score("val"), **score("test")}))
    writer.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
