"""Being asked to stop: Ctrl-C, SIGTERM, SIGUSR1 and SIGUSR2 (as Slurm sends before it takes a machine back).

Outside the training loop nothing is half done, and the job leaves at once. Inside it the signal only sets a flag: the
loop finishes its step, saves, and leaves (`saving.py`). A second Ctrl-C always leaves at once. Nothing imports torch.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import active_children
from threading import Thread
from types import FrameType

from research.engine.errors import UserError

POLL_S = 0.5  # how often a process looks whether the one that it serves still lives
SIGNAL = 128  # an exit code above it tells of a signal
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


class Stopped(BaseException):
    """Unwinds a job that was asked to stop.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number

    @property
    def code(self) -> int:
        """Of the process, as a shell gives it."""
        return SIGNAL + self.number


class Asked:
    """What signals this process has had.

    Attributes:
        number: of the first signal, None when there was none.
        patient: whether the job will look at `number` by itself, soon.
    """

    number: int | None = None
    patient = False
    _held = False

    def listen(self) -> None:
        """From now on, for a new job.

        Raises:
            Stopped: by a signal that came as the job before it ended.
        """
        self.patient = False
        self.take()
        self.heed()

    def take(self) -> None:
        """The signals, from whoever handles them now."""
        for number in SIGNALS:
            signal.signal(number, self._note)

    def heed(self) -> None:
        """Leaves if a signal has come and nobody else will look: Python drops what is raised in a destructor.

        Raises:
            Stopped: so it is.
        """
        if self.number and not self.patient:
            raise Stopped(self.number)

    @contextmanager
    def before_errors(self) -> Iterator[None]:
        """Take an error that comes after a signal for its effect: the signal may have broken into a library's work.

        A mistake of the user stays one.

        Raises:
            Stopped: an error came after a signal.
        """
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            if self.number is None:
                raise
            raise Stopped(self.number) from error

    @contextmanager
    def held(self) -> Iterator[None]:
        """Lets no signal in while something short is done, at the end of a job, that is to be done whole."""
        self._held = True
        try:
            yield
        finally:
            self._held = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        again = self.number is not None and number == signal.SIGINT
        self.number = self.number or number
        if self._held:
            return
        if again or not self.patient:
            self.patient = False
            raise Stopped(self.number)


asked = Asked()


def follow(parent: int, leave: Callable[[], object]) -> None:
    """Calls `leave`, from a thread, when the process that started this one is no more, however it ended."""

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(POLL_S)
        leave()

    Thread(target=look, daemon=True).start()


def end_children() -> None:
    """Ends the processes that serve this one alone, whatever they are at.

    Python would ask them to end when it exits, and wait for as long as it takes.
    """
    reported = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch would raise that a worker was killed
    children = [child for child in active_children() if child.daemon]
    for child in children:
        child.kill()
    for child in children:
        child.join()
    signal.signal(signal.SIGCHLD, reported)
