"""Settings that are right one by one and make no sense together, as the words alone tell; no torch is imported."""

from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig


def contradictions(cfg: DictConfig) -> Iterator[str]:
    """One sentence for each; of a config whose values have been checked one by one."""
    given: Any = cfg.get("trainer")
    if not isinstance(given, DictConfig):
        return
    yield from _length(given)
    yield from _validation(given)
    yield from _processes(given, cfg.data.get("batch_size"))
    if given.get("deterministic") and given.get("benchmark"):
        yield "trainer.benchmark=true tries kernels that are not exact; it needs trainer.deterministic=false."
    if given.get("gradient_clip_algorithm") and not given.get("gradient_clip_val"):
        yield "trainer.gradient_clip_algorithm says how to clip, and nothing is clipped: set trainer.gradient_clip_val."


def _length(given: Any) -> Iterator[str]:
    epochs, steps = given.get("max_epochs") or -1, given.get("max_steps") or -1
    if epochs == steps == -1:  # also with max_time: a schedule is made for a number of steps
        yield (
            f"trainer.max_epochs={_word(given.get('max_epochs'))} and trainer.max_steps=-1 leave the run without an "
            "end; set one of them."
        )
    for what, most in (("epochs", epochs), ("steps", steps)):
        if (least := given.get(f"min_{what}") or 0) > most > 0:
            yield f"trainer.min_{what}={least} is more than trainer.max_{what}={most}."


def _validation(given: Any) -> Iterator[str]:
    every, epochs = given.get("check_val_every_n_epoch"), given.get("max_epochs") or -1
    interval, apart = given.get("val_check_interval"), given.get("accumulate_grad_batches") or 1
    if every and every > epochs > 0:
        yield f"trainer.check_val_every_n_epoch={every} is more than max_epochs={epochs}: no epoch would be validated."
    counts = isinstance(interval, int)  # 1 is a batch, 1.0 an epoch
    within = counts or interval not in (None, 1.0)
    if every is None and not counts:
        yield (
            f"trainer.check_val_every_n_epoch=null counts batches over epochs, so trainer.val_check_interval="
            f"{_word(interval)} must be a number of batches, 100 say."
        )
    whole = counts and interval % apart == 0 and every
    if apart > 1 and within and not whole:  # what is half done would be in no checkpoint
        yield (
            f"trainer.val_check_interval={interval} may validate within a step of accumulate_grad_batches={apart} "
            f"batches; take a number of batches that is a multiple of it, {10 * apart} say."
        )


def _processes(given: Any, rows: int | None) -> Iterator[str]:
    devices, nodes = given.get("devices"), given.get("num_nodes") or 1
    each = devices if isinstance(devices, int) and devices > 0 else 1
    if rows and each * nodes > rows:
        yield (
            f"trainer.devices={devices} on trainer.num_nodes={nodes} are {each * nodes} processes, which share out "
            f"data.batch_size={rows} rows; take at least a row for each."
        )


def _word(value: Any) -> str:
    return "null" if value is None else str(value)
