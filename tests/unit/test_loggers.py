"""Several loggers, none, and Lightning's own: each draws into the run folder, and goes on there after a resume."""

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
from composing import CONF, composed, quick, told
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from research.engine.build import build
from research.engine.check import check
from research.engine.fit import _keep_data
from research.engine.loggers import made, restart

pytestmark = pytest.mark.filterwarnings("ignore:Experiment logs directory", "ignore:You're resuming")
STOCK = {
    "table": {"_target_": "lightning.pytorch.loggers.CSVLogger", "flush_logs_every_n_steps": 1},
    "board": {"_target_": "lightning.pytorch.loggers.TensorBoardLogger", "default_hp_metric": False},
}


class Silent(Logger):
    """Of a kind that writes nowhere, so that it takes no folder."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.given = name

    name = property(lambda self: self.given)  # pyright: ignore[reportIncompatibleMethodOverride]
    version = property(lambda self: 0)  # pyright: ignore[reportIncompatibleMethodOverride]
    log_hyperparams = log_metrics = lambda self, *args, **more: None  # pyright: ignore[reportAssignmentType]


@pytest.mark.parametrize(
    ("word", "kinds"),
    [
        ("logger=none", []),
        ("logger=csv", ["Csv"]),
        ("logger=[tensorboard,csv]", ["TensorBoard", "Csv"]),
        ("logger=[csv,none]", ["Csv"]),
        ("logger.tensorboard=null", []),
        ("~logger.tensorboard", []),
    ],
)
def test_any_number_of_loggers(word: str, kinds: list[str], tmp_path: Path) -> None:
    assert told(word) == []
    assert [type(logger).__name__ for logger in made(composed(word).logger, tmp_path)] == kinds


@pytest.mark.parametrize("keyed", [True, False])
def test_a_yaml_of_the_user_names_any_logger(keyed: bool, tmp_path: Path) -> None:
    (tmp_path / "logger").mkdir()
    for name, node in STOCK.items():
        OmegaConf.save(OmegaConf.create({name: node} if keyed else node), tmp_path / f"logger/{name}.yaml")
        assert check(str(CONF), "train", [f"logger={name}"], more=[tmp_path]) == []
        (logger,) = made({name: node} if keyed else node, tmp_path)
        assert Path(str(logger.save_dir)) == tmp_path
    problems = check(str(CONF), "train", ["logger=[table,csv]"], more=[tmp_path])
    assert problems == ([] if keyed else ["logger: of several each needs a key, NAME: {_target_: ...}."])


def test_a_logger_is_given_what_it_takes_and_keeps_what_its_yaml_says(tmp_path: Path) -> None:
    silent = {"_target_": "test_loggers.Silent", "name": "x", "_partial_": True}
    elsewhere = {**STOCK["table"], "save_dir": str(tmp_path / "else"), "version": "mine"}
    first, second = made({"a": silent, "b": elsewhere}, tmp_path)
    assert isinstance(first, Logger)
    assert isinstance(second, CSVLogger)
    assert second.log_dir == f"{tmp_path}/else/lightning_logs/mine"


def rows(path: Path) -> list[tuple[int, float]]:
    with path.open(newline="") as file:
        return [
            (int(row["step"]), float(row["train/loss_step"])) for row in csv.DictReader(file) if row["train/loss_step"]
        ]


def drawn(folder: Path) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder)).Reload()
    return [(event.step, event.value) for event in events.Scalars("train/loss_step")]


READ: dict[str, Callable[[Path], list[tuple[int, float]]]] = {
    "metrics.csv": lambda folder: rows(folder / "metrics.csv"),
    "": drawn,
    "lightning_logs/version_0/metrics.csv": lambda folder: rows(folder / "lightning_logs/version_0/metrics.csv"),
    "lightning_logs/version_0": lambda folder: drawn(folder / "lightning_logs/version_0"),
}


def test_the_curves_of_every_logger_go_on_in_their_place(tmp_path: Path) -> None:
    cfg = composed("logger=[tensorboard,csv]")
    OmegaConf.set_struct(cfg, False)
    cfg.logger.update(STOCK)

    def draw(values: dict[int, float], from_step: int | None = None) -> None:
        loggers = made(cfg.logger, tmp_path)
        if from_step is not None:
            restart(loggers, from_step)
        for logger in loggers:
            for step, value in values.items():
                logger.log_metrics({"train/loss_step": value}, step)
            logger.save()
            logger.finalize("success")

    draw({0: 1.0, 1: 2.0, 2: 3.0, 3: 4.0})
    draw({2: 5.0, 3: 6.0}, from_step=2)
    for name, read in READ.items():
        assert read(tmp_path) == [(0, 1.0), (1, 2.0), (2, 5.0), (3, 6.0)], name
    assert not (tmp_path / "lightning_logs/version_1").exists()


def test_pictures_go_to_every_logger_that_shows_them(tmp_path: Path) -> None:
    cfg = quick("logger=[csv,tensorboard]")
    cfg.logger.update({"board": STOCK["board"]})
    parts = build(cfg, tmp_path)
    _keep_data(parts, tmp_path, new=True)
    parts.trainer.fit(parts.task, parts.data)
    parts.trainer.test(parts.task, datamodule=parts.data, verbose=False)
    boards = [logger for logger in parts.trainer.loggers if isinstance(logger, TensorBoardLogger)]
    assert len(boards) == 2
    for board in boards:
        board.finalize("success")
        events = EventAccumulator(board.log_dir, size_guidance={"images": 0}).Reload()
        assert set(events.Tags()["images"]) == {"data", "train/inputs", "test/confusion"}
