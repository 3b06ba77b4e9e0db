"""What a run leaves beside its weights: `run.json`, `config.yaml` and `metrics.json`. Nothing here imports torch."""

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from research.engine.reopen import Changes

ROOT = Path(__file__).parents[3]


def write_json(path: Path, content: Any) -> None:
    """Writes all of it or nothing: to a file beside it, then renamed."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(content, indent=2, default=str) + "\n", "utf-8")
    part.replace(path)


class Record:
    """`run.json`, kept up to date while the run goes on.

    Args:
        folder: of the run.
        content: as it stands; keys are added with `add`.
    """

    def __init__(self, folder: Path, content: dict[str, Any]) -> None:
        self.folder, self.content = folder, content

    def add(self, **values: Any) -> None:
        self.content.update(values)
        write_json(self.folder / "run.json", self.content)


@contextmanager
def recorded(folder: Path, cfg: DictConfig, earlier: dict[str, Any] | None, changes: Changes) -> Iterator[Record]:
    """Keeps the record of a run: `running` inside, then `finished`, or `failed` with the error.

    Args:
        earlier: the record of the run that goes on, None for a new one.
        changes: of its config.
    """
    now = datetime.now(UTC)
    command = shlex.join(["python", *sys.argv])
    kept = [word for word in HydraConfig.get().overrides.task if not word.startswith("resume=")]
    content = {"command": command, "started": now, **_scene(), "resumed": []} if earlier is None else earlier
    if earlier is not None:
        content["resumed"].append({"at": now, "command": command, "changes": changes})
    record = Record(folder, content)
    record.add(status="running", error=None, overrides=kept, changes=changes, seed=cfg.seed, pid=os.getpid())
    OmegaConf.save(cfg, folder / "config.yaml", resolve=True)
    spent = content.get("duration_s", 0.0)
    status, said = "finished", None
    try:
        yield record
    except BaseException as error:
        status, said = "failed", f"{type(error).__name__}: {error}"
        raise
    finally:
        ended = datetime.now(UTC)
        record.add(status=status, error=said, ended=ended, duration_s=spent + (ended - now).total_seconds())


def _scene() -> dict[str, Any]:
    """Where and with what the run was made."""
    packages = {d.metadata["Name"]: d.version for d in distributions() if d.metadata["Name"]}
    return {
        "git": {"commit": _git("rev-parse", "HEAD"), "diff": _git("diff", "HEAD")},
        "python": platform.python_version(),
        "packages": dict(sorted(packages.items(), key=lambda item: item[0].lower())),
        "hardware": {"machine": platform.machine(), "system": platform.platform(), "cpus": os.cpu_count()},
    }


def _git(*words: str) -> str | None:
    """What git says of this project, or None where there is no git or no commit."""
    try:
        done = subprocess.run(["git", "-C", ROOT, *words], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
