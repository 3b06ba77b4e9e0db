"""What a run leaves beside its weights: `run.json`, `config.yaml` and `metrics.json`. Nothing here imports torch."""

import json
import logging
import math
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from research.engine.durable import replace
from research.engine.errors import UserError, said
from research.engine.reopen import Changes
from research.engine.stop import Stopped, asked
from research.engine.trust import literal

log = logging.getLogger(__name__)

ROOT = Path(__file__).parents[3]
CODE = ("*.py", "*.yaml", "*.toml")  # new files that belong to the code of a run; not a user's data beside it


def write_json(path: Path, content: Any) -> None:
    """Writes all of it or nothing; null where a number is not finite, which JSON does not have."""
    text = json.dumps(finite(content), indent=2, default=str, allow_nan=False) + "\n"
    replace(path, lambda file: file.write(text.encode()))


def finite(value: Any) -> Any:
    """With None in place of what is not a number, or without end."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_config(folder: Path, cfg: DictConfig) -> None:
    """The whole config of a run as plain values: resolved, and what still looks like a reference escaped."""
    text = OmegaConf.to_yaml(OmegaConf.create(literal(OmegaConf.to_container(cfg, resolve=True))))
    replace(folder / "config.yaml", lambda file: file.write(text.encode()))


class Record:
    """`run.json`, kept up to date while the run goes on.

    Args:
        folder: of the run.
        content: as it stands; keys are added with `add`.

    Attributes:
        begun: whether training has.
        since: when this process took the run up.
    """

    begun = False

    def __init__(self, folder: Path, content: dict[str, Any]) -> None:
        self.folder, self.content, self.since = folder, content, datetime.now(UTC)

    def add(self, **values: Any) -> None:
        self.content.update(values)
        write_json(self.folder / "run.json", self.content)

    def close(self, status: str, said: str | None) -> None:
        """Puts down how it ended."""
        ended = datetime.now(UTC)
        spent = self.content["duration_s"] + (ended - self.since).total_seconds()
        try:
            with asked.held():  # a second may come while the first is put down
                self.add(status=status, error=said, ended=ended, duration_s=round(spent, 3))
        except OSError as error:  # a full disk, say, which is what ended the run
            log.warning("the record of the run cannot be written: %s", error)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keeps every other process from training into a folder; the system lets go of it when this one dies.

    Raises:
        UserError: another process holds it.
    """
    record = folder / "run.json"
    try:
        lock = FileLock(folder / ".lock").acquire(timeout=0)
    except Timeout:
        holder = f"process {json.loads(record.read_text('utf-8'))['pid']}" if record.is_file() else "another process"
        raise UserError(f"{holder} is training into '{folder}' now; wait until it ends, or stop it.") from None
    with lock:
        yield


@contextmanager
def recorded(
    folder: Path,
    cfg: DictConfig,
    earlier: dict[str, Any] | None,
    changes: Changes,
    like: dict[str, Any] | None = None,
) -> Iterator[Record]:
    """Keeps the record of a run: `running` inside, then `finished`, `stopped` by a signal, or `failed` with the error.

    A run that is on record as `running` while nobody holds its folder was killed.

    A resume that ends before training begins leaves the run as it was.

    Args:
        earlier: the record of the run that goes on, None for a new one.
        changes: of its config.
        like: the record of a run that is made again.
    """
    now = datetime.now(UTC)
    command = shlex.join(["python", *sys.orig_argv[1:]])
    choices, given = (like["choices"], like["overrides"]) if like else _choices()
    if earlier is None:
        content = {"command": command, "overrides": given, "choices": choices, "started": now}
        content |= {"resumed": [], "duration_s": 0.0}
    else:
        again = {"at": now, "command": command, "changes": changes}
        named = {word.split("=")[0].lstrip("+") for word in given}
        chosen = earlier["choices"] | {group: option for group, option in choices.items() if group in named}
        content = {**earlier, "choices": chosen, "resumed": [*earlier["resumed"], again]}
    before = {name: (folder / name).read_bytes() for name in ("run.json", "config.yaml")} if earlier else {}
    record = Record(folder, content)
    was = earlier["status"] if earlier else None
    write_config(folder, cfg)
    record.add(status="running", was=was, error=None, seed=cfg.seed, pid=os.getpid())

    try:
        if "git" not in content:  # this takes a second, in which the run may be killed
            record.add(**_scene())
        yield record
    except BaseException as error:
        if before and not record.begun:
            for name, written in before.items():
                replace(folder / name, lambda file, written=written: file.write(written))
        elif isinstance(error, Stopped):
            record.close("stopped", str(error))
        else:
            record.close("failed", said(error))
        raise
    record.close("finished", None)


def _choices() -> tuple[dict[str, str], list[str]]:
    """The option of each group, and the words of the command."""
    hydra = HydraConfig.get()
    choices = {group: name for group, name in hydra.runtime.choices.items() if name and not group.startswith("hydra")}
    return choices, list(hydra.overrides.task)


def _scene() -> dict[str, Any]:
    """Where and with what the run was made."""
    packages = {d.metadata["Name"]: d.version for d in distributions() if d.metadata["Name"]}
    return {
        "git": {"commit": (_git("rev-parse", "HEAD") or "").strip() or None, "diff": _diff()},
        "python": platform.python_version(),
        "packages": dict(sorted(packages.items(), key=lambda item: item[0].lower())),
        "hardware": {"machine": platform.machine(), "system": platform.platform(), "cpus": os.cpu_count()},
    }


def _diff() -> str | None:
    """Of tracked files and of new code, as `git apply` takes it; through a copy of the index, which stays as it is."""
    index = _git("rev-parse", "--git-path", "index")
    if index is None:
        return None
    with TemporaryDirectory() as place:
        copy = Path(place) / "index"
        if (ROOT / index.strip()).is_file():
            shutil.copy(ROOT / index.strip(), copy)
        _git("add", "--intent-to-add", "--", *CODE, index=copy)
        return _git("diff", "HEAD", index=copy)


def _git(*words: str, index: Path | None = None) -> str | None:
    """What git says of this project, or None where there is no git or no commit."""
    environment = {**os.environ, "GIT_INDEX_FILE": str(index)} if index else None
    try:
        done = subprocess.run(["git", "-C", ROOT, *words], capture_output=True, text=True, check=True, env=environment)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout
