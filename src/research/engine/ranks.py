"""One run in several processes: which of them this is, the folder that they share, and what ended the first to end.

The first process makes the run's folder, and the others join it. They are started by the first (`trainer=ddp`), which
tells them the folder in their environment, or all at once by torchrun or by srun with several tasks: then the first
tells the folder through torch's store, which lives no longer than they do. Nothing here imports torch at first.
"""

import json
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from subprocess import Popen, TimeoutExpired
from threading import Event, Thread
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from research.engine.durable import replace
from research.engine.errors import OtherRank, UserError, said
from research.engine.stop import Stopped, asked

FOLDER = "RESEARCH_RUN_FOLDER"  # in the environment of a process: the run that it joins
PARENT = "RESEARCH_PARENT"  # the process with which it ends
CAUSE = "cause.json"  # in the run's folder: what ended the first process to end
POLL_S = 0.2
GRACE_S = 10  # for a process to fail by itself, once another has
ARRIVAL_S = 120  # within which all processes have started
HEAR_S = 1  # for a process to hear the exit code
PORTS = 15000  # of a job of Slurm: this and the last four digits of its number, as Lightning has it
SEVERAL = ("train", "reproduce")  # commands for several processes


@dataclass(frozen=True)
class Place:
    """Of this process among those of a run that something else has started.

    Args:
        launcher: who has.
        rank: of this process, of `world`, on all nodes.
        local: processes on each node.
        attempt: how often all were started again.
    """

    launcher: str
    rank: int
    world: int
    local: int
    attempt: int

    def problems(self, name: str, words: Sequence[str]) -> Iterator[str]:
        """What a command asks for that does not fit the processes there are."""
        if name not in SEVERAL and self.world > 1:
            yield f"src/{name}.py works in one process, and {self.launcher} started {self.world}; start it alone."
        if self.local * self.nodes != self.world:
            yield f"{self.launcher} started {self.world} processes; each node needs as many as every other."
        counts = {"trainer.devices": self.local, "trainer.num_nodes": self.nodes}
        for word in words:
            with suppress(HydraException):  # which is told elsewhere
                override = OverridesParser.create().parse_override(word)
                given, key = override.value(), override.key_or_group
                given = len(given) if isinstance(given, list) else given
                if key in counts and given not in ("auto", -1, counts[key]):
                    yield f"{word}: {self.launcher} started {counts[key]}; leave it out, or start as many."

    @property
    def nodes(self) -> int:
        return max(1, self.world // self.local)


def place(env: Mapping[str, str] = os.environ) -> Place | None:
    """The place of this process, None where it stands alone, or was started by the first."""
    if FOLDER in env:
        return None
    if "TORCHELASTIC_RUN_ID" in env:
        rank, world, local = (int(env[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"))
        return Place("torchrun", rank, world, local, int(env.get("TORCHELASTIC_RESTART_COUNT", 0)))
    if int(env.get("SLURM_STEP_NUM_TASKS", 1)) > 1:  # which, unlike what a batch asked for, tells of processes
        world, nodes = int(env["SLURM_STEP_NUM_TASKS"]), int(env.get("SLURM_STEP_NUM_NODES", 1))
        return Place("srun", int(env["SLURM_PROCID"]), world, max(1, world // nodes), 0)
    return None


def alone() -> dict[str, str]:
    """An environment for a process that stands alone, whatever started this one."""
    own = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "NODE_RANK", FOLDER)
    started = ("SLURM_", "TORCHELASTIC_", "MASTER_")
    return {name: value for name, value in os.environ.items() if name not in own and not name.startswith(started)}


class Channel:
    """How the first process tells the others what to join: one message after another, the last an exit code."""

    def __init__(self, place: Place) -> None:
        self.place, self.sent = place, 0
        if place.launcher == "srun":
            _as_torchrun(place)
        self.store = self._store()
        if place.rank:
            self.store.add(self._key("here"), 1)
        if place.attempt:
            self._renew()

    def _store(self) -> Any:
        """Torch's store: torchrun has one, else the first process has."""
        from torch.distributed import DistNetworkError, TCPStore  # pyright: ignore[reportPrivateImportUsage]

        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        master = self.place.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        end = time.monotonic() + ARRIVAL_S
        while True:  # in short waits, within which no signal is heard
            try:
                return TCPStore(
                    address,
                    port,
                    is_master=master,
                    wait_for_workers=False,
                    multi_tenant=True,  # Lightning opens it once more
                    timeout=timedelta(seconds=2),
                )
            except DistNetworkError as error:
                if master or time.monotonic() > end:
                    told = " ".join(str(error).split("\n")[0].split())
                    raise UserError(
                        f"rank {self.place.rank} cannot reach the others at {address}:{port}: {told}. Set MASTER_ADDR "
                        "and MASTER_PORT to a place that the first process can listen at."
                    ) from error

    def _renew(self) -> None:
        """Has torch meet in another store: that of torchrun still has the addresses of the processes before these."""
        from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

        if self.place.rank == 0:
            address = os.environ["MASTER_ADDR"]
            self.renewed = TCPStore(address, 0, is_master=True, wait_for_workers=False, multi_tenant=True)
            self.store.set(self._key("port"), str(self.renewed.port))
        self._await("port")
        port = self.store.get(self._key("port")).decode()
        os.environ |= {"MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": "False"}

    def _await(self, name: int | str) -> None:
        while not self.store.check([self._key(name)]):  # a get would hear no signal
            time.sleep(POLL_S)

    def tell(self, message: str | int) -> None:
        self.store.set(self._key(self.sent), json.dumps(message))
        self.sent += 1

    def begun(self, folder: Path) -> None:
        """For the processes that are started in place of these."""
        self.store.set("research/begun", str(folder.resolve()))

    def earlier(self) -> Path | None:
        """The run that was begun by processes in whose place these were started."""
        known = self.place.attempt and self.store.check(["research/begun"])
        return Path(self.store.get("research/begun").decode()) if known else None

    def end(self, code: int) -> None:
        """Tells the exit code, and waits for the others to hear it: the store may end with this process."""
        self.tell(code)
        others, begun = self.place.world - 1, time.monotonic()
        while (waited := time.monotonic() - begun) < ARRIVAL_S and self.store.add(self._key("heard"), 0) < others:
            if waited > HEAR_S and self.store.add(self._key("here"), 0) == others:
                return  # they are at a run, and have their own end
            time.sleep(POLL_S / 4)

    def leave(self) -> None:
        """Has the first process not wait for this one."""
        with suppress(RuntimeError):  # it is gone
            self.store.add(self._key("heard"), 1)

    def messages(self) -> Iterator[str | int]:
        """What the first process tells, until it ends."""
        try:
            while True:
                self._await(self.sent)
                message = json.loads(self.store.get(self._key(self.sent)))
                self.sent += 1
                yield message
        except RuntimeError:  # the store is gone, and the first process with it
            yield 1

    def _key(self, name: int | str) -> str:
        return f"research/{self.place.attempt}/{name}"


channel: Channel | None = None  # of this process, where something else has started several


def open_channel(place: Place) -> Channel:
    global channel
    channel = Channel(place)
    return channel


def _as_torchrun(place: Place) -> None:
    """Has torch find what it needs where torchrun would have put it."""
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

    env = os.environ
    env |= {"RANK": str(place.rank), "LOCAL_RANK": env["SLURM_LOCALID"], "GROUP_RANK": env["SLURM_NODEID"]}
    env |= {"WORLD_SIZE": str(place.world), "LOCAL_WORLD_SIZE": str(place.local)}
    nodes = env.get("SLURM_STEP_NODELIST") or env["SLURM_JOB_NODELIST"]
    env.setdefault("MASTER_ADDR", SLURMEnvironment.resolve_root_node_address(nodes))
    env.setdefault("MASTER_PORT", str(PORTS + int(env["SLURM_JOB_ID"]) % 10_000))


def hand_over(folder: Path) -> None:
    """Has the other processes of this run join it, those there are and those that will be started."""
    (folder / CAUSE).unlink(missing_ok=True)  # of an earlier end
    os.environ[FOLDER], os.environ[PARENT] = str(folder), str(os.getpid())
    if channel:
        channel.tell(str(folder.resolve()))


def several() -> bool:
    """Whether this run has other processes by now."""
    return "LOCAL_RANK" in os.environ


def rank() -> int:
    """Of this process in its run."""
    here = place()
    return here.rank if here else int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", 0)))


def claim(folder: Path, rank: int, **cause: Any) -> dict[str, Any]:
    """Puts down what ended a process, if it is the first to end; gives what ended the first."""
    path, own = folder / CAUSE, folder / f".cause{rank}"
    content = json.dumps({"rank": rank, "at": time.time(), **cause})
    replace(own, lambda file: file.write(content.encode()))
    with suppress(FileExistsError):
        os.link(own, path)
    own.unlink()
    return json.loads(path.read_text("utf-8"))


class Watch:
    """Looks after the other processes from a thread of this one, which may wait for them for ever.

    Args:
        folder: of the run.
        give_up: puts down and tells what ended the run, where this process cannot.
    """

    def __init__(self, folder: Path, give_up: Callable[[BaseException], object]) -> None:
        self.folder, self.give_up = folder, give_up
        self.children: Sequence[Popen[bytes]] = ()
        self.ended = Event()

    def start(self, children: Sequence[Popen[bytes]] = ()) -> None:
        """Begins to look, also whether processes that this one started end early."""
        self.children = children
        Thread(target=self._look, daemon=True).start()

    def cause(self, error: BaseException) -> BaseException:
        """What ended the run, where `error` ended this process."""
        if not isinstance(error, Stopped | UserError):  # it may be that of one who lost another
            self._lost(wait_s=1)
        try:
            first = self._claimed(error)
        except OSError:  # of a full disk, say
            return error
        return error if first["rank"] == rank() else exception(first)

    def _claimed(self, error: BaseException) -> dict[str, Any]:
        return claim(
            self.folder,
            rank(),
            error=said(error),
            problems=list(error.problems) if isinstance(error, UserError) else None,
            signal=error.number if isinstance(error, Stopped) else None,
            trace="".join(traceback.format_exception(error)),
        )

    def _lost(self, wait_s: float = 0) -> None:
        """Puts down which processes have ended without a word, killed by the system say."""
        for number, child in enumerate(self.children, 1):
            with suppress(TimeoutExpired, OSError):
                if code := child.wait(wait_s):
                    why = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
                    claim(self.folder, number, error=f"its process {why}", problems=None, signal=None, trace="")

    def _look(self) -> None:
        while not self.ended.wait(POLL_S):
            self._lost()
            if not (self.folder / CAUSE).is_file():
                continue
            first = json.loads((self.folder / CAUSE).read_text("utf-8"))
            if self.ended.wait(GRACE_S) or first["rank"] == rank():
                return
            error = exception(first)
            self.give_up(error)
            os._exit(error.code if isinstance(error, Stopped) else 1)


watch: Watch | None = None  # of the run of this process


@contextmanager
def together(folder: Path, give_up: Callable[[BaseException], object]) -> Iterator[None]:
    """What this process does of a run; where another fails first, this one fails with the error of that one.

    Raises:
        Stopped: another process was asked to stop.
        UserError: another told a mistake.
        OtherRank: another failed.
    """
    global watch
    watch = Watch(folder, give_up)
    if several():
        watch.start()
    try:
        yield
    except BaseException as error:
        with asked.held():  # torchrun ends all when one has failed, and what failed is to be put down
            cause = watch.cause(error) if several() else error
        if cause is error:
            raise
        raise cause from error
    finally:
        if watch.children:
            _disconnect()
        watch.ended.set()


def _disconnect() -> None:
    """Leaves the processes that were started for this run alone: the next run of a sweep starts its own."""
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()


def exception(cause: dict[str, Any]) -> BaseException:
    """What ended another process, to be raised here."""
    if cause["signal"]:
        return Stopped(cause["signal"])
    if cause["problems"]:
        return UserError(*(f"rank {cause['rank']}: {problem}" for problem in cause["problems"]))
    return OtherRank(cause["rank"], cause["error"], cause["trace"])
