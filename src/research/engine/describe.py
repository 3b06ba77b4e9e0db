"""What is in the data of a run: on the screen, on a page, as a picture in TensorBoard. The job of `src/describe.py`."""

import base64
import io
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from research.data.base import Data

log = logging.getLogger(__name__)

NUM_CLASSES = 30  # that are listed
SAMPLE = 20_000  # training rows that columns are described by
NUM_EXAMPLES = 5
NUM_PLOTS = 11  # beside the one of the target
PAGE = "data.html"


@dataclass(frozen=True)
class Section:
    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]


def describe(cfg: DictConfig, folder: Path) -> None:
    """Reads and splits as a run does; shows what there is, and writes `data.html`.

    Raises:
        UserError: whatever a run on this data would end with.
    """
    from research.engine.build import read_data
    from research.engine.report import show

    data = read_data(cfg)
    for section in sections(data):
        log.info("%s", section.title)
        show(section.columns, section.rows)
    write_page(data, folder, figure(data))
    log.info("page       %s", os.path.relpath(folder / PAGE))


def write_page(data: Data, folder: Path, picture: Any) -> None:
    """`data.html` in a folder: tables, the picture, what was warned of."""
    from jinja2 import Environment

    stream = io.BytesIO()
    picture.savefig(stream, format="png", dpi=110)
    template = Environment(autoescape=True).from_string((Path(__file__).with_name("describe.html")).read_text("utf-8"))
    encoded = base64.b64encode(stream.getvalue()).decode()
    page = template.render(spec=data.spec, sections=sections(data), findings=data.findings, picture=encoded)
    (folder / PAGE).write_text(page, encoding="utf-8")


def sections(data: Data) -> list[Section]:
    """Tables of rows, target, and what x is made of."""
    total = sum(data.num_rows.values())
    rows = [(name, f"{count:,}", f"{count / total:.1%}") for name, count in data.num_rows.items()]
    found = [Section("Rows", ("split", "rows", "share"), rows), _target(data)]
    more = {"features": _columns, "text": _texts, "image": _images}[data.spec.kind]
    return [*found, *more(data)]


def _target(data: Data) -> Section:
    spec = data.spec
    if spec.target == "class":
        counts = {n: torch.bincount(r.labels, minlength=len(spec.classes)).tolist() for n, r in data.rows.items()}
        rows = [(name, *(f"{of[i]:,}" for of in counts.values())) for i, name in enumerate(spec.classes)]
        rest = f"... and {len(rows) - NUM_CLASSES} more"
        more = [(rest, *[""] * len(counts))] if len(rows) > NUM_CLASSES else []
        return Section("Classes", ("class", *counts), rows[:NUM_CLASSES] + more)
    stats = []
    for name, rows in data.rows.items():
        y = rows.labels.double().flatten()
        values = (y.mean(), y.std(correction=0), y.min(), y.median(), y.max())
        stats.append((name, *(f"{float(value):.4g}" for value in values)))
    return Section("Target", ("split", "mean", "std", "min", "median", "max"), stats)


def _sample(data: Data) -> torch.Tensor:
    """(n, D) cells of training rows."""
    rows = data.rows["train"]
    x = rows[torch.linspace(0, len(rows) - 1, min(SAMPLE, len(rows))).long()][0]
    assert isinstance(x, torch.Tensor)
    return x


def _columns(data: Data) -> Iterator[Section]:
    x = _sample(data).double()
    names = [column.name for column in data.spec.columns] or [f"x{i}" for i in range(x.shape[1])]
    rows = []
    for index, name in enumerate(names):
        column = data.spec.columns[index] if data.spec.columns else None
        there = x[:, index][~x[:, index].isnan()]
        kind, missing = column.kind if column else "numeric", 1 - len(there) / len(x)
        if kind == "categorical":
            assert column
            shown = ", ".join(column.categories[:NUM_EXAMPLES]) + (", ..." if len(column.categories) > 5 else "")
            cells = (f"{len(column.categories)} categories", shown)
        else:
            low, mid, high = (float(there.quantile(q)) for q in (0, 0.5, 1)) if len(there) else (0, 0, 0)
            cells = (f"{len(there.unique()):,} values", f"{low:.4g} ... {mid:.4g} ... {high:.4g}")
        rows.append((name, kind, f"{missing:.1%}" if missing else "", *cells))
    yield Section("Columns, in training rows", ("column", "kind", "missing", "distinct", "holds"), rows)


