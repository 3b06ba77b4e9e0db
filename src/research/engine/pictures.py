"""Pictures in TensorBoard: a few training images as the network sees them, and a confusion matrix of the test rows."""

from typing import Any

from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from research.engine.loggers import boards

NUM_IMAGES = 32


class Pictures(Callback):
    """Draws into TensorBoard where that is a logger, else nowhere."""

    def __init__(self) -> None:
        self.matrix: Any = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        spec: Any = pl_module.spec
        if trainer.global_step or spec.kind != "image":
            return
        x: Tensor = batch[0][:NUM_IMAGES]  # (n, C, H, W), augmented
        for board in boards(trainer) if x.shape[1] in (1, 3) else ():
            board.experiment.add_images("train/inputs", x.clamp(0, 1).float(), 0)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        spec: Any = pl_module.spec
        if spec.classes:
            self.matrix = MulticlassConfusionMatrix(len(spec.classes), validate_args=False).to(pl_module.device)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self.matrix is not None:
            self.matrix.update(outputs, batch[1])

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.matrix is None:
            return
        counts = self.matrix.compute()  # (C, C), on every process
        spec: Any = pl_module.spec
        for board in boards(trainer) if trainer.is_global_zero else ():
            board.experiment.add_figure("test/confusion", _figure(counts, spec.classes), trainer.global_step)


def _figure(counts: Tensor, classes: tuple[str, ...]) -> Any:
    import matplotlib  # takes half a second, and only here

    matplotlib.use("agg")
    from matplotlib.figure import Figure
    from sklearn.metrics import ConfusionMatrixDisplay

    figure = Figure(figsize=(1.5 + 0.5 * len(classes), 1 + 0.5 * len(classes)), layout="constrained")
    shown = ConfusionMatrixDisplay(counts.cpu().numpy(), display_labels=classes)
    shown.plot(ax=figure.subplots(), colorbar=False, cmap="Blues", xticks_rotation="vertical")
    return figure
