"""A checkpoint on the disk: whole or not there, whatever happens while it is written; not believed when damaged."""

import os
import random
import signal
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from composing import sealed
from faults import ERRORS, ended, failing, forked

from research.engine.checkpoint import FOLDER, Copy, Files, load, newest, path_of
from research.engine.durable import link, replace
from research.engine.errors import UserError


def a_checkpoint(step: int) -> dict[str, Any]:
    weights = torch.full((1000,), float(step))
    return {"epoch": 0, "global_step": step, "state_dict": {"a": weights, "b": weights}}


def saved(run: Path, step: int, files: Files, best: bool = False, keep: int = 2) -> bool:
    """Whether the checkpoint was announced as saved."""
    names = ["best.ckpt", "last.ckpt"] if best else ["last.ckpt"]
    path = run / FOLDER / names[0]
    files.save_checkpoint(a_checkpoint(step), path, {"names": names, "keep": keep})
    files.wait()
    return files.error is None


def assert_whole(run: Path, steps: tuple[int, ...]) -> None:
    """The newest good checkpoint is of one of these steps, and its content of that step alone."""
    _, found = newest(run)
    assert found["global_step"] in steps
    for tensor in found["state_dict"].values():
        assert torch.equal(tensor, torch.full((1000,), float(found["global_step"])))


def operations(folder: Path, best: bool) -> int:
    """File operations of a save into a run that has saved before."""
    files = Files()
    saved(folder, 1, files, best=True)
    saved(folder, 2, files)
    with failing(folder / FOLDER, (), "EIO") as called:
        assert saved(folder, 3, files, best)
    assert {"open", "write", "fsync", "replace", "link"} <= set(called)
    return len(called)


@pytest.mark.parametrize("best", [False, True], ids=["last", "best"])
@pytest.mark.parametrize("how", [*ERRORS, "SIGKILL"])
def test_no_fault_of_a_save_loses_the_last_good_one(tmp_path: Path, how: str, best: bool) -> None:
    for at in range(operations(tmp_path / "count", best)):
        run = tmp_path / str(at)

        def job(run: Path = run, at: int = at) -> None:
            files = Files()
            assert saved(run, 1, files, best=True)
            assert saved(run, 2, files)
            with failing(run / FOLDER, (at,), how):
                announced = saved(run, 3, files, best)
            (run / "announced").write_text(str(3 if announced else 2))

        if how == "SIGKILL":
            assert ended(forked(job, tmp_path / "out")) == -signal.SIGKILL, (tmp_path / "out").read_text()
        else:
            job()
        told = run / "announced"
        assert_whole(run, (3,) if told.exists() and told.read_text() == "3" else (2, 3))
        assert load(path_of(run, "best"))["global_step"] in (1, 3)
        files = Files()  # the run goes on
        assert saved(run, 4, files)
        assert_whole(run, (4,))
        assert sorted(path.name for path in (run / FOLDER).iterdir()) == ["best.ckpt", "last-1.ckpt", "last.ckpt"]


def test_a_damaged_best_is_put_aside_before_it_is_wanted(tmp_path: Path) -> None:
    files = Files()
    saved(tmp_path, 1, files, best=True)
    saved(tmp_path, 2, files)
    best = path_of(tmp_path, "best")
    best.write_bytes(best.read_bytes()[:-100] + b"x" * 100)
    assert_whole(tmp_path, (2,))
    assert not best.exists()


def test_a_copy_is_written_when_it_is_begun(tmp_path: Path) -> None:
    files = Files()
    files.save_checkpoint(a_checkpoint(1), path_of(tmp_path, "last"), {"names": ["last.ckpt"], "keep": 2})
    assert files.waiting
    assert not path_of(tmp_path, "last").exists()
    files.begin()
    files.wait()
    assert_whole(tmp_path, (1,))


