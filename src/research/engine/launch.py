"""From a command line to a job: check the words, let Hydra compose, call the job, turn failures into exit codes.

Nothing here imports torch, so that a mistake is told at once.
"""

import gc
import json
import os
import secrets
import shutil
import signal
import sys
from argparse import Namespace
from collections.abc import Sequence
from io import TextIOWrapper
from pathlib import Path

import hydra
from hydra import initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from research.engine.check import check, search
from research.engine.command import CONF, SEARCHPATH, config_folders, word
from research.engine.errors import UserError, told
from research.engine.job import FULL, Job, Outcome, RunFailed, run, set_up
from research.engine.reopen import pointed
from research.engine.stop import SIGNAL, Stopped, asked

WORKER = "RESEARCH_RUN_FOLDER"  # set by a multi-process trainer for the processes it starts: the run they join


def launch(name: str) -> None:
    """Runs `research.engine.<name>.<name>(cfg, folder)` on the config `conf/<name>.yaml`, then exits.

    The exit code is 0 when every job of the command finished, 1 when one failed, 2 when the command itself is wrong.
    """
    if isinstance(sys.stdout, TextIOWrapper):  # a character that the screen does not have must not fail the run
        sys.stdout.reconfigure(errors="replace")
    asked.listen()
    try:
        _launch(name)
    except Stopped as stopped:  # before a job, or between the jobs of a sweep
        sys.exit(stopped.code)
    finally:
        gc.freeze()  # Python ends with a search for garbage, which among all that is imported takes seconds


def _launch(name: str) -> None:
    if folder := os.environ.get(WORKER):
        cfg = OmegaConf.load(Path(folder) / "config.yaml")
        assert isinstance(cfg, DictConfig)
        code, _ = run("train", cfg, Path(folder))
        sys.exit(0 if code > SIGNAL else code)  # a stop is the first process's to tell, which a code would have killed

    set_up()
    args = get_args_parser().parse_args()

    try:
        job, primary = _job(name, args)
    except UserError as error:
        _tell(error.problems)
        sys.exit(2)
    try:
        code = _called(job, primary)
        sys.exit(max(code, _end_of_sweep(job.outcomes) if job.outcomes else job.code))
    finally:
        if job.outcomes:
            shutil.rmtree(job.outcomes, ignore_errors=True)


def _job(name: str, args: Namespace) -> tuple[Job, str]:
    """The job of a command and its primary config; `sys.argv` becomes what Hydra is to read.

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
        print(_help(folders))
        sys.exit(0)
    argv, full = (list(sys.argv), list(sys.orig_argv)), os.environ.get(FULL, "0")
    flags = [said for said in sys.argv if said not in args.overrides]
    if args.hydra_help or args.info or args.shell_completion:
        return Job(name, None, [], [], folders, full, argv, None), primary
    opened, args.overrides = pointed(args.overrides)
    groups, values, hydras = _kinds(args.overrides, folders)
    several = args.multirun or "hydra.mode=MULTIRUN" in hydras
    if problems := check(str(CONF), primary, args.overrides, sweep=several, folder=opened, more=folders[1:]):
        raise UserError(*problems)
    if opened and several:
        raise UserError(f"'{opened}' is one run, and -m is for several; leave out -m.")
    outcomes = None
    if opened:  # the settings of the command are for the run's own config, of which Hydra knows nothing
        sys.argv = [*flags, *groups, *hydras, word("hydra.run.dir", opened.resolve())]
        groups = [*(said for said in hydras if said.startswith(SEARCHPATH)), *groups]
    elif not args.cfg and (place := _sweep_folder(primary, args, folders)):
        sys.argv.append(word("hydra.sweep.dir", place))  # once and for all: its name holds the time
        outcomes = Path(place).absolute() / f".outcomes_{secrets.token_hex(3)}"
    return Job(name, opened, groups, values, folders, full, argv, outcomes), primary


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
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=primary)(job)()
        return 0
    except RunFailed:  # the sweeper gave up
        return 1
    except OSError as error:
        _tell([f"the run's folder cannot be written: {error}."])
        return 1
    except (HydraException, OmegaConfBaseException) as error:
        _tell([" ".join(str(error).split())])
        return 2
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
