"""What the tests share: running the README's commands as a user would."""

import json
import logging
import os
import runpy
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from faults import ended, forked
from pytest_socket import enable_socket

# One thread a test, and a test a core: threads that wait for one another spin. Read when torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# No test reaches the hub, in a process of its own either: nobody listens there. Read when its library is imported.
os.environ |= {"HF_ENDPOINT": "http://127.0.0.1:9", "NO_PROXY": "127.0.0.1"}

ROOT = Path(__file__).parents[1]


class Run:
    """A finished command: its exit code, what it printed, and the run folder when it was told one."""

    def __init__(self, code: int, out: str, folder: Path) -> None:
        self.code, self.out, self.folder = code, out, folder

    def json(self, name: str) -> dict[str, Any]:
        return json.loads((self.folder / name).read_text("utf-8"))


Command = Callable[..., Run]


@pytest.fixture
def command(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Command:
    """Runs a script of `src/` with words of the command line, in one thread, into a folder of the test.

    In a process that is forked from this one, whose libraries are imported already: on two cores that saves half of a
    short command's time. The pages' commands (`test_readme.py`, `test_own_data.py`) start as a user starts them, and so
    does what is said to be `fresh`: where the environment counts that Python starts in.
    """
    printed_to = tmp_path_factory.mktemp("printed")

    def call(name: str, *words: str, folder: Path | None = None, ok: bool = True, fresh: bool = False) -> Run:
        into = folder or tmp_path / "run"
        reopens = any(word.startswith(("resume=", "run=")) for word in words)
        where = () if reopens else (f"hydra.run.dir={into}",)
        if fresh:
            line = [sys.executable, f"src/{name}.py", *words, *where]
            done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False, timeout=900)
            code, printed = done.returncode, done.stdout + done.stderr
        else:
            warm_up()
            out = printed_to / f"{len(list(printed_to.iterdir()))}.txt"
            code = ended(forked(partial(script, name, *words, *where), out), 900)
            printed = out.read_text("utf-8", "replace")
        if ok:
            assert code == 0, printed
        return Run(code, printed, into)

    return call


@cache
def warm_up() -> None:
    """Imports what a run imports, once for all processes that are forked from this one."""
    for name in (
        "research.engine.train",
        "research.engine.fit",
        "research.engine.evaluate",
        "research.engine.predict",
        "research.tasks.supervised",
        "research.data.augment",
        "kornia.augmentation",
        "matplotlib.pyplot",
        "sklearn.tree",
        "torch._dynamo",
        "torch.utils.tensorboard",
        "torchmetrics",
    ):
        import_module(name)


def script(name: str, *words: str) -> None:
    """What `python src/NAME.py WORDS` does, in a process that was forked from pytest."""
    enable_socket()
    os.environ |= {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    os.chdir(ROOT)
    logging.root.handlers.clear()
    warnings.resetwarnings()
    warnings.simplefilter("default")
    sys.argv = [f"src/{name}.py", *words]
    sys.orig_argv = [sys.executable, *sys.argv]
    runpy.run_path(sys.argv[0], run_name="__main__")


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's own files in an empty folder."""
    place = tmp_path_factory.mktemp("clone")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, place / name)
    return place


@pytest.fixture
def texts(tmp_path: Path) -> list[str]:
    """The words of a tiny BERT of random weights on eighty short texts."""
    lines = [f"{['good', 'bad'][i % 2]} text {'very ' * (i % 5)}number {i},{'xy'[i % 2]}" for i in range(80)]
    (tmp_path / "texts.csv").write_text("\n".join(["text,label", *lines]))
    sizes = "model.architecture={hidden_size: 16, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 16}"
    data = ("data=text", f"data.path={tmp_path / 'texts.csv'}", "data.batch_size=16")
    return ["model=bert", "model.pretrained=null", sizes, *data, f"cache.folder={tmp_path / 'cache'}"]


def in_cache(home: Path, name: str, config: Any) -> Path:
    """A model of random weights as the Hugging Face cache in `home` would hold it; gives the folder of its files."""
    from transformers import AutoModel

    from research.engine.pretrained import PACKAGED, tokenizer

    place = home / f"hub/models--{name.replace('/', '--')}"
    snapshot = place / "snapshots/0123456789abcdef0123456789abcdef01234567"
    AutoModel.from_config(config).save_pretrained(snapshot)
    tokenizer(PACKAGED).save_pretrained(snapshot)
    (place / "refs").mkdir()
    (place / "refs/main").write_text(snapshot.name)
    return snapshot
