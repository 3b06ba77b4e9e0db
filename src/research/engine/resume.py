"""Changed settings on a resumed run: the state comes from the checkpoint, the settings from the command."""

from typing import Any

from lightning import Callback, LightningModule, Trainer

from research.engine.reopen import Changes

# What a schedule has counted; all else it holds (lengths, factors, patience) follows from the config.
COUNTED = {
    "last_epoch",
    "_step_count",
    "_last_lr",
    "base_lrs",
    "best",
    "num_bad_epochs",
    "cooldown_counter",
    "lr_lambdas",
}
RATES = ("lr", "initial_lr", "max_lr", "min_lr")


class Resumed(Callback):
    """Honours what the command changed, where Lightning would put the checkpoint's settings back.

    Args:
        changes: of the config, since the run was last saved.
        further: the run had finished, by early stopping perhaps, and is to go on nevertheless.
    """

    def __init__(self, changes: Changes, further: bool) -> None:
        self.changes, self.further = changes, further

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self.further:
            checkpoint["callbacks"]["Saving"]["ends"] = False
        if "optimizer._target_" in self.changes:
            checkpoint["optimizer_states"] = []
            checkpoint["lr_schedulers"] = []
        if "scheduler._target_" in self.changes:
            checkpoint["lr_schedulers"] = []
        for state in checkpoint["lr_schedulers"] if self.changes else ():
            for key in state.keys() - COUNTED:
                del state[key]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if "optimizer._target_" in self.changes:
            return
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                self._set(group)
        before, after = self.changes.get("optimizer.lr", (1, 1))  # since the checkpoint
        for config in trainer.lr_scheduler_configs:
            if hasattr(config.scheduler, "base_lrs"):
                config.scheduler.base_lrs = [rate * after / before for rate in config.scheduler.base_lrs]

    def _set(self, group: dict[str, Any]) -> None:
        for key, (before, after) in self.changes.items():
            name = key.removeprefix("optimizer.")
            if name == key or name not in group:
                continue
            if name == "lr":  # a schedule may have moved it: keep its shape
                group.update({rate: group[rate] * after / before for rate in RATES if rate in group})
            elif not (name == "weight_decay" and str(group.get("name")).endswith("kept")):
                group[name] = after
