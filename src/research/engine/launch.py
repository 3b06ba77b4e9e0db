"""From a command line to a job: check the words, let Hydra compose, call the job, turn failures into exit codes.

Nothing here imports torch, so that a mistake is told at once.
"""

import logging
import os
import secrets
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from research.engine.check import check
from research.engine.errors import UserError
from research.engine.reopen import expand

CONF = Path(__file__).parents[3] / "conf"
WORKER = "RESEARCH_RUN_FOLDER"  # set by a multi-process trainer for the processes it starts: the run they join
log = logging.getLogger("research")


def launch(name: str) -> None:
    """Runs `research.engine.<name>.<name>(cfg, folder)` on the config `conf/<name>.yaml`, then exits.

    The exit code is 0 when every job of the command finished, 1 when one failed, 2 when the command itself is wrong.
    """
    if folder := os.environ.get(WORKER):
        cfg = OmegaConf.load(Path(folder) / "config.yaml")
        assert isinstance(cfg, DictConfig)
        sys.exit(0 if _finished(name, cfg, Path(folder)) else 1)

    OmegaConf.register_new_resolver("token", lambda: secrets.token_hex(3), use_cache=True, replace=True)
    args = get_args_parser().parse_args()
    if not (args.help or args.hydra_help or args.info or args.shell_completion):
        try:
            overrides = expand(args.overrides)
            if problems := check(str(CONF), name, overrides):
                raise UserError(*problems)
        except UserError as error:
            _tell(error.problems)
            sys.exit(2)
        sys.argv = [word for word in sys.argv if word not in args.overrides] + overrides

    failed: list[str] = []

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name=name)
    def job(cfg: DictConfig) -> None:
        folder = Path(HydraConfig.get().runtime.output_dir)
        if not _finished(name, cfg, folder):
            failed.append(str(folder))

    job()
    if len(failed) > 1:
        _tell([f"{len(failed)} runs failed: {', '.join(failed)}"])
    sys.exit(1 if failed else 0)


def _finished(name: str, cfg: DictConfig, folder: Path) -> bool:
    """Calls the job. Tells a user's mistake in a sentence, any other failure with its traceback."""
    environment = dict(os.environ)
    try:
        getattr(import_module(f"research.engine.{name}"), name)(cfg, folder)
        return True
    except UserError as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        log.error(_text(error.problems))
    except Exception:
        log.exception("The run failed. Its folder is kept: %s", folder)
    finally:  # a multi-process trainer leaves words for its workers, which the next job of a sweep must not hear
        os.environ.clear()
        os.environ.update(environment)
    return False


def _tell(problems: Sequence[str]) -> None:
    print(_text(problems), file=sys.stderr)


def _text(problems: Sequence[str]) -> str:
    if len(problems) == 1:
        return f"error: {problems[0]}"
    return "\n".join([f"error: {len(problems)} mistakes", *(f"  - {problem}" for problem in problems)])
