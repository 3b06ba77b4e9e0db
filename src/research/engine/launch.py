"""From a command line to a job: check the words, let Hydra compose, call the job, turn failures into exit codes.

Nothing here imports torch, so that a mistake is told at once.
"""

import gc
import json
import logging
import os
import secrets
import shutil
import signal
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import hydra
from hydra import initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from research.engine import ranks
from research.engine.check import check, search
from research.engine.command import CONF, SEARCHPATH, config_folders, word
from research.engine.errors import UserError, told, trace
from research.engine.job import FULL, Job, Outcome, RunFailed, run, set_up
from research.engine.reopen import pointed
from research.engine.stop import SIGNAL, Stopped, asked, follow

FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"  # of the log of a process that is not the first


def launch(name: str) -> None:
    """Runs `research.engine.<name>.<name>(cfg, folder)` on the config `conf/<name>.yaml`, then exits.

    The exit code is 0 when every job of the command finished, 1 when one failed, 2 when the command itself is wrong.
    """
    if isinstance(sys.stdout, TextIOWrapper):  # a character that the screen does not have must not fail the run
        sys.stdout.reconfigure(errors="replace")
    asked.listen()
    try:
        with asked.before_errors():
            _launch(name)
    except Stopped as stopped:  # before a job, or between the jobs of a sweep
        sys.exit(_left(stopped.code))
    except SystemExit as left:
        sys.exit(_left(left.code))
    finally:
        gc.freeze()  # Python ends with a search for garbage, which among all that is imported takes seconds


def _left(code: Any) -> Any:
    """Tells the exit code to the other processes of this command, if it is for this one to tell."""
    if ranks.channel and not ranks.rank():
        with asked.held():  # torchrun ends all when one has failed
            ranks.channel.end(int(code or 0))
    return code


def _launch(name: str) -> None:
    here, parent = ranks.place(), os.environ.pop(ranks.PARENT, None)
    if folder := os.environ.get(ranks.FOLDER):  # this process was started by the first of the run
        if parent:
            follow(int(parent), lambda: os._exit(1))
        code = _joined(Path(folder))
        sys.exit(0 if code > SIGNAL else code)  # a stop is for the first process to tell
    if parent:
        follow(int(parent), lambda: os.kill(os.getpid(), signal.SIGTERM))

    set_up()
    args = get_args_parser().parse_args()

    try:
        job, primary = _job(name, args, here)
    except UserError as error:
        asked.heed()  # a signal may have broken into the check
        if not ranks.rank():
            _tell(error.problems)
        else:  # torchrun ends all when one has failed, and the first is to tell before
            time.sleep(ranks.GRACE_S)
        sys.exit(2)
    try:
        code = _called(job, primary)
        sys.exit(max(code, _end_of_sweep(job.outcomes) if job.outcomes else job.code))
    finally:
        if job.outcomes:
            shutil.rmtree(job.outcomes, ignore_errors=True)


def _job(name: str, args: Namespace, here: ranks.Place | None) -> tuple[Job, str]:
    """The job of a command and its primary config; `sys.argv` becomes what Hydra is to read.

    Of several processes that something else has started, only the first gets a job; the others join it and leave.

    Raises:
        UserError: the command is wrong.
    """
    if args.config_path or args.experimental_rerun:
        raise UserError(
            "--config-path and --experimental-rerun put other configs in the place of conf/; take --config-dir FOLDER "
            "for options of your own, and src/reproduce.py to run a run again."
        )
    primary = args.config_name or name
    folders = config_folders(primary, args.overrides, args.config_dir)
    if args.help:
        if not ranks.rank():
            print(_help(folders))
        sys.exit(0)
    argv, full = (list(sys.argv), list(sys.orig_argv)), os.environ.get(FULL, "0")
    flags = [said for said in sys.argv if said not in args.overrides]
    if args.hydra_help or args.info or args.shell_completion:
        return Job(name, None, [], [], folders, full, argv, None), primary
    opened, args.overrides = pointed(args.overrides)
    groups, values, hydras = _kinds(args.overrides, folders)
    several = args.multirun or "hydra.mode=MULTIRUN" in hydras
    problems = check(str(CONF), primary, args.overrides, sweep=several, folder=opened, more=folders[1:])
    if problems := [*problems, *(here.problems(name, args.overrides) if here else ())]:
        raise UserError(*problems)
    if opened and several:
        raise UserError(f"'{opened}' is one run, and -m is for several; leave out -m.")
    if here and several:
        raise UserError(
            f"-m gives each run processes of its own, and {here.launcher} has started {here.world} for one run; leave "
            f"out {here.launcher} (trainer=ddp starts the processes of each run), or -m."
        )
    outcomes, begun = None, None
    if here and name in ranks.SEVERAL:
        channel = ranks.open_channel(here)
        if here.rank:
            sys.exit(_followed(channel))
        if name == "train" and (begun := channel.earlier()):  # by processes in whose place these were started
            opened, groups, values = begun, [], []
    if opened:  # the settings of the command are for the run's own config, of which Hydra knows nothing
        sys.argv = [*flags, *groups, *hydras, word("hydra.run.dir", opened.resolve())]
        groups = [*(said for said in hydras if said.startswith(SEARCHPATH)), *groups]
    elif not args.cfg and (place := _sweep_folder(primary, args, folders)):
        sys.argv.append(word("hydra.sweep.dir", place))  # once and for all: its name holds the time
        outcomes = Path(place).absolute() / f".outcomes_{secrets.token_hex(3)}"
    ours = here if name in ranks.SEVERAL else None
    return Job(name, opened, groups, values, folders, full, argv, outcomes, ours, begun is not None), primary


