"""What comes out of a run's folder is data: one that someone else has made runs no code, whatever its files say."""

import importlib
import json
import os
import pickle
import sys
import time
import warnings
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from composing import CONF, composed, options
from faults import ended, forked
from hostile import Node, blocked, payloads
from hydra import initialize_config_dir
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from research.engine import reopen, trust
from research.engine.build import make
from research.engine.check import check
from research.engine.errors import UserError
from research.engine.launch import launch
from research.engine.opened import _refuse_others
from research.engine.pretrained import encoder, from_run, tokenizer
from research.engine.record import write_config
from research.engine.reopen import changes, pointed, reopened, saved_config

COMMANDS = ("train", "evaluate", "predict", "export", "reproduce", "describe")
PARTS = (
    "loss", "scheduler", "optimizer", "augment", "augment.transforms.0", "finetune", "finetune.lora", "metrics.acc",
    "metrics.new", "callbacks.checkpoint", "callbacks.new", "logger", "trainer", "trainer.plugins.0",
    "trainer.profiler", "data", "data.fractions.0", "model", "model.width", "task", "new", "new.0.0",
)  # fmt: skip
SECRET = "RESEARCH_TEST_SECRET"


@pytest.fixture(scope="module", autouse=True)
def once() -> Iterator[None]:
    """Has each config composed, and each folder looked through, once: most of what opening a run takes."""
    compose, targets = reopen.compose, trust.targets
    made = cache(lambda name, words: compose(name, list(words)))
    found = cache(lambda folders: targets(folders))

    def composing(name: str, words: Any = ()) -> DictConfig:
        return made(name, tuple(words))  # which nobody changes

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reopen, "compose", composing)
        patch.setattr(trust, "compose", composing)
        patch.setattr(trust, "targets", lambda folders: found(tuple(folders)))
        yield


@pytest.fixture(scope="module")
def base() -> Node:
    """The config of a run, as it is saved."""
    tree = OmegaConf.to_container(composed("augment=images", "model=cnn"), resolve=True)
    assert isinstance(tree, dict)
    return tree  # pyright: ignore[reportReturnType]


@pytest.fixture
def run(tmp_path: Path, base: Node) -> Path:
    return a_run(tmp_path / "run", base)


def a_run(folder: Path, tree: Node) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    (folder / "run.json").write_text(json.dumps({"choices": {"model": "cnn"}, "status": "finished"}))
    return folder


def with_node(tree: Node, place: str, given: Any) -> Node:
    """A copy of a config with something else at a dotted key."""
    made = json.loads(json.dumps(tree))
    here, keys = made, place.split(".")
    for key, following in zip(keys, [*keys[1:], ""], strict=True):
        inner = given if not following else ([] if following == "0" else {})
        if isinstance(here, list):
            here[:] = [inner]
            here = inner
        else:
            if not following or not isinstance(here.get(key), dict | list):
                here[key] = inner
            here = here[key]
    return made


def opened(run: Path, command: str = "evaluate", *values: str, groups: Any = (), more: Any = ()) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return reopened(command, run, list(groups), list(values), [CONF, *more])


def refusal(run: Path, command: str = "evaluate", *values: str) -> str:
    with pytest.raises(UserError) as raised:
        opened(run, command, *values)
    return str(raised.value)


def is_live(payload: Node, folder: Path, marker: Path) -> bool:
    """Whether Hydra has it called, in a process of its own that finds modules in the folder."""

    def job() -> None:
        remote: Any = importlib.import_module("transformers.dynamic_module_utils")

        warnings.simplefilter("ignore")
        remote.HF_MODULES_CACHE = str(folder / "modules")
        sys.path.insert(0, str(folder))
        os.chdir(folder)
        instantiate(OmegaConf.create({"node": payload}).node, _convert_="all")
        for _ in range(100):  # programs that are not waited for
            if os.path.lexists(marker):
                return
            time.sleep(0.02)

    ended(forked(job, folder / "out"))
    return os.path.lexists(marker)


def names() -> list[str]:
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        return list(payloads(Path(place), Path(place) / "marker"))


LIVE = names()


def test_the_corpus_is_large() -> None:
    assert len(LIVE) >= 60


