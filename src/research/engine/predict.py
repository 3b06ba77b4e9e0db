"""The job behind `python src/predict.py`: rows in, the same rows with predictions out, in constant memory."""

import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from research.engine.calibration import calibrated, decision, read_calibration
from research.engine.errors import UserError, unknown
from research.engine.record import finite

log = logging.getLogger(__name__)

SUFFIXES = (".csv", ".jsonl", ".parquet")
NUM_TOLD = 20  # rows that could not be read
LOCATED_BYTES = 8 << 20  # of a file in which their lines are looked up, which reads it again for each
ROWS, TEXTS = 4096, 64  # that the network sees at once


def predict(cfg: DictConfig, folder: Path) -> None:
    """Writes every row of `input` in its order, with all its columns, and behind them `prediction` (a class or a
    number) and `probability_<class>`. A row that cannot be read has none, and is told.

    Raises:
        UserError: a wrong path or form, a column that the run needs and the file lacks, or no row that can be read.
    """
    given, out = str(cfg.input), Path(str(cfg.output))
    _check_paths(given, out)

    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TimeElapsedColumn

    from research.engine.opened import opened

    parts = opened(cfg, folder, cached=False, read=False)
    calibration = read_calibration(folder, cfg.get("checkpoint", "best"))
    threshold = decision(cfg.get("threshold"), calibration, parts.task.spec, folder)
    if parts.task.spec.target == "class" and not parts.task.spec.classes:
        raise UserError(f"'{folder.name}' predicts hidden words, no classes; first train model=bert on its weights.")
    parts.task = parts.trainer.precision_plugin.convert_module(parts.task)
    parts.task.to(parts.trainer.strategy.root_device).eval()
    unread = Unread()
    columns = (SpinnerColumn(), "rows", MofNCompleteColumn(), TimeElapsedColumn())
    with _written(out) as write, Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("rows", total=None)
        try:
            stream: Any = parts.data.inputs(given)
            with closing(stream):
                for inputs in stream:
                    write(_with_predictions(inputs, parts, calibration.temperature, threshold))
                    unread.add(inputs)
                    progress.update(bar, completed=unread.num_rows)
        except UserError:
            raise
        except ValueError as error:
            raise UserError(f"{error}.") from error
        if unread.num == unread.num_rows:
            why = unread.first[0][1] if unread.first else ""
            raise UserError(f"none of the {unread.num_rows} rows can be read; the first: {why}.")
    for row, why in unread.first:
        log.warning("row %d cannot be read and has no prediction: %s%s", row + 1, _place(given, parts, row), why)
    if unread.num > NUM_TOLD:
        log.warning("... and %d more", unread.num - NUM_TOLD)
    if calibration.temperature != 1:
        log.info("calibrated by the run's temperature, %.4f", calibration.temperature)
    log.info("predicted  %d of %d rows", unread.num_rows - unread.num, unread.num_rows)
    log.info("output     %s", out)


@dataclass
class Unread:
    """How many rows there were, how many of them could not be read, and the first of those, with the reason."""

    num_rows: int = 0
    num: int = 0
    first: list[tuple[int, str]] = field(default_factory=list)

    def add(self, inputs: Any) -> None:
        """The next rows."""
        room = NUM_TOLD - len(self.first)
        self.first += [(self.num_rows + row, why) for row, why in inputs.wrong[:room]]
        self.num += len(inputs.wrong)
        self.num_rows += len(inputs.given)


def _check_paths(given: str, out: Path) -> None:
    if out.suffix not in SUFFIXES:
        raise UserError(f"output={out}: {unknown('form', out.suffix, SUFFIXES)}")
    if given == "-":
        return
    try:
        os.stat(given)
        same = Path(given).resolve() == out.resolve()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"input={given}: there is no such file or folder; - reads CSV from standard input.") from error
    except OSError as error:
        raise UserError(f"input={given} cannot be read: {error.strerror}.") from error
    if same:
        raise UserError(f"output={out} is the input; give the predictions another file.")


def _place(given: str, parts: Any, row: int) -> str:
    """The file and line of a row, where it is cheap to find; of a picture the reason names the file."""
    if given == "-" or parts.data.spec.kind == "image":
        return ""
    from research.data.files import listed, locate

    cheap = sum(file.stat().st_size for file in listed(Path(given))) <= LOCATED_BYTES
    return f"{locate(given, row, dialect=parts.data.dialect)}: " if cheap else ""


