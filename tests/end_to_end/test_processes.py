"""What the README says of several processes against one: each sentence of it."""

from pathlib import Path
from typing import Any

import pytest
from conftest import Command
from end_to_end.test_lasting import QUIET
from end_to_end.test_resume import assert_same, last

pytestmark = pytest.mark.slow

# by gradient descent, which keeps rounding as small as it is: Adam divides by it where a gradient is near zero
WORDS = (*QUIET, "trainer.max_epochs=2", "optimizer=sgd")
BERT = ("model.architecture={hidden_size: 16, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 16}",)
TEXTS = ("data.packages=[asyncio,email]", "data.max_length=16")
CASES: dict[str, tuple[str, ...]] = {
    "average": ("model.dropout=0", "callbacks=ema", "trainer.accumulate_grad_batches=3"),
    "tail": ("model.dropout=0", "callbacks=swa", "trainer.max_epochs=4"),
    "balanced": ("model.dropout=0", "data.balanced=true", "data=table", "data.target=good", "data.duplicates=keep"),
}
RANDOM: dict[str, tuple[str, ...]] = {
    "dropout": (),
    "augmented": ("model.dropout=0", "augment=images"),
    "cnn": ("model=cnn", "model.width=4", "model.dropout=0"),
    "masked": ("model=masked_bert", *BERT, *TEXTS, "model.dropout=0", "optimizer.lr=0.01"),
}
REPEATED = ("augmented", "masked")  # a run takes long; these draw in the data and in the step


def words_of(case: tuple[str, ...], folder: Path) -> tuple[str, ...]:
    if "data=table" not in case:
        return (*WORDS, *case)
    rows = folder / "rows.csv"
    rows.write_text("\n".join(["size,good", *(f"{i * 37 % 101},{int(i * 37 % 101 > 80)}" for i in range(300))]))
    return (*WORDS, *case, f"data.path={rows}")


@pytest.mark.parametrize("name", CASES)
def test_a_network_without_randomness_gets_the_metrics_of_one_process(
    name: str, command: Command, tmp_path: Path
) -> None:
    words = words_of(CASES[name], tmp_path)
    one = command("train", *words, folder=tmp_path / "one").json("metrics.json")
    two = command("train", *words, "trainer=ddp", folder=tmp_path / "two").json("metrics.json")
    assert two == pytest.approx(one, abs=1e-5)


@pytest.mark.parametrize("name", RANDOM)
def test_each_process_draws_for_its_own_rows_and_the_run_repeats_and_is_scored_as_one_process_scores_it(
    name: str, command: Command, tmp_path: Path
) -> None:
    words = words_of(RANDOM[name], tmp_path)
    one = command("train", *words, folder=tmp_path / "one").json("metrics.json")
    two = command("train", *words, "trainer=ddp", folder=tmp_path / "two")
    assert two.json("metrics.json")["val/loss"] != pytest.approx(one["val/loss"], abs=1e-4)
    if name in REPEATED:
        again = command("train", *words, "trainer=ddp", folder=tmp_path / "again")
        assert again.json("metrics.json") == two.json("metrics.json")
        assert_same(last(again.folder)["state_dict"], last(two.folder)["state_dict"])
    command("evaluate", f"run={two.folder}", "data.batch_size=7")
    scored: dict[str, Any] = two.json("evaluate.json")
    assert scored == pytest.approx(two.json("metrics.json"), abs=1e-5)
    assert two.out.count("batch norm is of each process by itself") == (name == "cnn")