@pytest.mark.parametrize("name", LIVE)
def test_a_payload_that_works_under_hydra_is_refused_by_every_command(base: Node, tmp_path: Path, name: str) -> None:
    folder, marker = tmp_path / "run", tmp_path / "marker"
    folder.mkdir()
    payload = payloads(folder, marker)[name]
    assert is_live(payload, folder, marker), (folder / "out").read_text()
    os.rmdir(marker) if marker.is_dir() and not marker.is_symlink() else marker.unlink()
    for index, command in enumerate(COMMANDS):
        part = PARTS[(LIVE.index(name) * len(COMMANDS) + index) % len(PARTS)]
        told = refusal(a_run(folder, with_node(base, part, payload)), command)
        assert f"{part}._target_={payload['_target_']} is not named in conf/" in told
    assert not os.path.lexists(marker)


def test_what_hydra_refuses_itself_is_refused_before_it(base: Node, tmp_path: Path) -> None:
    for index, (_, payload) in enumerate(blocked(tmp_path, tmp_path / "marker").items()):
        part = PARTS[index % len(PARTS)]
        told = refusal(a_run(tmp_path / "run", with_node(base, part, payload)))
        assert f"{part}._target_={payload['_target_']} is not named in conf/" in told


@pytest.mark.parametrize("part", PARTS)
def test_a_name_is_found_in_every_part(base: Node, tmp_path: Path, part: str) -> None:
    for deeper in ("", ".0", ".x.y", ".0.0.x", "._args_.0"):
        told = refusal(a_run(tmp_path / "run", with_node(base, part + deeper, {"_target_": "joblib.load"})))
        assert f"{part}{deeper}._target_=joblib.load" in told


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_leaves_before_anything_is_imported_or_written(
    base: Node, tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = a_run(tmp_path / "run", with_node(base, "loss", {"_target_": "evil_module_of_nobody.load"}))
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    key = "run" if command in ("evaluate", "predict", "export", "reproduce") else "resume"
    more = ["input=a.csv", "output=b.csv"] if command == "predict" else []
    monkeypatch.setattr(sys, "argv", [f"src/{command}.py", f"{key}={run}", *more])
    with pytest.raises(SystemExit) as left:
        launch(command)
    assert left.value.code == 2
    assert "loss._target_=evil_module_of_nobody.load" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


# references, and other things that a yaml file can hold

BOMB = "a: &a [x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in pairwise("abcdefghijkl"))
TRICKS = {
    "a reference in a target": ("loss: {_target_: '${new}'}\nnew: joblib.load", "loss._target_=${new} is a reference"),
    "the environment": ("new: ${oc.env:RESEARCH_TEST_SECRET}", "new=${oc.env:RESEARCH_TEST_SECRET} is a reference"),
    "a part of a text": ("new: a ${oc.env:RESEARCH_TEST_SECRET} b", "is a reference"),
    "in a list": ("new: [1, '${seed}']", "new.1=${seed} is a reference"),
    "within another": ("new: ${oc.env:${x}}", "is a reference"),
    "a node": ("loss: ${new}\nnew: {_target_: joblib.load}", "loss=${new} is a reference"),
    "decoded": ("loss: \"${oc.decode:'{_target_: joblib.load}'}\"", "is a reference"),
    "created": ("loss: \"${oc.create:{_target_: joblib.load}}\"", "is a reference"),
    "of Hydra": ("new: ${hydra:runtime.cwd}", "is a reference"),
    "of a resolver of ours": ("new: ${token:}", "is a reference"),
    "the time": ("new: ${now:%Y}", "is a reference"),
    "escaped by halves": ("new: '\\\\${oc.env:RESEARCH_TEST_SECRET}'", "is a reference"),
    "escaped where it is resolved again": ("new: {_convert_: none, x: ['\\${oc.env:X}']}", "new.x.0="),
    "escaped where the way is unknown": ("new: {_convert_: NONE, x: '\\${oc.env:X}'}", "new.x="),
    "an escaped target": ("loss: {_target_: '\\${new}'}", "loss._target_=${new} is not named"),
    "a target that is a list": ("loss: {_target_: [joblib, load]}", "loss._target_="),
    "a target that is a mapping": ("loss: {_target_: {_target_: joblib.load}}", "loss._target_="),
    "a target that is a number": ("loss: {_target_: 3}", "loss._target_=3"),
    "a target that is null": ("loss: {_target_: null}", "loss._target_=None"),
    "a target under a number": ("new: {3: {true: {_target_: joblib.load}}}", "new.3.True._target_=joblib.load"),
    "a target that is left unbuilt": ("new: {_recursive_: false, x: {_target_: joblib.load}}", "new.x._target_"),
    "letters of another case": ("loss: {_target_: Research.losses.Mse}", "loss._target_="),
    "blanks": ("loss: {_target_: ' research.losses.Mse'}", "loss._target_="),
    "what is within a trusted module": ("loss: {_target_: research.losses.torch.load}", "loss._target_="),
    "an object of Python": ("new: !!python/object/apply:os.system ['true']", "cannot be read"),
    "a name of Python": ("new: !!python/name:os.system", "cannot be read"),
    "an alias": ("new: &a [1]\nother: *a", "has an alias"),
    "a merge": ("new: &a {x: 1}\nother: {<<: *a}", "has an alias"),
    "aliases of aliases": (BOMB, "has an alias"),
    "too deep": ("new: " + "[" * 3000 + "]" * 3000, "cannot be read"),
    "a key twice": ("seed: 1\nseed: 2", "cannot be read"),
    "settings of Hydra": ("hydra: {callbacks: {x: {_target_: joblib.load}}}", "hydra: these settings"),
    "a list": ("- 1", "is not the config of a run"),
    "no utf-8": ("new: \udcff", "cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("name", TRICKS)
def test_a_config_of_more_than_plain_values_is_refused(run: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SECRET, "hush")
    text, fragment = TRICKS[name]
    (run / "config.yaml").write_bytes(text.encode("utf-8", "surrogateescape"))
    told = refusal(run)
    assert fragment in told
    assert "hush" not in told


TEXTS = st.text(st.sampled_from(list("\\${}:'\" #\n,=[]aé")), max_size=12)


@settings(deadline=None, max_examples=60)
@given(value=TEXTS.filter(lambda text: text != "???"), inner=TEXTS)
def test_every_text_of_a_run_comes_back_as_it_was(tmp_path_factory: Any, value: str, inner: str) -> None:
    """A column may be called `${x}`: what was written is read, and given to the class that it is for."""
    folder = a_run(tmp_path_factory.mktemp("run"), {"seed": 1})
    node = {"_target_": "builtins.dict", "a": value, "b": [inner], "c": {"d": inner}}
    cfg: Any = OmegaConf.create(trust.literal({"seed": 1, "new": {**node, "_target_": "research.losses.Mse"}}))
    write_config(folder, cfg)
    assert saved_config(folder)["new"]["a"] == value
    again = opened(folder, "train")
    assert again.new.a == value
    assert list(again.new.b) == [inner]
    assert changes(saved_config(folder), again) == {}
    again.new._target_ = "builtins.dict"
    assert make(again.new) == {"a": value, "b": [inner], "c": {"d": inner}}


def test_an_escaped_reference_is_never_resolved(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SECRET, "hush")
    word = "${oc.env:" + SECRET + "}"
    (run / "config.yaml").write_text(yaml.safe_dump({"loss": {"_target_": "builtins.dict", "x": f"\\{word}"}}))
    cfg = opened(run, "evaluate", "loss._target_=builtins.dict")
    assert cfg.loss.x == word
    assert make(cfg.loss) == {"x": word}


def test_the_config_in_a_checkpoint_is_compared_as_it_is(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SECRET, "hush")
    word = "${oc.env:" + SECRET + "}"
    assert changes({"seed": word, "loss": {"_target_": "joblib.load"}}, opened(run, "train"))["seed"] == (word, 42)


@pytest.mark.parametrize("content", [b"", b"PK", pickle.dumps(Path.cwd())], ids=["empty", "cut", "pickled"])
def test_splits_that_are_no_numbers_are_told(run: Path, content: bytes) -> None:
    (run / "splits.npz").write_bytes(content)
    data: Any = SimpleNamespace(fingerprint="", ids={})
    with pytest.raises(UserError, match=r"splits\.npz' cannot be read"):
        _refuse_others(data, run, {"fingerprint": ""}, {})


# what a command may open

MISSING = {("data", "table"): ["data.target=y"], ("data", "hub"): ["data.name=x"]}


@pytest.mark.parametrize(
    "group", sorted(path.name for path in CONF.iterdir() if path.is_dir() and path.name != "hydra")
)
def test_a_run_of_any_option_is_opened(tmp_path: Path, group: str) -> None:
    for option in options(group):
        write_config(a_run(tmp_path / "run", {}), composed(f"{group}={option}", *MISSING.get((group, option), ())))
        cfg = opened(tmp_path / "run", "train")
        assert changes(saved_config(tmp_path / "run"), cfg) == {}


def test_a_name_is_allowed_by_a_config_folder_or_by_the_command(tmp_path: Path, run: Path, base: Node) -> None:
    a_run(run, with_node(base, "loss", {"_target_": "mine.Loss", "x": [{"_target_": "mine.Part"}]}))
    (tmp_path / "more/loss").mkdir(parents=True)
    (tmp_path / "more/loss/mine.yaml").write_text("_target_: mine.Loss\nx: [{y: {_target_: mine.Part}}]\n")
    (tmp_path / "more/broken.yaml").write_text("a: [")
    typed = ["loss._target_='mine.Loss'", 'loss.x=[{_target_: "mine.Part"}]']
    assert "loss._target_=mine.Loss" in refusal(run)
    assert "loss.x.0._target_=mine.Part" in refusal(run, "evaluate", typed[0])
    assert opened(run, "evaluate", *typed).loss._target_ == "mine.Loss"
    assert opened(run, more=[tmp_path / "more"]).loss._target_ == "mine.Loss"
    assert opened(run, "evaluate", "loss={_target_: mine.Loss, x: null}").loss.x is None
    assert opened(run, groups=["loss=focal"]).loss._target_ == "research.losses.Focal"


def test_all_that_is_strange_is_told_with_other_mistakes(run: Path, base: Node) -> None:
    tree = with_node(with_node(base, "loss", {"_target_": "a.B"}), "callbacks.x", {"_target_": "c.D"})
    told = check(str(CONF), "train", [f"resume={a_run(run, tree)}", "trainer.max_epoch=3"], folder=run)
    assert [fragment in " ".join(told) for fragment in ("loss._target_=a.B", "callbacks.x._target_=c.D")] == [True] * 2
    assert "did you mean 'trainer.max_epochs'?" in told[0]


# what else is read from a folder


@pytest.mark.parametrize(
    "words",
    [
        ["model=masked_bert", "model._target_=joblib.load"],
        ["loss={_target_: joblib.load}"],
        ["+loss.x=[{_target_: joblib.load}]"],
        ["loss._target_=\\${oc.env:X}"],
        ["hydra.run.dir=/elsewhere"],
        ["hydra/launcher=x"],
        ["+hydra.callbacks.x._target_=joblib.load"],
        ["--config-dir=/elsewhere"],
        ["--experimental-rerun=x.pickle"],
        ["-m"],
        ["resume=logs/another"],
        ["model=mlp,cnn"],
        ["experiment=../../elsewhere"],
        ["cache.folder=/elsewhere"],
        ["data=table", "data.target=x", "data.cache.folder=/elsewhere"],
        ["pretrain=['loss._target_=joblib.load']"],
        "loss._target_=joblib.load",
        [{"_target_": "joblib.load"}],
    ],
    ids=str,
)
def test_the_words_of_a_run_before_are_settings_of_trusted_names(run: Path, base: Node, words: Any) -> None:
    a_run(run, {**base, "pretrain": words})
    assert "pretrain" in refusal(run)
    assert opened(run, "train", "pretrain=['loss._target_=mine.Loss']").pretrain  # typed now
    a_run(run, {**base, "pretrain": ["model=masked_bert", "optimizer.lr=5e-4"]})
    assert len(opened(run, "train").pretrain) == 2


@pytest.mark.parametrize("option", ["../../elsewhere/evil", "adam,sgd", "adam loss=x", ["adam"], {"x": 1}, 3])
def test_the_options_of_a_record_are_names_of_options(run: Path, tmp_path: Path, base: Node, option: Any) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/evil.yaml").write_text("# @package _global_\nnew: 1\n")
    up = os.path.relpath(tmp_path / "elsewhere/evil", CONF / "optimizer")
    option = up if isinstance(option, str) and "elsewhere" in option else option
    a_run(run, base)
    (run / "run.json").write_text(json.dumps({"choices": {"optimizer": option}}))
    cfg = opened(run, "train", groups=["optimizer=sgd"])
    assert cfg.optimizer._target_ == "torch.optim.SGD"
    assert "new" not in cfg


def test_places_to_write_to_are_for_the_command(run: Path, base: Node) -> None:
    elsewhere = {"folder": "/elsewhere", "max_bytes": 0}
    table = {"_target_": "research.data.table.TableData", "cache": elsewhere}
    a_run(run, {**base, "cache": dict(elsewhere), "data": table, "output": "/elsewhere", "run": "/elsewhere"})
    cfg = opened(run, "predict")
    assert OmegaConf.is_missing(cfg, "output")
    assert cfg.cache == cfg.data.cache == composed().cache
    assert changes(saved_config(run), cfg).keys().isdisjoint({"cache.folder", "data.cache.folder"})
    cfg = opened(run, "predict", "cache.folder=/mine")
    assert cfg.data.cache.folder == "/mine"
    a_run(run, {**base, "cache": None})
    assert opened(run, "predict").cache is None


@pytest.mark.parametrize("content", ["[]", '"x"', "3", "null", "{", '{"a": ' * 3000])
def test_a_record_that_is_none_is_told(run: Path, content: str) -> None:
    (run / "run.json").write_text(content)
    with pytest.raises(UserError, match=r"run\.json"):
        pointed([f"run={run}"])


@pytest.mark.parametrize("name", ["train.log", ".lock", "checkpoints", "base/config.json", "checkpoints/last.ckpt"])
def test_what_leads_out_of_a_folder_is_refused(run: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "outside").mkdir()
    (run / name).parent.mkdir(exist_ok=True)
    for target in (
        tmp_path / "outside",
        tmp_path / "not there",
        Path(os.path.relpath(tmp_path, (run / name).parent)),
        Path("/dev/null"),
    ):
        (run / name).symlink_to(target)
        with pytest.raises(UserError, match="out of the run's folder"):
            pointed([f"run={run}"])
        (run / name).unlink()
    os.mkfifo(run / name)
    with pytest.raises(UserError, match="neither a file nor a folder"):
        pointed([f"run={run}"])
    (run / name).unlink()
    (run / "config.yaml").rename(run / "real.yaml")
    (run / "config.yaml").symlink_to("real.yaml")  # within the folder
    assert pointed([f"run={run}"])[0] == run


def test_a_base_names_nothing_to_be_called(run: Path) -> None:
    (run / "base").mkdir()
    cfg = composed("model=bert")
    for content in ({"x": [{"_target_": "joblib.load"}]}, [], "x"):
        (run / "base/config.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match=r"config\.json"):
            from_run(cfg, run)
    (run / "base/config.json").write_text(json.dumps({"x": "${oc.env:HOME}"}))
    assert from_run(cfg, run).model.architecture.x == "${oc.env:HOME}"


def test_a_base_brings_no_code(run: Path, tmp_path: Path) -> None:
    """Neither as a run to start from, `model.pretrained=RUN`, nor as the tokenizer or network of one that is opened."""
    marker, base = tmp_path / "marker", run / "base"
    base.mkdir()
    (base / "evil.py").write_text(f"open({str(marker)!r}, 'w').close()\nclass Thing: pass\n")
    named = {"AutoConfig": "evil.Thing", "AutoModel": "evil.Thing", "AutoTokenizer": ["evil.Thing", None]}
    for kind in ("evil", "bert", "t5"):
        (base / "config.json").write_text(json.dumps({"model_type": kind, "auto_map": named}))
        (base / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Thing", "auto_map": named}))
        tokenizer.__globals__["locate"].cache_clear()
        with pytest.raises(ValueError, match="tokenizer"):
            tokenizer(str(base))
        spec: Any = type("Spec", (), {"shape": (10, 8)})
        for name, architecture in ((str(run), {}), (None, {"model_type": kind, "auto_map": named})):
            with pytest.raises(ValueError, match=r"\w"):
                encoder(name, spec, {**architecture, "vocab_size": 2}, 0.0, 2)
    assert not marker.exists()
