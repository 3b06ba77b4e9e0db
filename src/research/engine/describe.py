"""What is in the data of a run: on the screen, on a page, as a picture in TensorBoard. The job of `src/describe.py`."""

import base64
import io
import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from research.data.base import Data
from research.data.batches import spread
from research.data.spec import Column

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

    data = read_data(cfg)
    write_page(data, folder, figure(data), tell(data))
    log.info("page       %s", os.path.relpath(folder / PAGE))


def tell(data: Data, most: int | None = None) -> list[Section]:
    """Says what there is, and shows each table; gives the tables.

    Args:
        most: rows of a table that are shown; None for all.
    """
    from research.engine.report import show  # takes seconds, and pages need it not

    log.info("data       %s", data.spec)
    made = sections(data)
    for section in made:
        log.info("\n%s", section.title)
        rest = len(section.rows[most:]) if most else 0
        more = [(f"... and {rest} more, see {PAGE}", *[""] * (len(section.columns) - 1))] if rest else []
        show(section.columns, [*section.rows[:most], *more])
    return made


def write_page(data: Data, folder: Path, picture: Any, made: list[Section]) -> None:
    """`data.html` in a folder: tables, the picture, what was warned of."""
    from jinja2 import Environment

    stream = io.BytesIO()
    picture.savefig(stream, format="png", dpi=110)
    template = Environment(autoescape=True).from_string((Path(__file__).with_name("describe.html")).read_text("utf-8"))
    encoded = base64.b64encode(stream.getvalue()).decode()
    page = template.render(spec=data.spec, sections=made, findings=data.findings, picture=encoded)
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
        y = rows.labels.double().flatten() + (spec.label.offset if spec.label else 0.0)
        values = (y.mean(), y.std(correction=0), y.min(), y.median(), y.max())
        stats.append((name, *(f"{float(value):.4g}" for value in values)))
    return Section("Target", ("split", "mean", "std", "min", "median", "max"), stats)


def _sample(data: Data) -> torch.Tensor:
    """(n, D) cells of training rows."""
    rows = data.rows["train"]
    x = rows[spread(len(rows), SAMPLE)][0]
    assert isinstance(x, torch.Tensor)
    return _as_in_file(data, x)


def _as_in_file(data: Data, x: torch.Tensor) -> torch.Tensor:
    """(n, D) of the columns of the file, of the numbers that the network is given."""
    known = _known(data)
    if not data.spec.columns:
        return x.double()
    index = [data.spec.columns.index(column) for column in known]
    return x[:, index].double() + torch.tensor([column.offset for column in known], dtype=torch.float64)


def _known(data: Data) -> list[Column]:
    """The columns of the file, of a date its first part; those of data without names are all numbers."""
    first = {column.cell: column for column in reversed(data.spec.columns)}
    return [*reversed(first.values())] or [Column(f"x{i}", "numeric") for i in range(data.spec.shape[0])]


def _columns(data: Data) -> Iterator[Section]:
    x, total = _sample(data), data.num_rows["train"]
    rows = []
    for column, cells in zip(_known(data), x.T, strict=True):
        there = cells[~cells.isnan()]
        if column.kind == "categorical":
            distinct, holds = f"{len(column.categories):,} categories", _listed(column.categories, NUM_EXAMPLES)
        else:
            distinct = f"{len(there.unique()):,} values"
            holds = " ... ".join(_cell(there.quantile(q), column) for q in (0, 0.5, 1)) if len(there) else ""
        missing = len(cells) - len(there)
        rows.append(
            (column.cell, column.kind, f"{missing:,} ({missing / len(x):.1%})" if missing else "", distinct, holds)
        )
    which = "training rows" if len(x) == total else f"{len(x):,} of {total:,} training rows"
    yield Section(f"Columns, in {which}", ("column", "kind", "missing", "distinct", "holds"), rows)
    made = _examples(data, NUM_EXAMPLES)
    lines = [tuple(cells) for cells in zip(["target", *(column.cell for column in _known(data))], *made, strict=True)]
    yield Section("Examples, of training rows", ("column", *[""] * len(made)), lines)


def _examples(data: Data, most: int) -> list[list[str]]:
    """The target and the cells of a few training rows, as they are in the file."""
    rows, spec = data.rows["train"], data.spec
    x, y = rows[spread(len(rows), most)]
    assert isinstance(x, torch.Tensor)
    if spec.target == "class":
        target = [spec.classes[int(code)] for code in y]
    else:
        shift = spec.label.offset if spec.label else 0.0
        target = [", ".join(f"{float(value) + shift:.4g}" for value in values) for values in y]
    return [
        [name, *(_cell(cell, column) for cell, column in zip(row, _known(data), strict=True))]
        for name, row in zip(target, _as_in_file(data, x), strict=True)
    ]


def _cell(value: Any, column: Column) -> str:
    if value.isnan():
        return ""
    if column.kind == "categorical":
        return column.categories[int(value)] if value >= 0 else "(rare)"
    if column.kind == "boolean":
        return "yes" if value else "no"
    if column.kind == "date" and column.part in ("", "days"):
        return str(np.datetime64(int(value.floor()), "D"))  # float32 has no minutes
    return f"{float(value):.4g}"


def _listed(names: Iterable[str], most: int) -> str:
    known = list(names)
    return ", ".join(known[:most]) + (", ..." if len(known) > most else "")


def _texts(data: Any) -> Iterator[Section]:
    from research.engine.pretrained import PACKAGED, tokenizer

    rows = []
    for name, held in data.rows.items():
        marks = np.quantile(held.lengths.numpy(), (0, 0.25, 0.5, 0.75, 1))
        rows.append((name, *(f"{mark:.0f}" for mark in marks)))
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
        x, y = rows[spread(len(rows), NUM_PLOTS)]
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
        column = _known(data)[self.index] if data.spec.columns else None
        there = self.values[~self.values.isnan()].numpy()
        if column and column.kind == "categorical":
            counts = torch.bincount(torch.from_numpy(there).clamp(min=0).long(), minlength=len(column.categories))[:20]
            ax.bar(range(len(counts)), counts.tolist())
            ax.set_xticks(range(len(counts)), [_cut(name) for name in column.categories[:20]], rotation="vertical")
        else:
            ax.hist(there, bins=30)
        ax.set_title(_cut(column.cell, 28) if column else f"x{self.index}")


def _cut(name: str, most: int = 12) -> str:
    return name if len(name) <= most else name[: most - 3] + "..."
