"""Words that are told can be pasted; options of further config folders are options like those of `conf/`."""

import shlex
import sys
from pathlib import Path

import pytest
from composing import CONF
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from research.engine.check import check, search
from research.engine.command import config_folders, shell, word
from research.engine.errors import UserError
from research.engine.launch import _help, _kinds

NAMES = st.text(st.characters(blacklist_categories=["Cs", "Cc"]), min_size=1)


@given(NAMES)
@pytest.mark.parametrize("folder", ["", "logs/a b/", "it's/", '"/', "\\", "a,b=[c]/", "$HOME/${x}/"])
def test_a_word_comes_back_from_a_shell_and_from_hydra_as_it_was(folder: str, name: str) -> None:
    path = folder + name
    (said,) = shlex.split(shell(word("resume", path)))
    override = OverridesParser.create().parse_override(said)
    assert override.key_or_group == "resume"
    assert str(override.value()) == path
    listed = OverridesParser.create().parse_override(word("hydra.searchpath", [path, "b"])).value()
    assert [str(item) for item in listed] == [path, "b"]  # pyright: ignore[reportGeneralTypeIssues, reportOptionalIterable]


def test_a_plain_path_is_told_as_it_is() -> None:
    assert shell(word("resume", "logs/2026-11-23_13-37-13_cnn_digits_6a9e7e")) == (
        "resume=logs/2026-11-23_13-37-13_cnn_digits_6a9e7e"
    )


@pytest.fixture
def more(tmp_path: Path) -> Path:
    """A config folder of a user's own: a network, and a group that `conf/` does not have."""
    folder = tmp_path / "it's mine"
    (folder / "model").mkdir(parents=True)
    (folder / "model/gru.yaml").write_text("_target_: research.models.mlp.Mlp\nwidth: 3\ndepth: 1\ndropout: 0.0\n")
    (folder / "extra").mkdir()
    (folder / "extra/one.yaml").write_text("# @package _global_\nseed: 3\n")
    return folder


@pytest.mark.parametrize("way", ["flag", "word", "file", "package"])
def test_config_folders_of_a_command(way: str, more: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    (tmp_path / "pack").symlink_to(more)
    (more / "__init__.py").touch()
    words = {
        "flag": [],
        "word": [word("hydra.searchpath", [str(more)])],
        "file": [word("hydra.searchpath", [f"file://{more}"])],
        "package": ["hydra.searchpath=['pkg://pack']"],
    }[way]
    folders = config_folders("train", words, str(more) if way == "flag" else None)
    assert folders[0] == CONF
    assert folders[1].resolve() == more

    assert check(str(CONF), "train", [*words, "model=gru", "model.width=5", "+extra=one"], more=folders[1:]) == []
    (problem,) = check(str(CONF), "train", [*words, "model=grv"], more=folders[1:])
    assert "did you mean 'gru'?" in problem
    (problem,) = check(str(CONF), "train", [*words, "model=gru", "model.width=0"], more=folders[1:])
    assert problem.startswith("model.width=0")
    assert check(str(CONF), "train", [*words, "model=glob(*)", "seed=1,2"], more=folders[1:]) == []

    assert "gru" in next(line for line in _help(folders).splitlines() if line.startswith("  model "))
    assert _kinds(["+extra=one", "model=gru", "seed=1", *words], folders) == (
        ["+extra=one", "model=gru"],
        ["seed=1"],
        words,
    )
    with initialize_config_dir(str(CONF), version_base="1.3"):
        search(folders[1:])
        assert compose("train", ["model=gru"]).model.width == 3


@pytest.mark.parametrize(
    ("words", "flag", "fragment"),
    [
        ([], "/nowhere", "--config-dir /nowhere: there is no such folder"),
        (["hydra.searchpath=[/nowhere]"], None, "hydra.searchpath: /nowhere: there is no such folder"),
        (["hydra.searchpath=/nowhere"], None, "a list of folders is needed"),
        (["hydra.searchpath=[1]"], None, "a list of folders is needed"),
        (["hydra.searchpath=['pkg://nowhere.conf']"], None, "there is no package 'nowhere.conf'"),
    ],
)
def test_a_config_folder_that_is_not_there_is_told(words: list[str], flag: str | None, fragment: str) -> None:
    with pytest.raises(UserError) as told:
        config_folders("train", words, flag)
    assert fragment in str(told.value)


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hydra's plugins, with those of the tests."""
    from hydra.core.plugins import Plugins

    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "plugins"))
    Plugins.instance()._initialize()


@pytest.mark.usefixtures("plugins")
@pytest.mark.parametrize(
    ("words", "fragments"),
    [
        ("hydra/launcher=apart hydra.launcher.num=3", []),
        ("hydra.launcher.num=3 hydra/launcher=apart hydra/sweeper=ends hydra.sweeper.note=x", []),
        ("hydra.launcher.num=3", ["hydra.launcher.num"]),
        ("hydra/launcher=apart hydra.launcher.nun=3", ["hydra.launcher.nun"]),
        ("hydra/launcher=apart hydra.launcher.num=x", ["hydra.launcher.num"]),
        ("hydra/launcher=apart hydra.foo=1 hydra.bar=1", ["hydra.foo", "hydra.bar"]),
        ("hydra/launcher=appart", ["did you mean 'apart'?"]),
        ("optimizer.lr=interval(1e-3,1e-2) model.width=int(interval(4,8))", []),
        ("optimizer.lr=interval(1e-3,x)", ["interval"]),
        ("model.width=int(interval(0,8))", ["model.width=0"]),
        ("data.batch_size=tag(a,int(interval(1,4)))", []),
    ],
)
def test_words_for_hydra_are_checked_with_the_plugin_they_belong_to(words: str, fragments: list[str]) -> None:
    problems = check(str(CONF), "train", words.split())
    assert len(problems) == len(fragments), problems
    for fragment in fragments:
        assert any(fragment in problem for problem in problems), problems