def _sweep_folder(primary: str, args: Namespace, folders: Sequence[Path]) -> str | None:
    """Where the runs of a sweep go, None for a single run."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        search(folders[1:])
        cfg = GlobalHydra.instance().hydra
        assert cfg is not None
        cfg = cfg.compose_config(primary, list(args.overrides), RunMode.MULTIRUN, with_log_configuration=False)
        if not args.multirun and cfg.hydra.mode != RunMode.MULTIRUN:
            return None
        try:
            return str(cfg.hydra.sweep.dir)
        except Exception as error:  # of a resolver
            raise UserError(
                f"hydra.sweep.dir: {' '.join(str(error).split())}. It is one folder for all runs; what differs between "
                "them belongs into hydra.sweep.subdir."
            ) from error


def _called(job: Job, primary: str) -> int:
    """Lets Hydra compose the configs and call the job; gives the exit code for what goes wrong outside of the job."""
    os.environ[FULL] = "1"  # has Hydra hand on what goes wrong
    try:
        with asked.before_errors():
            hydra.main(version_base="1.3", config_path=str(CONF), config_name=primary)(job)()
        return 0
    except RunFailed:  # the sweeper gave up
        return 1
    except (HydraException, OmegaConfBaseException) as error:
        _tell([" ".join(str(error).split())])
        return 2
    except (OSError, ValueError) as error:  # of the folder, or of the log in it
        cause = error if isinstance(error, OSError) else error.__cause__
        if not isinstance(cause, OSError):
            raise
        _tell([f"the run's folder cannot be written: {cause}. If it may not be, open a copy of it."])
        return 1
    except KeyboardInterrupt:
        sys.exit(SIGNAL + signal.SIGINT)


def _end_of_sweep(place: Path) -> int:
    """Tells what became of the runs of a sweep; gives the exit code."""
    from research.engine.sweep import summarize

    found = [Outcome(**json.loads(path.read_text("utf-8"))) for path in place.glob("*.json")]
    found.sort(key=lambda outcome: outcome.num)
    summarize(Path(outcome.folder) for outcome in found)
    failed = [outcome.folder for outcome in found if outcome.code]
    if failed and len(found) > 1:
        _tell([f"{len(failed)} of {len(found)} runs failed: {', '.join(failed)}"])
    return max((outcome.code for outcome in found), default=0)


def _followed(channel: ranks.Channel) -> int:
    """Joins the runs of a command of which this is not the first process; gives its exit code."""
    try:
        for message in channel.messages():
            if isinstance(message, int):
                return message
            os.environ[ranks.FOLDER] = message
            if code := _joined(Path(message)):  # the others cannot go on without this process
                return code
        raise AssertionError
    finally:
        channel.leave()


def _joined(folder: Path) -> int:
    """Does the part of this process of a run that another has begun; its failures go to a log of its own."""
    handler = logging.FileHandler(folder / f"rank{ranks.rank()}.log", delay=True)
    logging.basicConfig(handlers=[handler], level=logging.WARNING, format=FORMAT, force=True)
    trace.setLevel(logging.DEBUG)
    cfg = OmegaConf.load(folder / "config.yaml")
    assert isinstance(cfg, DictConfig)
    return run("train", cfg, folder)[0]


def _help(folders: Sequence[Path]) -> str:
    """What the script says of itself, and the groups with their options."""
    options: dict[str, set[str]] = {}
    for path in (path for folder in folders for path in folder.glob("*/*.yaml")):
        options.setdefault(path.parent.name, set()).add(path.stem)
    rows = [f"  {group:<11}{', '.join(sorted(names))}" for group, names in options.items()]
    settings = "Settings: trainer.max_epochs=50 optimizer.lr=3e-4 ...; `--cfg job` shows all of them with their values."
    return "\n".join([sys.modules["__main__"].__doc__ or "", "Groups and their options:", *sorted(rows), "", settings])


def _kinds(words: list[str], folders: Sequence[Path]) -> tuple[list[str], list[str], list[str]]:
    """Words that choose an option of a group, words that set a value, and words for Hydra itself."""
    groups, values, hydras = [], [], []
    for said in words:
        key = said.split("=")[0].lstrip("+~").split("@")[0]
        is_group = any((folder / key).is_dir() for folder in folders)
        kind = hydras if key.startswith(("hydra.", "hydra/")) else groups if is_group else values
        kind.append(said)
    return groups, values, hydras


def _tell(problems: Sequence[str]) -> None:
    print(told(problems), file=sys.stderr)
