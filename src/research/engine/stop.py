"""Being asked to stop: Ctrl-C, SIGTERM, SIGUSR1 (as Slurm sends before it takes a machine back).

Outside the training loop nothing is half done, and the job leaves at once. Inside it the signal only sets a flag: the
loop finishes its step, saves, and leaves (`saving.py`). A second Ctrl-C always leaves at once. Nothing imports torch.
"""

import signal
from types import FrameType

SIGNAL = 128  # an exit code above it tells of a signal
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


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

    def listen(self) -> None:
        """From now on, for a new job."""
        self.number, self.patient = None, False
        self.take()

    def take(self) -> None:
        """The signals, from whoever handles them now."""
        for number in SIGNALS:
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        again = self.number is not None and number == signal.SIGINT
        self.number = self.number or number
        if again or not self.patient:
            self.patient = False
            raise Stopped(self.number)


asked = Asked()


def deaf(worker: int) -> None:
    """For a process that reads batches: it ends with the one that it reads for, which may need one more batch."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