def _texts(data: Any) -> Iterator[Section]:
    from research.engine.pretrained import PACKAGED, tokenizer

    rows = []
    for name, held in data.rows.items():
        lengths = held.lengths.double()
        rows.append((name, *(f"{float(lengths.quantile(q)):.0f}" for q in (0, 0.25, 0.5, 0.75, 1))))
    yield Section("Tokens of a text", ("split", "least", "1/4", "median", "3/4", "most"), rows)
    made, train = tokenizer(data.tokenizer or PACKAGED), data.rows["train"]
    shown = [
        (data.spec.classes[int(train.y[i])], _short(made, train.ids[i])) for i in range(min(NUM_EXAMPLES, len(train)))
    ]
    yield Section("Examples, as the network reads them", ("class", "text"), shown)


def _short(made: Any, ids: Any) -> str:
    text = str(made.decode(ids, skip_special_tokens=True))
    return text if len(text) <= 160 else text[:157] + "..."


def _images(data: Any) -> Iterator[Section]:
    sizes = getattr(data, "sizes", None)  # of files; a bundled dataset has one size
    if sizes:
        both = torch.tensor(sizes, dtype=torch.float64)
        names = ("width", "height")
        cells = [(n, *(f"{float(v.quantile(q)):.0f}" for q in (0, 0.5, 1))) for n, v in zip(names, both.T, strict=True)]
        yield Section("Pixels of a picture, as in its file", ("", "least", "median", "most"), cells)


def figure(data: Data) -> Any:
    """The target, and of what x is made of: histograms, or a few pictures."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib.figure import Figure

    plots = [_plot_target, *_plots(data)]
    across = min(4, len(plots))
    down = -(-len(plots) // across)
    made = Figure(figsize=(3.2 * across, 2.4 * down), layout="constrained")
    axes = list(made.subplots(down, across, squeeze=False).flat)
    for plot, ax in zip(plots, axes, strict=False):
        plot(data, ax)
        ax.title.set_fontsize(9)
        ax.tick_params(labelsize=7)
    for ax in axes[len(plots) :]:
        ax.axis("off")
    return made


def _plot_target(data: Data, ax: Any) -> None:
    spec = data.spec
    if spec.target == "value":
        ax.hist(data.rows["train"].labels.flatten().numpy(), bins=30)
        ax.set_title("target, training rows")
        return
    counts = torch.bincount(data.rows["train"].labels, minlength=len(spec.classes))[:NUM_CLASSES].tolist()
    ax.bar(range(len(counts)), counts)
    ax.set_xticks(range(len(counts)), [_cut(name) for name in spec.classes[:NUM_CLASSES]], rotation="vertical")
    ax.set_title("training rows of each class")


def _plots(data: Any) -> list[Any]:
    if data.spec.kind == "text":
        return [_plot_lengths]
    if data.spec.kind == "image":
        rows = data.rows["train"]
        x, y = rows[torch.linspace(0, len(rows) - 1, min(NUM_PLOTS, len(rows))).long()]
        return [_Picture(picture, data.spec.classes[int(label)]) for picture, label in zip(x, y, strict=True)]
    x = _sample(data)
    return [_Column(x[:, index], index) for index in range(min(NUM_PLOTS, x.shape[1]))]


def _plot_lengths(data: Any, ax: Any) -> None:
    ax.hist(data.rows["train"].lengths.numpy(), bins=30)
    ax.set_title("tokens of a training text")


@dataclass(frozen=True)
class _Picture:
    pixels: Any  # (C, H, W)
    name: str

    def __call__(self, data: Any, ax: Any) -> None:
        ax.imshow(self.pixels.permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray")
        ax.set_title(self.name)
        ax.axis("off")


@dataclass(frozen=True)
class _Column:
    values: Any  # (n,)
    index: int

    def __call__(self, data: Any, ax: Any) -> None:
        column = data.spec.columns[self.index] if data.spec.columns else None
        there = self.values[~self.values.isnan()].numpy()
        if column and column.kind == "categorical":
            counts = torch.bincount(torch.from_numpy(there).clamp(min=0).long(), minlength=len(column.categories))[:20]
            ax.bar(range(len(counts)), counts.tolist())
            ax.set_xticks(range(len(counts)), [_cut(name) for name in column.categories[:20]], rotation="vertical")
        else:
            ax.hist(there, bins=30)
        ax.set_title(_cut(column.name, 28) if column else f"x{self.index}")


def _cut(name: str, most: int = 12) -> str:
    return name if len(name) <= most else name[: most - 3] + "..."
