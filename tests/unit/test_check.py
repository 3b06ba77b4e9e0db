"""Wrong commands are told with what was given and what is allowed; right ones pass; torch stays out of it."""

import importlib
import inspect
import itertools
import re
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest
from composing import CONF, ROOT, composed, options, told
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig

from research.engine.check import check
from research.engine.signature import signature

WRONG = [
    # groups and their options
    ("model=mpl", "no model 'mpl'; did you mean 'mlp'?"),
    ("modl=cnn", "no key or group 'modl'; did you mean 'model'?"),
    ("optimizer=admw", "did you mean 'adamw'? Allowed: adam, adamw,"),
    ("loss=focl", "did you mean 'focal'?"),
    ("model=", "no model ''"),
    ("model=null", "model"),
    ("experiment=null", "experiment"),
    ("experiment=nothing", "no experiment 'nothing'"),
    ("callbacks=[default,emaa]", "no callbacks 'emaa'; did you mean 'ema'?"),
    ("model=[mlp,cnn]", "model"),
    ("~model", "model"),
    ("~modl", "did you mean 'model'?"),
    ("~model=cnn", "model"),
    ("hydra/launcher=nothing", "no hydra/launcher 'nothing'"),
    # keys
    ("seeed=1", "no key or group 'seeed'; did you mean 'seed'?"),
    ("trainer.max_epoch=3", "no key 'trainer.max_epoch'; did you mean 'trainer.max_epochs'?"),
    ("optimizer.lrr=1", "did you mean 'optimizer.lr'? Allowed: optimizer.amsgrad, optimizer.betas,"),
    ("trainr.max_epochs=1", "did you mean 'trainer.max_epochs'?"),
    ("data.splt_seed=1", "did you mean 'data.split_seed'?"),
    ("callbacks.early_stopping.patiense=1", "did you mean 'callbacks.early_stopping.patience'?"),
    ("augment=images augment.transforms.0.degres=3", "did you mean 'augment.transforms.0.degrees'?"),
    ("optimizer.maximize=true", "To pass 'maximize' as well, write +optimizer.maximize=..."),
    ("~optimizer.lrr", "did you mean 'optimizer.lr'?"),
    ("~seed=43", "a setting cannot be left out"),
    ("~seed", "seed"),
    ("~optimizer.lr", "optimizer.lr"),
    ("+foo=3", "'foo'"),
    ("hydra.foo=1", "Could not override 'hydra.foo'"),
    # arguments that a target does not take
    ("+model.droput=0.1", "no argument of research.models.mlp.Mlp 'droput'; did you mean 'dropout'?"),
    ("++model.widht=4", "no argument of research.models.mlp.Mlp 'widht'; did you mean 'width'?"),
    ("+optimizer.momentum=0.9", "no argument of torch.optim.Adam 'momentum'"),
    ("+trainer.detect_anomalyy=true", "did you mean 'detect_anomaly'?"),
    ("+task.foo=3", "no argument of research.tasks.supervised.Supervised 'foo'"),
    ("model._target_=research.models.mlp.Mpl", "nothing is called 'research.models.mlp.Mpl'"),
    # types
    ("trainer.max_epochs=ten", "trainer.max_epochs=ten"),
    ("trainer.max_epochs='3'", "integer"),
    ("trainer.max_epochs=true", "integer"),
    ("model.width=[1,2]", "integer"),
    ("model.depth=null", "model.depth=None: input should be a valid integer"),
    ("model.width=???", "model.width"),
    ("seed=???", "seed"),
    ("seed=1.5", "seed=1.5: input should be a valid integer"),
    ("seed=null", "seed"),
    ("optimizer.lr=abc", "optimizer.lr=abc is not a number; the default is 0.001"),
    ("optimizer.lr=", "optimizer.lr= is not a number"),
    ("trainer.gradient_clip_val=big", "input should be a valid number"),
    ("trainer.benchmark=maybe", "trainer.benchmark=maybe"),
    ("trainer.benchmark=1", "trainer.benchmark=1"),
    ("optimizer.betas=0.9", "optimizer.betas=0.9"),
    ("optimizer.betas=[0.9]", "optimizer.betas=[0.9]"),
    ("optimizer.betas=[0.9,0.99,0.999]", "at most 2 items"),
    ("optimizer.betas=[a,b]", "optimizer.betas"),
    ("data.fractions=0.5", "data.fractions=0.5"),
    # values that cannot be
    ("data.batch_size=0", "data.batch_size=0: input should be greater than 0"),
    ("data.split_seed=-1", "greater than or equal to 0"),
    ("data.fractions=[0.7,0.7,0.7]", "must add up to 1, these add up to 2.1"),
    ("data.fractions=[0.5,0.5]", "at least 3 items"),
    ("data.fractions=[1,1,1]", "less than 1"),
    ("model.dropout=1", "model.dropout=1: input should be less than 1"),
    ("model.dropout=-0.1", "greater than or equal to 0"),
    ("loss.label_smoothing=2", "less than or equal to 1"),
    ("loss.class_weights=balancd", "balanced"),
    ("loss.class_weights=[0,1]", "greater than 0"),
    ("scheduler.warmup_frac=1.0", "less than 1"),
    ("scheduler.interval=steps", "'step' or 'epoch'"),
    ("augment=images augment.mix=mixip", "should be 'mixup' or 'cutmix'"),
    ("mode=minn", "should be 'auto', 'min' or 'max'"),
    ("mode=null", "mode=null: a value is needed; the default is auto"),
    (
        "callbacks.early_stopping.mode=most",
        "callbacks.early_stopping.mode=most: input should be 'auto', 'min' or 'max'",
    ),
    ("callbacks.checkpoint.mode=most", "callbacks.checkpoint.mode=most: input should be 'auto', 'min' or 'max'"),
    ("scheduler=plateau scheduler.mode=most", "scheduler.mode=most: input should be 'auto', 'min' or 'max'"),
    # interpolations
    ("model.width=${nothing}", "'nothing' not found"),
    ("model.dropout=${seed}", "model.dropout=42: input should be less than 1"),
    # syntax
    ("trainer.benchmark", "'trainer.benchmark' is not of the form key=value"),
    ("=3", "'=3' is not of the form key=value"),
    ("optimizer.betas=[0.9", "is not of the form key=value"),
    # sweeps: every choice counts, not only the first
    ("optimizer=adam,admw", "no optimizer 'admw'; did you mean 'adamw'?"),
    ("seed=0,x", "seed=x: input should be a valid integer"),
    ("seed=range(1.5,3)", "seed"),
    ("model.width=8,abc", "model.width=abc"),
    ("optimizer.lr=glob(*)", "optimizer.lr"),
    ("data.batch_size=32,0", "data.batch_size=0: input should be greater than 0"),
    ("model=cnn,mlp model.stages=3", "model.stages"),
]

