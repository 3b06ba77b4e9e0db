"""Supervised learning: network + loss + metrics + the step. B rows, C classes, K targets."""

from collections.abc import Callable, Iterable
from typing import Any, Protocol, runtime_checkable

import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torchmetrics import MeanMetric, MetricCollection

from research.data.batches import spread
from research.data.spec import Spec
from research.engine.memory import FitsMemory, Weight
from research.engine.schedules import Schedule, training_length
from research.losses import total_weight
from research.tasks.encoding import encoding
from research.tasks.scaling import Standardize

START_ROWS = 5000  # at most, from which a network may start


@runtime_checkable
class Starts(Protocol):
    """A network whose first weights follow from training rows.

    Attributes:
        started: whether it has them; of its state, so that a run that goes on does not start anew.
    """

    started: Tensor

    def start(self, x: Tensor, y: Tensor) -> None:
        """x: (N, ...) as it takes it; y: (N,) classes or (N, K) standardised values."""
        ...


class Supervised(FitsMemory):
    """Trains a network on (x, y).

    Scaling is part of the task, fitted on the training rows and saved with the weights: the network sees standardised
    x (unless it takes the cells as they are) and learns standardised y, while `forward` takes and gives the
    data's own units.

    Args:
        net: x (B, ...) -> (B, C) logits or (B, K) values.
        spec: of the data.
        loss: (prediction, y) -> scalar.
        metrics: by name; each makes a metric of (B, C) probabilities and (B,) classes, or of (B, K) values both.
        optimizer: makes one from parameter groups and `lr`.
        lr: the learning rate; an attribute, so that a finder may set it.
        groups: the network's parameters as the optimizer shall have them, each with its `share` of the rate.
        scheduler: makes a schedule from an optimizer and the length of the run.

    Raises:
        ValueError: a metric does not fit the target.
    """

    def __init__(
        self,
        net: nn.Module,
        spec: Spec,
        loss: nn.Module,
        metrics: dict[str, Callable[..., Any]],
        optimizer: Callable[..., Optimizer],
        lr: float,
        groups: Callable[[nn.Module], list[dict[str, Any]]],
        scheduler: Callable[..., Schedule],
    ) -> None:
        super().__init__()
        self.net, self.spec, self.loss, self.lr = net, spec, loss, lr
        self.make_optimizer, self.make_scheduler, self.groups = optimizer, scheduler, groups
        self.scale_x = encoding(spec, net)
        self.scale_y = Standardize(spec.y_mean, spec.y_std)
        # a group of metrics whose states are equal after the first batch would share them from then on, by chance
        made = MetricCollection(
            {name: self._metric(name, metric) for name, metric in metrics.items()}, compute_groups=False
        )
        self.metrics = nn.ModuleDict({"val": made.clone("val/"), "test": made.clone("test/")})
        self.losses = nn.ModuleDict({"val": MeanMetric(), "test": MeanMetric()})
        self.train_loss = self._zero()  # of this epoch so far: summed over rows
        self.train_weight: Weight = 0  # what their mean divides by
        self.logged = {"train/loss", "train/loss_step", "val/loss", *made.clone("val/")}

    def forward(self, x: Any) -> Tensor:
        """x in the data's units -> (B, C) logits, or (B, K) values in the target's units."""
        return self.scale_y.inverse(self.net(self.scale_x(x)))

    def answer(self, batch: Any, batch_idx: int) -> tuple[Tensor, Tensor]:
        """What the network says of a batch, (B, C) or (B, K) as it is trained, and y in the data's units."""
        x, y = batch
        # what a frozen base outputs of an image, (B, H), has been scaled before
        return self.net(x if self.spec.kind == "image" and x.dim() == 2 else self.scale_x(x)), y

    def predicted(self, raw: Tensor) -> Tensor:
        """Of what the network says: (B, C) probabilities, or (B, K) values in the data's units."""
        return raw.float().softmax(1) if self.spec.target == "class" else self.scale_y.inverse(raw.float())

    def loss_of(self, batch: Any, batch_idx: int) -> tuple[Tensor, Weight]:
        raw, y = self.answer(batch, batch_idx)
        return self.loss(raw, self.scale_y(y)), total_weight(self.loss, y)

    def weight_of(self, batch: Any) -> Weight:
        return total_weight(self.loss, batch[1])

    def count(self, loss: Tensor, weight: Weight) -> None:
        if isinstance(weight, Tensor):
            self.train_loss += loss * weight
        else:
            self.train_loss.add_(loss, alpha=weight)
        self.train_weight = self.train_weight + weight

    def num_classes(self) -> int:
        """That metrics tell apart."""
        return len(self.spec.classes)

    def refusals(self, cfg: Any, trainer: Any) -> Iterable[str]:
        """One sentence for each setting of the run that this task has no use for."""
        return ()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        found = self.learn(batch, batch_idx)
        if found is None:
            return None
        loss, _ = found
        trainer: Any = self.trainer
        if (trainer.global_step + 1) % trainer.log_every_n_steps == 0:  # `log` in every step costs 5 % of it
            self.log("train/loss_step", loss, prog_bar=True, logger=bool(trainer.loggers))
        scale = self.loss_scale(batch_idx)
        return loss if scale == 1 else loss * scale

    def on_fit_start(self) -> None:
        if not isinstance(self.net, Starts) or self.net.started:
            return
        rows = self.trainer.datamodule.rows["train"]  # pyright: ignore
        x, y = rows[spread(len(rows), START_ROWS)]
        self.net.start(self.scale_x(x.to(self.device)), self.scale_y(y.to(self.device)))

    def on_train_start(self) -> None:
        self.train_loss = self.train_loss.to(self.device)

    def on_train_epoch_start(self) -> None:
        self.train_loss, self.train_weight = self._zero(), 0

    def on_train_epoch_end(self) -> None:
        loss, weight = self._all_seen()
        self.log("train/loss", (loss / (weight or 1)).float(), sync_dist=True, logger=bool(self.trainer.loggers))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["seen"] = self._all_seen()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.global_rank == 0:
            self.train_loss, self.train_weight = checkpoint["seen"]

    def _zero(self) -> Tensor:
        """A sum to begin with, in double precision: in which order its terms are added must not show in a loss."""
        return torch.zeros((), dtype=torch.float32 if self.device.type == "mps" else torch.float64, device=self.device)

    def _all_seen(self) -> tuple[Tensor, float]:
        """Return the sum of the losses of all processes in this epoch so far, and what their mean divides by."""
        strategy: Any = self.trainer.strategy
        weight = strategy.reduce(self._zero() + self.train_weight, reduce_op="sum")
        return strategy.reduce(self.train_loss.clone(), reduce_op="sum"), weight.item()

    def on_validation_start(self) -> None:
        for scores in (self.metrics, self.losses):  # whose sums a precision of 16 bits would round
            scores._apply(_widened)

    def on_test_start(self) -> None:
        self.on_validation_start()

    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self._score("val", batch, batch_idx)

    def test_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self._score("test", batch, batch_idx)

    def _score(self, split: str, batch: Any, batch_idx: int) -> Tensor:
        """Adds a batch to the metrics of a split; gives (B, C) probabilities or (B, K) values."""
        raw, y = self.answer(batch, batch_idx)
        losses: Any = self.losses[split]
        metrics: Any = self.metrics[split]
        losses.update(self.loss(raw, self.scale_y(y)), total_weight(self.loss, y))
        predicted = self.predicted(raw)
        metrics.update(predicted, _widened(y))
        return predicted

    def on_validation_epoch_end(self) -> None:
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        self._log_scores("test")

    def _log_scores(self, split: str) -> None:
        losses: Any = self.losses[split]
        metrics: Any = self.metrics[split]
        values = {f"{split}/loss": losses.compute(), **metrics.compute()}
        losses.reset()
        metrics.reset()
        fitting = (
            bool(self.trainer.loggers) and self.trainer.state.fn == TrainerFn.FITTING
        )  # a later scoring must not add a point to the curves
        self.log_dict(values, logger=fitting, sync_dist=True)  # the same on every process already; this says so

    def configure_optimizers(self) -> Any:
        groups = [{"lr": self.lr * g.pop("share"), **g} for g in (*self.groups(self.net), *self.groups_beside())]
        optimizer = self.make_optimizer(groups, lr=self.lr)
        return {"optimizer": optimizer, "lr_scheduler": self.make_scheduler(optimizer, training_length(self.trainer))}

    def groups_beside(self) -> list[dict[str, Any]]:
        """Parameter groups of what learns beside the network: in the loss, say, or in a task of one's own."""
        inside = set(self.net.parameters())
        beside = [p for p in self.parameters() if p.requires_grad and p not in inside]
        decayed = {"name": "task/decayed", "params": [p for p in beside if p.dim() > 1]}
        kept = {"name": "task/kept", "params": [p for p in beside if p.dim() <= 1], "weight_decay": 0.0}
        return [{**group, "share": 1.0} for group in (decayed, kept) if group["params"]]

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        if not isinstance(scheduler, ReduceLROnPlateau):  # which StepPlateau steps
            super().lr_scheduler_step(scheduler, metric)

    def _metric(self, name: str, make: Callable[..., Any]) -> Any:
        if name == "loss":
            raise ValueError("metrics.loss: the loss is logged under this name; give the metric another")
        classes = self.spec.target == "class"
        known = {"num_classes": self.num_classes(), "validate_args": False} if classes else {}
        try:
            return make(**known)
        except (TypeError, ValueError) as error:
            raise ValueError(f"metrics.{name} does not score a {self.spec.target}: {error}") from error


def _widened(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
