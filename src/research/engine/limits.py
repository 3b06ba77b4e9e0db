"""What arguments of other libraries' classes may be here, where their own annotations say less.

Each is checked as if its class had declared it so (see `arguments.py`), before torch is imported. A value that its
class would accept and then ignore, or that would break what a run promises, is refused with what to take instead.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from research.engine.values import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Probability

Count = Annotated[int, Field(gt=0, le=10**9)]  # more than any run has of anything
Optionally = Count | None
End = Literal[-1] | Count  # -1 for none
Batches = Count | Annotated[float, Field(gt=0, le=1)]  # a number of them, or a share of all
ClipValue = PositiveFloat | None
Spans = dict[Literal["weeks", "days", "hours", "minutes", "seconds"], Annotated[float, Field(ge=0, le=1e8)]]


def _some_time(given: str | Spans) -> str | Spans:
    if isinstance(given, str) and not re.fullmatch(r"\d{1,5}:\d\d:\d\d:\d\d", given):
        raise ValueError("give it as days:hours:minutes:seconds, 00:12:00:00 say")
    if not any(map(int, given.split(":")) if isinstance(given, str) else given.values()):
        raise ValueError("that is no time at all; give a second at least, 00:00:00:01")
    return given


Duration = Annotated[str | Spans, AfterValidator(_some_time)] | None


def _refused(why: str) -> Any:
    def refuse(given: Any) -> Any:
        raise ValueError(why)

    return Annotated[Any, AfterValidator(refuse)]


TRAINER: dict[str, Any] = {
    "accelerator": Literal["auto", "cpu", "gpu", "cuda", "mps", "tpu"],
    "devices": Count
    | Literal[-1, "auto", "-1"]
    | Annotated[str, Field(pattern=r"^(\d+, *)*\d+,?$")]
    | Annotated[list[NonNegativeInt], Field(min_length=1)],
    "num_nodes": Count,
    # others keep weights in other places than a checkpoint, or begin processes that do not join the run's folder
    "strategy": Literal["auto", "ddp", "ddp_find_unused_parameters_false", "ddp_find_unused_parameters_true"],
    "precision": Literal[
        "auto", "32-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true", "64-true", "transformer-engine"
    ],
    "max_epochs": End | None,
    "max_steps": End,
    "min_epochs": Optionally,
    "min_steps": Optionally,
    "max_time": Duration,
    "limit_train_batches": Batches | None,
    "limit_val_batches": Batches | Literal[0] | None,
    "limit_test_batches": Batches | Literal[0] | None,
    "val_check_interval": Batches | None,  # by the clock, one seed would not give one result
    "check_val_every_n_epoch": Optionally,
    "num_sanity_val_steps": NonNegativeInt | Literal[-1],
    "log_every_n_steps": Count,
    "enable_progress_bar": bool,
    "accumulate_grad_batches": Count,
    "gradient_clip_val": ClipValue,
    "gradient_clip_algorithm": Literal["norm", "value"] | None,
    "deterministic": bool | Literal["warn"],
    "benchmark": bool,
    "inference_mode": bool,
    "profiler": Literal["simple", "advanced", "pytorch"] | None,
    "detect_anomaly": bool,
    "sync_batchnorm": bool,
    "logger": _refused("loggers are a group of their own: logger=tensorboard, csv or none"),
    "callbacks": _refused("callbacks are a group of their own: callbacks=..., +callbacks.NAME={_target_: ...}"),
    "plugins": _refused("the run's own writes its checkpoints; choose a precision by trainer.precision"),
    "default_root_dir": _refused("all is written into the run's folder: hydra.run.dir=..."),
    "fast_dev_run": _refused("it saves nothing, and a run is what it saves; take trainer=debug"),
    "overfit_batches": _refused("take trainer=overfit, with trainer.limit_train_batches for more batches than one"),
    "limit_predict_batches": _refused("src/predict.py reads all rows of its input; give it a file with fewer"),
    "enable_checkpointing": _refused("every run is saved, see callbacks.checkpoint; leave it out"),
    "enable_model_summary": _refused("the table of the network is a callback; leave it out by ~callbacks.summary"),
    "enable_autolog_hparams": _refused("settings are logged with the result, and are in config.yaml; leave it out"),
    "use_distributed_sampler": _refused("the order of rows is the data's own, on any number of devices; leave it out"),
    "reload_dataloaders_every_n_epochs": _refused("rows are read once, and drawn anew in each epoch; leave it out"),
    "barebones": _refused("it saves and measures nothing; for speed, take callbacks and logger=none one by one"),
    "model_registry": _refused("a run is kept in its own folder; leave it out"),
}
LIMITS: dict[str, dict[str, Any]] = {
    "lightning.pytorch.Trainer": TRAINER,
    "lightning.pytorch.callbacks.EarlyStopping": {"patience": PositiveInt, "min_delta": NonNegativeFloat},
    "lightning.pytorch.callbacks.EMAWeightAveraging": {"decay": Probability, "update_every_n_steps": PositiveInt},
    "torchmetrics.classification.MulticlassCalibrationError": {"n_bins": PositiveInt},
}