RIGHT = [
    "",
    "model=cnn model.stages=3 model.depth=2",
    "data=diabetes loss=huber loss.delta=2",
    "optimizer=sgd optimizer.momentum=0 optimizer.nesterov=false",
    "optimizer.lr=3e-4",
    "optimizer.betas=[0.8,0.9]",
    "+optimizer.maximize=true",
    "augment=mixup model=cnn",
    "augment=images augment.mix=cutmix",
    "augment=images augment.transforms.0.p=0.5 data.fractions.0=0.7",
    "loss.class_weights=balanced",
    "loss.class_weights=[1,1,1,1,1,1,1,1,1,2]",
    "callbacks=ema callbacks.averaging.decay=0.9",
    "callbacks=[default,ema]",
    "logger=none",
    "~callbacks.progress",
    "++model.width=4",
    "model.width=${data.batch_size}",
    "trainer=debug trainer.accelerator=cpu",
    "trainer.max_epochs=null trainer.max_steps=100",
    "trainer.gradient_clip_val=1",
    "trainer.limit_train_batches=0.5",
    "+trainer.detect_anomaly=true",
    "trainer.precision=bf16-mixed",
    "trainer.profiler=pytorch",
    "trainer.devices=auto",
    "trainer.devices=[0,1]",
    "trainer.deterministic=warn",
    "hydra.run.dir=/tmp/somewhere",
    "resume=null",
    "mode=auto",
    "mode=max callbacks.early_stopping.mode=auto scheduler=plateau scheduler.mode=min",
    "optimizer=adam,sgd seed=0,1",
    "model=choice(mlp,cnn)",
    "model=glob(*)",
    "seed=range(1,4) optimizer.lr=1e-3,1e-2",
    *(f"experiment={name}" for name in options("experiment")),
]


