"""One run of a command. In a sweep each has a process of its own, whatever launcher starts it.

So no run finds what another has left behind: compiled graphs, caches, threads, settings of libraries, environment. What
became of the runs of a sweep is put down in files, as they may run in other processes and on other machines than the
command. Nothing here imports torch.
"""

import json
import logging
import multiprocessing
import os
import secrets
import signal
import sys
from dataclasses import asdict, dataclass
from importlib import import_module
from multiprocessing.connection import Connection, wait
from pathlib import Path
from threading import Thread
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import configure_log, setup_globals
from omegaconf import DictConfig, OmegaConf

from research.engine import ranks
from research.engine.command import shell, word
from research.engine.durable import replace
from research.engine.errors import OtherRank, UserError, told, trace
from research.engine.reopen import reopened
from research.engine.stop import SIGNAL, Stopped, asked, end_children

FULL = "HYDRA_FULL_ERROR"
FORKS = sys.platform == "linux"  # elsewhere a copy of a process that has imported torch may not work
BASIC = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"  # which looks at no results
log = logging.getLogger("research")


class RunFailed(Exception):
    """Tells a sweeper that a run has no result. What went wrong has been told already."""


@dataclass
class Outcome:
    """What became of a run of a sweep."""

    num: int
    folder: str
    code: int


@dataclass
class Job:
    """What Hydra calls for each run of a command.

    Attributes:
        name: of the job, `train` say.
        run: the folder of the run that is opened again.
        groups, values: the words that choose options and set values, for a run that is opened again.
        folders: of the user's own configs, which name all that may be built.
        full: whether the user asked for whole tracebacks, as the environment has it.
        argv: of the command.
        outcomes: where a sweep's results are put down, None for a single run.
        place: of this process among those that something else has started.
        begun: whether `run` was begun by processes in whose place these were started.
        code: the exit code of a single run.
    """

    name: str
    run: Path | None
    groups: list[str]
    values: list[str]
    folders: list[Path]
    full: str
    argv: tuple[list[str], list[str]]
    outcomes: Path | None
    place: ranks.Place | None = None
    begun: bool = False
    code: int = 0

    def __call__(self, cfg: DictConfig) -> float | None:
        """Gives a sweep the monitored value at the best checkpoint.

        Raises:
            RunFailed: for sweepers that go by the results; Hydra's own goes on with the next run.
        """
        hydra = HydraConfig.get()
        folder = Path(hydra.runtime.output_dir)
        if self.outcomes is None:
            os.environ[FULL] = self.full
            if self.run:
                cfg = reopened(self.name, folder, self.groups, self.values, self.folders)
            if self.begun:
                cfg.resume = str(self.run)
            if self.place:
                cfg.trainer.devices, cfg.trainer.num_nodes = self.place.local, self.place.nodes
            self.code, _ = run(self.name, cfg, folder)
            return None
        code, value = self._apart(cfg, folder)
        self.outcomes.mkdir(parents=True, exist_ok=True)
        outcome = asdict(Outcome(hydra.job.num, os.path.relpath(folder), code))
        replace(self.outcomes / f"{hydra.job.num}.json", lambda file: file.write(json.dumps(outcome).encode()))
        if code > SIGNAL or asked.number:
            sys.exit(max(code, SIGNAL + (asked.number or 0)))  # the whole sweep is meant
        if code and hydra.sweeper._target_ != BASIC:
            raise RunFailed(f"{os.path.relpath(folder)} failed")
        return value

    def _apart(self, cfg: DictConfig, folder: Path) -> tuple[int, float | None]:
        """The exit code and the value of a run in a process of its own, which hears of signals through this one."""
        asked.listen()
        context: Any = multiprocessing.get_context("fork" if FORKS else "spawn")
        if FORKS:
            import_module("research.engine.fit")  # takes seconds: once, for all runs
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=self._serve, args=(cfg, HydraConfig.instance().cfg, folder, sender))
        try:
            process.start()
            sender.close()
            while process.exitcode is None:
                try:
                    process.join()
                except Stopped as stopped:
                    os.kill(process.pid, stopped.number)
        except BaseException:
            process.terminate()
            raise
        if process.exitcode < 0:
            name = signal.Signals(-process.exitcode).name
            log.error("The run was ended by %s, for lack of memory perhaps. Its folder is kept: %s", name, folder)
            return 1, None
        return process.exitcode, receiver.recv() if receiver.poll() else None

    def _serve(self, cfg: DictConfig, hydra: DictConfig, folder: Path, sender: Connection) -> None:
        """What the process of a run of a sweep does."""
        try:
            os.setpgid(0, 0)  # else a Ctrl-C would come twice, and the second one leaves at once
            Thread(target=_end_with_parent, daemon=True).start()
            os.environ[FULL] = self.full
            sys.argv, sys.orig_argv = self.argv
            set_up()
            HydraConfig.instance().set_config(hydra)
            configure_log(hydra.hydra.job_logging, hydra.hydra.verbose)
            code, value = run(self.name, cfg, folder)
        except Stopped as stopped:
            sys.exit(stopped.code)
        sender.send(value)
        sys.exit(code)


def set_up() -> None:
    """Has a process know what the configs ask for."""
    setup_globals()
    OmegaConf.register_new_resolver("token", lambda: secrets.token_hex(3), use_cache=True, replace=True)


def run(name: str, cfg: DictConfig, folder: Path) -> tuple[int, float | None]:
    """Calls the job; gives the exit code, and the value for a sweeper. A user's mistake is told in a sentence, any
    other failure with its traceback."""
    logging.raiseExceptions = False  # a log that cannot be written, on a full disk, must not hide what is told
    asked.listen()
    try:
        with asked.before_errors():
            return 0, getattr(import_module(f"research.engine.{name}"), name)(cfg, folder)
    except Stopped as stopped:
        return tell_failure(stopped, folder, further=name == "train"), None
    except Exception as error:
        if isinstance(error, UserError) and os.environ.get(FULL) == "1":
            raise
        return tell_failure(error, folder), None
    finally:
        end_children()


def tell_failure(error: BaseException, folder: Path, further: bool = True) -> int:
    """Tells what ended a job, a mistake in a sentence, and gives its exit code.

    Args:
        further: whether the job can be taken up again.
    """
    with asked.held():
        return _told(error, folder, further)


def _told(error: BaseException, folder: Path, further: bool) -> int:
    place = os.path.relpath(folder)
    if isinstance(error, Stopped):
        log.error("%s%s", error, f"; go on with {shell(word('resume', place))}" if further else "")
        return error.code
    if isinstance(error, UserError):
        trace.debug("told as a mistake", exc_info=error)
        log.error(told(error.problems))
    elif isinstance(error, OtherRank):
        trace.debug("it ended this process as well", exc_info=error)
        log.error("%s\n%s\nThe run failed. Its folder is kept: %s", error.trace, error, place)
    else:
        log.error("The run failed. Its folder is kept: %s", place, exc_info=error)
    return 1


def _end_with_parent() -> None:
    """Stops the run when the process that it belongs to is no more."""
    parent: Any = multiprocessing.parent_process()
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
