"""Where curves go: into the run folder itself, and a resumed run goes on with them, without overlap."""

import csv
import inspect
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from lightning import Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

log = logging.getLogger(__name__)

RESULT = ".result"
TABLE = "metrics.csv"


@contextmanager
def _lossy() -> Iterator[None]:
    """Curves that cannot be written, on a full disk say, are a warning: training is worth more."""
    try:
        yield
    except OSError as error:
        log.warning("NOT DRAWN  points of the curves cannot be written: %s", error)


class TensorBoard(TensorBoardLogger):
    """Events, and a row in the HParams tab that has real numbers.

    Args:
        save_dir: the run folder.
    """

    def __init__(self, save_dir: Path) -> None:
        super().__init__(save_dir, name="", version="", default_hp_metric=False)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        with self._open():
            super().log_metrics({name: value for name, value in _named(metrics).items() if name != "epoch"}, step)

    def save(self) -> None:
        """Puts the points on the disk, and no file of hyperparameters beside the run's own config."""
        with self._open():
            self.experiment.flush()

    def finalize(self, status: str) -> None:
        with self._open():
            super().finalize(status)

    @contextmanager
    def _open(self) -> Iterator[None]:
        """The thread that writes has ended when it fails; the next point opens another file."""
        with _lossy():
            try:
                yield
            except OSError:
                self._experiment = None
                self._kwargs.pop("purge_step", None)  # it would drop what was drawn since
                raise

    @rank_zero_only
    def log_result(self, settings: dict[str, Any], metrics: dict[str, float], step: int) -> None:
        """The row of this run in the HParams tab, in an event file of its own: a resumed run writes it anew.

        Args:
            settings: numbers, strings and booleans a person would compare.
            metrics: of the best checkpoint; `val/...` is shown as `val_best/...`, apart from the curve of that name.
            step: at the end of the run.
        """
        for old in Path(self.log_dir).glob(f"*{RESULT}"):
            old.unlink()
        best = {name.replace("val/", "val_best/"): value for name, value in metrics.items()}
        with SummaryWriter(self.log_dir, filename_suffix=RESULT) as writer:
            for name, value in best.items():
                writer.add_scalar(name, value, step)
            for summary in hparams(settings, best):
                writer._get_file_writer().add_summary(summary)


class Csv(CSVLogger):
    """A table, `metrics.csv`.

    Args:
        save_dir: the run folder.
    """

    def __init__(self, save_dir: Path) -> None:
        super().__init__(save_dir, name="", version="")

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        super().log_metrics(_named(metrics), step)

    def save(self) -> None:
        with _lossy():  # what is not written is kept for the next time
            super().save()


def made(node: Any, folder: Path) -> list[Logger]:
    """Makes the loggers of a config, in the run folder: one under each key, or a single one without a key.

    Lightning's own write into one place for good, so that a resumed run goes on there.
    """
    nodes = [node] if "_target_" in node else [part for part in node.values() if part]
    loggers = []
    for part in nodes:
        maker = instantiate(part, _partial_=True, _convert_="all")
        more: dict[str, Any] = {"save_dir": folder}
        if isinstance(maker.func, type) and issubclass(maker.func, CSVLogger | TensorBoardLogger):
            more["version"] = 0
        takes = inspect.signature(maker.func).parameters.keys() - part.keys()
        loggers.append(maker(**{name: value for name, value in more.items() if name in takes}))
    return loggers


def boards(trainer: Trainer) -> list[TensorBoardLogger]:
    """Gives the loggers that show pictures."""
    return [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


def restart(loggers: Iterable[Logger], step: int) -> None:
    """Drops the points from `step` on, which a resumed run will draw again."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger._kwargs["purge_step"] = step
        if isinstance(logger, CSVLogger):
            _drop_rows(logger, step)


@rank_zero_only
def _drop_rows(logger: CSVLogger, step: int) -> None:
    path = Path(logger.log_dir) / TABLE
    before, rows = path.with_suffix(".before"), []
    if path.is_file() and not before.is_file():  # else this was killed below
        path.replace(before)  # as Lightning begins by deleting what is there
    if before.is_file():
        with before.open(newline="") as file:
            rows = [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]
    writer: Any = logger.experiment
    writer.metrics = [row for row in rows if row.get("step", "").isdecimal() and int(row["step"]) < step]
    logger.save()
    before.unlink(missing_ok=True)


def _named(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Calls a rate `train/lr`, whatever the optimizer, so that runs share one chart.

    Left out is the rate of parameters that do not decay, which is that of the others.
    """
    kept = {name: value for name, value in metrics.items() if not name.endswith("/kept")}
    return {re.sub("^lr-[^/]+", "train/lr", name).removesuffix("/decayed"): kept[name] for name in kept}
