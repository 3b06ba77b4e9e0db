"""The job behind `python src/predict.py`: rows in, the same rows with predictions out, in constant memory."""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from research.engine.errors import UserError, unknown

log = logging.getLogger(__name__)

SUFFIXES = (".csv", ".jsonl", ".parquet")
NUM_TOLD = 20  # rows that could not be read
ROWS, TEXTS = 4096, 64  # that the network sees at once


def predict(cfg: DictConfig, folder: Path) -> None:
    """Writes every row of `input` in its order, with all its columns, and behind them `prediction` (a class or a
    number) and `probability_<class>`. A row that cannot be read has none, and is told.

    Raises:
        UserError: a wrong path or form, a column that the run needs and the file lacks, or no row that can be read.
    """
    out = Path(str(cfg.output))
    if out.suffix not in SUFFIXES:
        raise UserError(f"output={out}: {unknown('form', out.suffix, SUFFIXES)}")
    if cfg.input != "-" and not Path(cfg.input).exists():
        raise UserError(f"input={cfg.input}: there is no such file or folder; - reads CSV from standard input.")
    if cfg.input != "-" and Path(cfg.input).resolve() == out.resolve():
        raise UserError(f"output={out} is the input; give the predictions another file.")

    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TimeElapsedColumn

    from research.engine.opened import opened

    parts = opened(cfg, folder, cached=False, read=False)
    task = parts.task.to(parts.trainer.strategy.root_device).eval()
    num_rows, wrong = 0, []
    columns = (SpinnerColumn(), "rows", MofNCompleteColumn(), TimeElapsedColumn())
    with _written(out) as write, Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("rows", total=None)
        try:
            for inputs in parts.data.inputs(str(cfg.input)):
                write(_with_predictions(inputs, task))
                wrong += [(num_rows + row, why) for row, why in inputs.wrong]
                num_rows += len(inputs.given)
                progress.update(bar, completed=num_rows)
        except UserError:
            raise
        except ValueError as error:
            raise UserError(f"{error}.") from error
        if len(wrong) == num_rows:
            raise UserError(f"none of the {num_rows} rows can be read; the first: {wrong[0][1] if wrong else ''}.")
    for row, why in wrong[:NUM_TOLD]:
        log.warning("row %d cannot be read and has no prediction: %s", row + 1, why)
    if len(wrong) > NUM_TOLD:
        log.warning("... and %d more", len(wrong) - NUM_TOLD)
    log.info("predicted  %d of %d rows", num_rows - len(wrong), num_rows)
    log.info("output     %s", out)


def _with_predictions(inputs: Any, task: Any) -> Any:
    """The rows with the columns of predictions behind them."""
    import pyarrow as pa
    import torch

    spec, num_rows = task.spec, len(inputs.given)
    raw = _raw(inputs.x, task) if len(inputs.good) else None
    there = [None] * num_rows

    def column(values: list[Any], kind: Any) -> Any:
        cells = list(there)
        for row, value in zip(inputs.good.tolist(), values, strict=True):
            cells[row] = value
        return pa.array(cells, kind)

    if spec.target == "class":
        shares = raw.softmax(1) if raw is not None else torch.empty(0, len(spec.classes))
        new = {"prediction": column([spec.classes[i] for i in shares.argmax(1).tolist()], pa.string())}
        for name, share in zip(spec.classes, shares.T, strict=True):
            new[f"probability_{name}"] = column(share.tolist(), pa.float32())
    else:
        values = raw if raw is not None else torch.empty(0, spec.num_outputs)
        names = ["prediction"] if spec.num_outputs == 1 else [f"prediction_{i}" for i in range(spec.num_outputs)]
        new = {name: column(value.tolist(), pa.float32()) for name, value in zip(names, values.T, strict=True)}
    table = pa.Table.from_batches([inputs.given])
    if twice := [name for name in new if name in table.column_names]:
        raise UserError(f"the input has a column '{twice[0]}' already; rename it.")
    for name, values in new.items():
        table = table.append_column(name, values)
    return table


def _raw(x: Any, task: Any) -> Any:
    """What the task says of all x, (n, C) or (n, K); texts go through it by length, so that little is padded."""
    import torch

    if isinstance(x, torch.Tensor):
        return torch.cat([task(part.to(task.device)).float().cpu() for part in x.split(ROWS)])
    order = x.lengths.argsort(stable=True)
    made = []
    for index in order.split(TEXTS):
        tokens, _ = x[index]
        made.append(task({name: value.to(task.device) for name, value in tokens.items()}).float().cpu())
    return torch.cat(made)[order.argsort()]


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
        return lambda table: stream.writelines(
            json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in table.to_pylist()
        )
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    kind: Any = pyarrow.csv.CSVWriter if form == ".csv" else pyarrow.parquet.ParquetWriter
    writer = stack.enter_context(kind(str(path), schema))

    def write(table: Any) -> None:
        columns = []
        for field, column in zip(schema, table.columns, strict=True):
            try:
                columns.append(column.cast(field.type))
            except pa.ArrowException as error:
                raise UserError(
                    f"column '{field.name}' is {column.type} in some rows and {field.type} in those before, which a "
                    f"{form} file cannot hold; remove it, or take output=....jsonl."
                ) from error
        writer.write_table(pa.Table.from_arrays(columns, schema=schema))

    return write