@pytest.mark.parametrize(("command", "fragment"), WRONG, ids=[command for command, _ in WRONG])
def test_wrong_command_is_told(command: str, fragment: str) -> None:
    problems = told(*command.split())
    assert len(problems) == 1, problems
    assert fragment in problems[0]
    assert "\n" not in problems[0]


@pytest.mark.parametrize("command", RIGHT)
def test_right_command_passes(command: str) -> None:
    assert told(*command.split()) == []


def test_every_mistake_of_a_command_is_told_at_once() -> None:
    expected = {
        "model=mpl": "no model 'mpl'",
        "optimizer=admw": "no optimizer 'admw'",
        "seeed=1": "no key or group 'seeed'",
        "trainer.max_epochs=ten": "trainer.max_epochs=ten",
        "data.batch_size=0": "data.batch_size=0",
        "model.dropout=3": "model.dropout=3",
        "+loss.gama=1": "no argument of research.losses.CrossEntropy 'gama'",
        "oops": "'oops' is not of the form key=value",
    }
    problems = told(*expected)
    assert len(problems) == len(expected)
    for fragment in expected.values():
        assert sum(fragment in problem for problem in problems) == 1


def test_several_values_need_the_flag_of_a_sweep() -> None:
    problems = check(str(CONF), "train", ["optimizer=adam,sgd", "seed=1", "model.width=8,16"], sweep=False)
    assert [problem.split()[0] for problem in problems] == ["optimizer=adam,sgd", "model.width=8,16"]
    assert all("add -m" in problem for problem in problems)


@pytest.mark.parametrize("early", ["hydra/launcher=nothing", "model.width=${nothing}", "~seed=43", "hydra.foo=1"])
def test_a_mistake_that_stops_hydra_does_not_hide_the_next(early: str) -> None:
    problems = told(early, "seeed=1", "data.batch_size=0")
    assert any("seeed" in problem for problem in problems)
    assert any("data.batch_size=0" in problem for problem in problems)
    assert len(problems) == 3


def test_a_setting_that_others_take_up_is_told_where_it_lands() -> None:
    problems = told("monitor=3")
    assert problems
    assert all(re.match(r"callbacks\.\w+\.monitor=3: input should be a valid string", text) for text in problems)


def test_a_missing_value_in_the_config_itself_is_told(tmp_path: Path) -> None:
    (tmp_path / "train.yaml").write_text("seed: ???\nmodel:\n  _target_: research.models.mlp.Mlp\n  width: ???\n")
    problems = check(str(tmp_path), "train", [])
    assert problems == [f"{key} has no value; give it one: {key}=..." for key in ("seed", "model.width")]


def leaves(node: DictConfig, prefix: str = "") -> Iterator[tuple[str, object]]:
    for key in map(str, node):
        value = node[key]
        if isinstance(value, DictConfig):
            yield from leaves(value, f"{prefix}{key}.")
        elif isinstance(value, bool | int | float | str | None) and not key.startswith("_"):
            yield f"{prefix}{key}", value


LEAVES = dict(leaves(composed()))


def written(value: object) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return repr(value)