def test_failures_in_a_row_are_counted_and_forgotten(tmp_path: Path) -> None:
    files = Files()
    assert saved(tmp_path, 1, files)
    with failing(tmp_path / FOLDER, range(1000), "ENOSPC"):
        assert not saved(tmp_path, 2, files)
        assert not saved(tmp_path, 3, files)
    assert files.failures == 2
    assert_whole(tmp_path, (1,))
    assert saved(tmp_path, 4, files)
    assert files.failures == 0


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    saved(tmp_path, 1, Files())
    path = path_of(tmp_path, "last")
    whole = path.read_bytes()
    draw = random.Random(0)
    for _ in range(100):
        at = draw.randrange(8 * len(whole))
        flipped = bytearray(whole)
        flipped[at // 8] ^= 1 << at % 8
        path.write_bytes(flipped)
        with pytest.raises(UserError, match="damaged"):
            load(path)


@pytest.mark.parametrize("damage", ["empty", "cut", "foreign", "text", "flipped"])
def test_the_newest_good_one_is_taken_and_the_damaged_one_is_named(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    files = Files()
    for step in (1, 2, 3):
        saved(tmp_path, step, files)
    path = path_of(tmp_path, "last")
    whole = path.read_bytes()
    if damage == "foreign":
        torch.save({"global_step": 9, "state_dict": {}}, path)
    else:
        middle = len(whole) // 2
        flipped = whole[:middle] + bytes([whole[middle] ^ 4]) + whole[middle + 1 :]
        path.write_bytes({"empty": b"", "cut": whole[:-300], "text": b"hello\n", "flipped": flipped}[damage])
    assert_whole(tmp_path, (2,))
    assert "'last.ckpt' is not used" in caplog.text or "last.ckpt' is damaged" in caplog.text
    assert saved(tmp_path, 3, files)  # does not put the damaged one in the place of a good one
    assert_whole(tmp_path, (3,))
    assert path_of(tmp_path, "last").with_name("last.ckpt.damaged").exists()


def test_none_good_is_an_error_that_names_each(tmp_path: Path) -> None:
    (tmp_path / FOLDER).mkdir()
    for name in ("best", "last"):
        path_of(tmp_path, name).write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"no checkpoint to go on from.*best\.ckpt.*last\.ckpt"):
        newest(tmp_path)


def test_what_a_killed_save_left_is_never_written_into(tmp_path: Path) -> None:
    path, part = tmp_path / "a", tmp_path / "a.part"
    path.write_bytes(b"good")
    os.link(path, part)  # a second name, as a kill between link and rename leaves it
    replace(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"new"
    os.link(path, part)
    replace(tmp_path / "b", lambda file: file.write(b"other"))
    with pytest.raises(OSError, match="stop"):
        replace(path, lambda file: (file.write(b"half"), exec("raise OSError('stop')")))
    assert path.read_bytes() == b"new"
    assert not part.exists()


def test_keep_says_how_many_stay(tmp_path: Path) -> None:
    files = Files()
    for step in range(1, 6):
        saved(tmp_path, step, files, best=step == 1, keep=3)
    steps = {path.name: load(path)["global_step"] for path in (tmp_path / FOLDER).iterdir()}
    assert steps == {"best.ckpt": 1, "last.ckpt": 5, "last-1.ckpt": 4, "last-2.ckpt": 3}
    saved(tmp_path, 6, files, keep=1)
    assert sorted(path.name for path in (tmp_path / FOLDER).iterdir()) == ["best.ckpt", "last.ckpt"]


def test_a_disk_without_links_gets_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*paths: Any) -> None:
        raise OSError("not supported")

    monkeypatch.setattr(os, "link", refused)
    (tmp_path / "a").write_bytes(b"content")
    link(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"content"


def test_a_copy_keeps_what_training_changes_later_and_reuses_its_memory() -> None:
    tied = torch.arange(6.0)
    tree = {"a": tied, "b": tied, "list": [torch.tensor(1), "x"], "groups": [{"lr": 0.1}]}
    copy = Copy()
    copy.reserve(tree)
    taken = copy.of(tree)
    tied.add_(1)
    tree["groups"][0]["lr"] = 0.2
    assert torch.equal(taken["a"], torch.arange(6.0))
    assert taken["a"] is taken["b"]
    assert taken["groups"] == [{"lr": 0.1}]
    assert copy.of(tree)["a"].data_ptr() == taken["a"].data_ptr()


def test_a_checkpoint_opens_with_torch_alone(tmp_path: Path) -> None:
    saved(tmp_path, 1, Files())
    assert torch.load(path_of(tmp_path, "last"), weights_only=True)["global_step"] == 1


def strange_tensors() -> dict[str, torch.Tensor]:
    out = torch.tensor([0, 10**9])
    settings: dict[str, Any] = {"size": (2, 2), "check_invariants": False}
    warnings.simplefilter("ignore")
    return {
        "csr-outside": torch.sparse_csr_tensor(torch.tensor([0, 1, 2]), out, torch.ones(2), **settings),
        "csc-outside": torch.sparse_csc_tensor(torch.tensor([0, 1, 2]), out, torch.ones(2), **settings),
        "coo-outside": torch.sparse_coo_tensor(torch.stack([out, out]), torch.ones(2), **settings),
        "csr": torch.eye(2).to_sparse_csr(),
        "coo": torch.eye(2).to_sparse(),
        "quantized": torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.qint8),
        "without memory": torch.empty(2, device="meta"),
        "nested": torch.nested.nested_tensor([torch.ones(1), torch.ones(2)]),
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", strange_tensors())
def test_a_tensor_that_no_run_saves_is_refused(tmp_path: Path, name: str) -> None:
    tensor = strange_tensors()[name]
    for place in ({"state_dict": {"w": tensor}}, {"optimizer_states": [({"x": [tensor]},)]}):
        path = sealed(tmp_path / FOLDER / "best.ckpt", place)
        assert torch.load(path, weights_only=True)  # which torch itself lets through
        with pytest.raises(UserError, match="is damaged: "):
            load(path)
    assert not torch.sparse.check_sparse_tensor_invariants.is_enabled()


@pytest.mark.parametrize("thing", [Path("x"), torch.nn.Linear(1, 1), torch.load], ids=["object", "module", "function"])
def test_more_than_tensors_and_plain_values_is_refused(tmp_path: Path, thing: Any) -> None:
    with pytest.raises(UserError, match="is damaged: Weights only load failed"):
        load(sealed(tmp_path / FOLDER / "best.ckpt", {"state_dict": {"w": thing}}))