def _with_predictions(inputs: Any, parts: Any, temperature: float, threshold: float | None) -> Any:
    """The rows with the columns of predictions behind them.

    Args:
        temperature: of the probabilities.
        threshold: from which on a row is of the second of two classes; None for the likeliest class.
    """
    import pyarrow as pa
    import torch

    spec, num_rows = parts.task.spec, len(inputs.given)
    found = _predicted(inputs.x, parts) if len(inputs.good) else torch.empty(0, spec.num_outputs)
    there = [None] * num_rows

    def column(values: list[Any], kind: Any) -> Any:
        cells = list(there)
        for row, value in zip(inputs.good.tolist(), values, strict=True):
            cells[row] = value
        return pa.array(cells, kind)

    if spec.target == "class":
        found = calibrated(found, temperature)
        codes = found.argmax(1) if threshold is None else (found[:, 1] >= threshold).long()
        new = {"prediction": column([spec.classes[i] for i in codes.tolist()], pa.string())}
        for name, share in zip(spec.classes, found.T, strict=True):
            new[f"probability_{name}"] = column(share.tolist(), pa.float32())
    else:
        names = ["prediction"] if spec.num_outputs == 1 else [f"prediction_{i}" for i in range(spec.num_outputs)]
        shift = spec.label.offset if spec.label else 0.0  # float32 has no room for it
        kind = pa.float64() if shift else pa.float32()
        new = {name: column((v.double() + shift).tolist(), kind) for name, v in zip(names, found.T, strict=True)}
    table = pa.Table.from_batches([inputs.given])
    if twice := [name for name in new if name in table.column_names]:
        raise UserError(f"the input has a column '{twice[0]}' already; rename it.")
    for name, values in new.items():
        table = table.append_column(name, values)
    return table


def _predicted(x: Any, parts: Any) -> Any:
    """What the task predicts of all x, (n, C) or (n, K), in the precision of the run.

    Texts go through it by length, so that little is padded.
    """
    import torch
    from lightning.fabric.utilities import move_data_to_device

    plugin, device = parts.trainer.precision_plugin, parts.trainer.strategy.root_device

    def of(part: Any) -> Any:
        with plugin.forward_context():
            raw, _ = parts.task.answer((move_data_to_device(plugin.convert_input(part), device), None), 0)
        return parts.task.predicted(raw).cpu()

    if isinstance(x, torch.Tensor):
        return torch.cat([of(part) for part in x.split(ROWS)])
    order = x.lengths.argsort(stable=True)
    return torch.cat([of(x[index][0]) for index in order.split(TEXTS)])[order.argsort()]


@contextmanager
def _written(out: Path) -> Iterator[Callable[[Any], None]]:
    """Writes tables one behind the other into a file that is there whole, or not at all."""
    import torch

    part = out.with_name(f".{out.name}.part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack, torch.inference_mode():
            writers: list[Callable[[Any], None]] = []

            def write(table: Any) -> None:
                if not writers:
                    writers.append(_writer(out.suffix, part, table.schema, stack))
                writers[0](table)

            yield write
        part.replace(out)
    except OSError as error:
        raise UserError(f"output={out} cannot be written: {error.strerror or error}.") from error
    finally:
        with suppress(OSError):
            part.unlink()


def _writer(form: str, path: Path, schema: Any, stack: ExitStack) -> Callable[[Any], None]:
    if form == ".jsonl":
        stream = stack.enter_context(path.open("w", encoding="utf-8"))
        return lambda table: stream.writelines(_line(row) + "\n" for row in table.to_pylist())
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    kind: Any = pyarrow.csv.CSVWriter if form == ".csv" else pyarrow.parquet.ParquetWriter
    for column in schema:
        _check_type(column, form, kind)
    writer = stack.enter_context(kind(str(path), schema))

    def write(table: Any) -> None:
        columns = []
        for column, cells in zip(schema, table.columns, strict=True):
            try:
                columns.append(cells.cast(column.type))
            except pa.ArrowException as error:
                raise UserError(
                    f"column '{column.name}' is {cells.type} in some rows and {column.type} in those before, which a "
                    f"{form} file cannot hold; remove it, or take output=....jsonl."
                ) from error
        writer.write_table(pa.Table.from_arrays(columns, schema=schema))

    return write


def _check_type(column: Any, form: str, kind: Any) -> None:
    """Raises a UserError where a file of a form cannot hold a column: by writing none of its rows."""
    import pyarrow as pa

    schema = pa.schema([column])
    try:
        with kind(pa.BufferOutputStream(), schema) as writer:
            writer.write_table(schema.empty_table())
    except pa.ArrowException as error:
        raise UserError(
            f"column '{column.name}' is {column.type}, which a {form} file cannot hold; remove it, or take "
            "output=....jsonl."
        ) from error


def _line(row: dict[str, Any]) -> str:
    settings: dict[str, Any] = {"ensure_ascii": False, "default": str, "allow_nan": False}
    try:
        return json.dumps(row, **settings)
    except ValueError:  # of a number that JSON does not have
        return json.dumps(finite(row), **settings)