def test_every_default_may_be_said_again() -> None:
    groups = {path.name for path in CONF.iterdir() if path.is_dir()}
    said = [f"{key}={written(value)}" for key, value in LEAVES.items() if key not in groups]
    assert len(said) > 40
    assert told(*said) == []


@settings(deadline=None, max_examples=2)
@given(st.data())
def test_a_letter_left_out_of_any_key_is_told(data: st.DataObject) -> None:
    meant = {}
    for key in LEAVES:
        place = data.draw(st.integers(key.rfind(".") + 1, len(key) - 1))
        given_key = key[:place] + key[place + 1 :]
        if given_key and not given_key.endswith("."):
            meant[given_key] = key
    problems = told(*(f"{given_key}=1" for given_key in meant))
    assert len(problems) == len(meant)
    for problem, (given_key, key) in zip(problems, meant.items(), strict=True):
        assert f"'{given_key}'" in problem
        assert key in re.findall(r"[\w.]+", problem.split("'", 2)[2])  # the nearest, or among the allowed


def test_a_wrong_command_ends_in_a_sentence_before_torch_is_imported() -> None:
    words = [sys.executable, "-X", "importtime", "src/train.py", "model=mpl"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    imported = {line.rsplit("|", 1)[1].strip() for line in done.stderr.splitlines() if line.startswith("import time")}
    assert done.returncode == 2
    assert "error: no model 'mpl'; did you mean 'mlp'?" in done.stderr
    assert "Traceback" not in done.stderr
    assert "research.engine.check" in imported
    packages = {name.split(".")[0] for name in imported}
    assert not packages & {"torch", "lightning", "pytorch_lightning", "torchmetrics", "sklearn", "kornia"}


# signatures

numbered = itertools.count()


class Modules:
    """Writes packages of source that are found, and imports them only when asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, **sources: str) -> str:
        """Modules of a new package, by name; `init` is its `__init__.py`. Returns the name of the package."""
        name = f"written_{next(numbered)}"
        (self.folder / name).mkdir()
        for module, source in {"init": "", **sources}.items():
            stem = "__init__" if module == "init" else module
            (self.folder / name / f"{stem}.py").write_text(source, "utf-8")
        importlib.invalidate_caches()
        return name


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Modules]:
    folder = tmp_path_factory.mktemp("modules")
    sys.path.insert(0, str(folder))
    yield Modules(folder)
    sys.path.remove(str(folder))


def types(target: str) -> dict[str, object]:
    found = signature(target)
    assert found is not None
    return found.types


def test_signature_of_a_class() -> None:
    found = signature("torch.nn.Linear")
    assert found is not None
    assert {"in_features": int, "out_features": int, "bias": bool}.items() <= found.types.items()
    assert "self" not in found.types
    assert not found.open


def test_signature_follows_re_exports() -> None:
    assert types("torch.optim.Adam") == types("torch.optim.adam.Adam")
    assert "max_epochs" in types("lightning.pytorch.Trainer")
    assert "degrees" in types("kornia.augmentation.RandomAffine")


def test_signature_follows_renamed_relative_and_starred_re_exports(modules: Modules) -> None:
    thing = "class Thing:\n    def __init__(self, a: int): ...\n"
    renamed = modules.write(init="from .inner import Thing as Other\n", inner=thing)
    starred = modules.write(init="from .inner import *\n", inner=thing)
    chained = modules.write(init="from .middle import Thing\n", middle="from .inner import Thing\n", inner=thing)
    assert types(f"{renamed}.Other") == types(f"{starred}.Thing") == types(f"{chained}.Thing") == {"a": int}


def test_signature_is_inherited() -> None:
    assert types("research.data.digits.Digits") == types("research.data.tensors.TensorData")
    assert types("research.data.digits.Digits")["shuffle"] is bool


def test_signature_comes_from_the_first_base_that_has_one(modules: Modules) -> None:
    bases = "class Mixin:\n    x = 1\nclass Base:\n    def __init__(self, a: int): ...\n"
    name = modules.write(inner=bases + "class Thing(Mixin, Base): ...\n")
    assert types(f"{name}.inner.Thing") == {"a": int}


def test_signature_of_a_function() -> None:
    found = signature("research.engine.schedules.step")
    assert found is not None
    assert list(found.types) == ["optimizer", "length", "interval", "step_size", "gamma"]
    assert not found.open


def test_signature_resolves_an_alias_of_its_module() -> None:
    assert types("research.engine.schedules.step")["interval"] == typing.Literal["step", "epoch"]


def test_signature_with_further_keywords_is_open(modules: Modules) -> None:
    name = modules.write(inner="def some(a: int, *, b: str = '', **more: float): ...\ndef none(): ...\n")
    some, none = signature(f"{name}.inner.some"), signature(f"{name}.inner.none")
    assert some is not None
    assert none is not None
    assert some.types == {"a": int, "b": str}
    assert some.open
    assert none.types == {}
    assert not none.open


@pytest.mark.parametrize(
    "target", ["nowhere.Thing", "research.losses.Nothing", "torch.optim.Adma", "research.losses.forward", "Thing"]
)
def test_signature_of_an_unknown_target_is_an_error(target: str) -> None:
    with pytest.raises(LookupError):
        signature(target)


def test_signature_that_the_source_does_not_tell_is_none(modules: Modules) -> None:
    assert signature(f"{modules.write(inner='Thing = type(str(1), (), dict())')}.inner.Thing") is None


def test_signature_does_not_import_the_module(modules: Modules) -> None:
    name = modules.write(inner="raise RuntimeError('imported')\ndef some(a: int): ...\n")
    assert types(f"{name}.inner.some") == {"a": int}


HEADER = """\
from typing import Annotated, Any, Literal, Optional, Union
from pathlib import Path
from research.engine.values import Fraction, Fractions, PositiveInt
"""
ANNOTATIONS = st.recursive(
    st.sampled_from(
        ["int", "float", "str", "bool", "Any", "Path", "PositiveInt", "Fraction", "Fractions", "Literal['a', 'b', 3]"]
    ),
    lambda inner: st.one_of(
        inner.map("list[{}]".format),
        inner.map("dict[str, {}]".format),
        inner.map("Optional[{}]".format),
        st.tuples(inner, inner).map(lambda pair: f"tuple[{pair[0]}, {pair[1]}]"),
        st.tuples(inner, inner).map(lambda pair: f"Union[{pair[0]}, {pair[1]}]"),
    ),
    max_leaves=4,
)
NAMES = st.from_regex(r"[a-z]{1,6}_", fullmatch=True)


@settings(deadline=None)
@given(st.dictionaries(NAMES, ANNOTATIONS, max_size=5), st.integers(0, 5), st.booleans(), st.booleans(), st.booleans())
def test_signature_reads_back_what_python_says(
    modules: Modules, given_types: dict[str, str], positional: int, is_open: bool, quoted: bool, is_class: bool
) -> None:
    words = [f'{name}: "{text}"' if quoted else f"{name}: {text}" for name, text in given_types.items()]
    words = [*words[:positional], *(["*", *words[positional:]] if words[positional:] else [])]
    words += ["**more: int"] if is_open else []
    function = "class Thing:\n    def __init__({}): ...\n" if is_class else "def Thing({}): ...\n"
    name = modules.write(inner=HEADER + function.format(", ".join(["self"] * is_class + words)))
    found = signature(f"{name}.inner.Thing")
    assert found is not None
    assert f"{name}.inner" not in sys.modules
    thing = importlib.import_module(f"{name}.inner").Thing
    hints = typing.get_type_hints(thing.__init__ if is_class else thing, include_extras=True)
    assert found.types == {key: hints[key] for key in inspect.signature(thing).parameters if key != "more"}
    assert found.open == is_open
