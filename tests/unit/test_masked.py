"""Masked-word prediction: which words are hidden, and what is learnt from them."""

from typing import Any

import pytest
import torch
from composing import composed, options

from research.data.spec import Spec
from research.engine.build import make
from research.engine.randomness import reseed

assert "masked" in options("task")
SPEC = Spec("text", (50, 20), "class", ("a", "b"), class_counts=(1, 1), mask=4, special=(0, 1, 2, 3, 4))


@pytest.fixture
def task() -> Any:
    torch.manual_seed(0)
    cfg = composed("model=masked_bert", "model.architecture.hidden_size=16", "model.architecture.intermediate_size=8")
    parts: Any = {"loss": make(cfg.loss)(spec=SPEC), "metrics": make(cfg.metrics), "lr": 1.0}
    more: Any = {"optimizer": None, "groups": None, "scheduler": None}
    return make(cfg.task)(net=make(cfg.model)(spec=SPEC), spec=SPEC, **parts, **more)


def texts(rows: int = 400) -> dict[str, torch.Tensor]:
    ids = torch.randint(5, 50, (rows, 20), generator=torch.Generator().manual_seed(0))
    ids[:, 0], ids[:, -1] = 2, 0
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


def test_a_share_of_the_words_is_hidden_and_never_a_separator(task: Any) -> None:
    seen: dict[str, Any] = {}

    def net(x: dict[str, torch.Tensor], hidden: torch.Tensor) -> torch.Tensor:
        seen.update(x, hidden=hidden)
        return torch.zeros(int(hidden.sum()), 50)

    task.net.forward = net
    x = texts()
    reseed(0)
    assert task.training
    raw, y = task.answer((x, None), 0)
    hidden, now = seen["hidden"], seen["input_ids"]
    assert raw.shape == (len(y), 50)
    assert torch.equal(y, x["input_ids"][hidden])
    assert not hidden[:, [0, -1]].any()
    assert hidden[:, 1:-1].float().mean().item() == pytest.approx(0.15, abs=0.02)
    assert torch.equal(now[~hidden], x["input_ids"][~hidden])
    assert (now[hidden] == 4).float().mean().item() == pytest.approx(0.8, abs=0.04)
    kept = (now[hidden] == y).float().mean().item()
    assert kept == pytest.approx(0.1 + 0.1 / 50, abs=0.03)


def test_scoring_hides_the_same_words_each_time_and_training_others(task: Any) -> None:
    x = texts(8)
    task.eval()
    scored = [task.answer((x, None), 3)[1] for _ in range(2)]
    assert torch.equal(*scored)
    task.train()
    drawn = [task.answer((x, None), 3)[1].tolist() for _ in range(2)]
    assert drawn[0] != drawn[1]


def test_scoring_hides_of_a_text_the_same_words_in_every_batch(task: Any) -> None:
    """Those of its row, whatever is beside it, how far it is padded, and which batch of which process it is in."""
    x, seen = texts(60), []
    for i in range(60):
        x["input_ids"][i, 2 + i % 15 :] = 0  # one to fifteen words
    task.eval()
    task.net.forward = lambda x, hidden: seen.append((x["input_ids"], hidden)) or torch.zeros(int(hidden.sum()), 50)
    targets = []
    for size in (1, 7, 60):
        y = [task.answer(({k: v[i : i + size] for k, v in x.items()}, None), i)[1] for i in range(0, 60, size)]
        targets.append(torch.cat(y))
    narrow = {k: v[:15, :16] for k, v in x.items()}
    task.answer((narrow, None), 0)
    given, hidden = (torch.cat([part[i] for part in seen[:60]]) for i in (0, 1))
    assert all(torch.equal(y, targets[0]) for y in targets)
    assert torch.equal(given, seen[-2][0])
    assert torch.equal(given[:15, :16], seen[-1][0])
    assert hidden.any(1).all()
    assert 0.1 < hidden.sum() / (x["input_ids"] > 4).sum() < 0.4


def test_a_batch_without_a_drawn_word_hides_all(task: Any) -> None:
    task.share = 0.0
    raw, y = task.answer((texts(2), None), 0)
    assert len(raw) == len(y) == 2 * 18


def test_logits_of_hidden_words_are_those_of_all_words(task: Any) -> None:
    task.eval()
    x = texts(4)
    hidden = torch.rand(4, 20) < 0.5
    whole = task.net(x)
    assert whole.shape == (4, 20, 50)
    torch.testing.assert_close(task.net(x, hidden), whole[hidden])
