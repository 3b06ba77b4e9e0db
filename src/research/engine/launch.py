"""From a command line to a job: check the words, let Hydra compose, call the job, turn failures into exit codes.

Nothing here imports torch, so that a mistake is told at once.
"""

import logging
import os
import secrets
import sys
from argparse import Namespace
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from research.engine.check import check
from research.engine.errors import UserError, trace
from research.engine.reopen import pointed, reopened, with_values
from research.engine.stop import SIGNAL, Stopped, asked

CONF = Path(__file__).parents[3] / "conf"
WORKER = "RESEARCH_RUN_FOLDER"  # set by a multi-process trainer for the processes it starts: the run they join
FULL = "HYDRA_FULL_ERROR"
log = logging.getLogger("research")


def launch(name: str) -> None:
    """Runs `research.engine.<name>.<name>(cfg, folder)` on the config `conf/<name>.yaml`, then exits.

    The exit code is 0 when every job of the command finished, 1 when one failed, 2 when the command itself is wrong.
    """
    if folder := os.environ.get(WORKER):
        cfg = OmegaConf.load(Path(folder) / "config.yaml")
        assert isinstance(cfg, DictConfig)
        code = _exit_code("train", cfg, Path(folder))
        sys.exit(0 if code > SIGNAL else code)  # a stop is the first process's to tell, which a code would have killed

    OmegaConf.register_new_resolver("token", lambda: secrets.token_hex(3), use_cache=True, replace=True)
    args = get_args_parser().parse_args()
    if args.help:
        print(_help())
        sys.exit(0)
    run = _checked(name, args)
    groups, values, hydras = _kinds(args.overrides)
    if run:  # the settings of the command are for the run's own config, of which Hydra knows nothing
        flags = [word for word in sys.argv if word not in args.overrides]
        sys.argv = [*flags, *groups, *hydras, f"hydra.run.dir='{run.resolve()}'"]

    codes: dict[str, int] = {}
    full = os.environ.get(FULL, "0")

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name=name)
    def job(cfg: DictConfig) -> None:
        os.environ[FULL] = full
        folder = Path(HydraConfig.get().runtime.output_dir)
        if run:
            cfg = with_values(reopened(name, folder, groups), values)
        codes[os.path.relpath(folder)] = _exit_code(name, cfg, folder)

    os.environ[FULL] = "1"  # has Hydra hand on what goes wrong before the job begins
    try:
        job()
    except OSError as error:
        _tell([f"the run's folder cannot be written: {error}."])
        sys.exit(1)
    except Stopped as stopped:  # between the jobs of a sweep
        sys.exit(stopped.code)
    if args.multirun:
        from research.engine.sweep import summarize

        summarize(map(Path, codes))
    failed = [folder for folder, code in codes.items() if code]
    if failed and len(codes) > 1:
        _tell([f"{len(failed)} of {len(codes)} runs failed: {', '.join(failed)}"])
    sys.exit(max(codes.values(), default=0))


def _help() -> str:
    """What the script says of itself, and the groups with their options."""
    groups = {path.relative_to(CONF).parent.as_posix() for path in CONF.glob("*/*.yaml")}
    rows = [f"  {group:<11}{', '.join(sorted(p.stem for p in (CONF / group).glob('*.yaml')))}" for group in groups]
    settings = "Settings: trainer.max_epochs=50 optimizer.lr=3e-4 ...; `--cfg job` shows all of them with their values."
    return "\n".join([sys.modules["__main__"].__doc__ or "", "Groups and their options:", *sorted(rows), "", settings])


def _checked(name: str, args: Namespace) -> Path | None:
    """The run that the command opens again, if any. Leaves with code 2 when the command is wrong."""
    if args.hydra_help or args.info or args.shell_completion:
        return None
    try:
        run = pointed(args.overrides)
        if problems := check(str(CONF), name, args.overrides, sweep=args.multirun, folder=run):
            raise UserError(*problems)
        if run and args.multirun:
            raise UserError(f"'{run}' is one run, and -m is for several; leave out -m.")
        return run
    except UserError as error:
        _tell(error.problems)
        sys.exit(2)


def _kinds(words: list[str]) -> tuple[list[str], list[str], list[str]]:
    """Words that choose an option of a group, words that set a value, and words for Hydra itself."""
    groups, values, hydras = [], [], []
    for word in words:
        key = word.split("=")[0].lstrip("+~").split("@")[0]
        kind = hydras if key.startswith(("hydra.", "hydra/")) else groups if (CONF / key).is_dir() else values
        kind.append(word)
    return groups, values, hydras


def _exit_code(name: str, cfg: DictConfig, folder: Path) -> int:
    """Calls the job. Tells a user's mistake in a sentence, any other failure with its traceback."""
    environment = dict(os.environ)
    logging.raiseExceptions = False  # a log that cannot be written, on a full disk, must not hide what is told
    asked.listen()
    try:
        getattr(import_module(f"research.engine.{name}"), name)(cfg, folder)
        return 0
    except UserError as error:
        if os.environ.get(FULL) == "1":
            raise
        trace.debug("told as a mistake", exc_info=True)
        log.error(_text(error.problems))
        return 1
    except Stopped as stopped:
        further = f"; go on with resume={os.path.relpath(folder)}" if name == "train" else ""
        log.error("%s%s", stopped, further)
        if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
            sys.exit(stopped.code)  # the whole sweep is meant
        return stopped.code
    except Exception:
        log.exception("The run failed. Its folder is kept: %s", os.path.relpath(folder))
        return 1
    finally:  # a multi-process trainer leaves words for its workers, which the next job of a sweep must not hear
        os.environ.clear()
        os.environ.update(environment)


def _tell(problems: Sequence[str]) -> None:
    print(_text(problems), file=sys.stderr)


def _text(problems: Sequence[str]) -> str:
    if len(problems) == 1:
        return f"error: {problems[0]}"
    return "\n".join([f"error: {len(problems)} mistakes", *(f"  - {problem}" for problem in problems)])
