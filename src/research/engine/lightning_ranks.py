"""What several processes need of Lightning's insides."""

from typing import Any

from lightning import Trainer
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

from research.engine import ranks
from research.engine.stop import asked


def environment() -> ClusterEnvironment:
    """Where Lightning finds the other processes: left to itself, it takes any job of Slurm for several processes."""
    return TorchElasticEnvironment() if ranks.channel else LightningEnvironment()


def prepare(trainer: Trainer) -> None:
    """Leaves signals and failures of other processes to this project."""
    insides: Any = trainer
    # Lightning's handlers would end the run without a save, and talk to the other processes from within
    insides._signal_connector.register_signal_handlers = asked.take
    given = trainer.strategy.launcher
    if type(given) is _SubprocessScriptLauncher:
        trainer.strategy._launcher = Launcher(given.cluster_environment, given.num_processes, given.num_nodes)


class Launcher(_SubprocessScriptLauncher):
    """Lightning's, which after a failure of one process kills all of them, before anything is told."""

    def launch(self, function: Any, *args: Any, trainer: Trainer | None = None, **kwargs: Any) -> Any:
        if not self.cluster_environment.creates_processes_externally:
            self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
            self._call_children_scripts()
            assert ranks.watch is not None
            ranks.watch.start(self.procs)
        return function(*args, **kwargs)
