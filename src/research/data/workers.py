"""The processes that read batches: they outlive every signal but their own, and never the process they read for.

A terminal and Slurm send a signal to every process of a run. The main process may need one more batch before it stops,
so the workers go on; it ends them itself when it is done, on whatever way out. Nothing here imports torch.
"""

import os
import signal
import sys
from multiprocessing import parent_process
from multiprocessing.context import ForkContext, ForkProcess
from threading import Thread

from research.engine.stop import POLL_S, SIGNALS


class Worker(ForkProcess):
    """A process that is ended by whoever waits for its end, as nobody does whose batches are still wanted.

    Torch would have it finish the batch it is reading, for up to five seconds, worker after worker.
    """

    def start(self) -> None:
        """Starts with all signals held back, until `attend` receives them."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def join(self, timeout: float | None = None) -> None:
        self.terminate()
        super().join(timeout)


class Workers(ForkContext):
    """What makes the processes of a DataLoader."""

    Process = Worker


def workers(num: int) -> dict[str, object]:
    """The arguments of a DataLoader that reads with so many processes."""
    if not num:
        return {}
    context = Workers() if sys.platform == "linux" else None
    return {
        "num_workers": num,
        "persistent_workers": True,
        "worker_init_fn": attend,
        "multiprocessing_context": context,
    }


def attend(worker: int) -> None:
    """Has this worker obey its main process alone."""
    if sys.platform == "linux":
        main = parent_process()
        assert main is not None
        Thread(target=_obey, args=(main.pid,), daemon=True).start()
        return
    for number in set(SIGNALS) - {signal.SIGTERM}:  # of which only Linux says who sent it: torch ends at any
        signal.signal(number, signal.SIG_IGN)


def _obey(main: int | None) -> None:
    """Ends the worker at once when the main process terminates it or is no more.

    The exit code is 0: torch takes any other for a worker that has failed.
    """
    while os.getppid() == main:
        received = signal.sigtimedwait(SIGNALS, POLL_S)
        if received and received.si_signo == signal.SIGTERM and received.si_pid == main:
            break
    os._exit(0)
