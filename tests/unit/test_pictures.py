"""Pictures of the user: every mode read as it looks, folders of splits, datasets of the hub, what cannot be read."""

import errno
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from composing import composed
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value, disable_progress_bars
from datasets import Image as Picture
from making import TABLE, I, both, bytes_, data_of, hub, of_table, of_text, photos, rows, table
from PIL import Image

from research.data.images import pixels_of
from research.engine.build import read_data
from research.engine.errors import UserError
from research.engine.reopen import with_values

HUB = "data=images data.path=hub:hub data.size=8 data.num_workers=0"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Paths in words and messages are those of a folder of the test."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(picture: Image.Image, form: str = "PNG", channels: int = 3, size: int = 2, **settings: Any) -> Any:
    """(size, size, C) of a picture that was saved."""
    file = io.BytesIO()
    picture.save(file, form, **settings)
    return pixels_of(file.getvalue(), channels, size)[0].transpose(1, 2, 0)


RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
FOUR = np.array([[RED, GREEN], [BLUE, WHITE]], dtype=np.uint8)


def test_a_palette_is_read_as_its_colours() -> None:
    made = Image.fromarray(FOUR).convert("P", palette=Image.Palette.ADAPTIVE, colors=4)
    assert made.mode == "P"
    assert read(made).tolist() == FOUR.tolist()


def test_transparent_parts_are_white() -> None:
    alpha = np.array([[255, 0], [128, 255]], dtype=np.uint8)
    found = read(Image.fromarray(np.dstack([FOUR, alpha]), "RGBA"))
    assert found.tolist() == [[[*RED], [*WHITE]], [[127, 127, 255], [*WHITE]]]
    of_palette = Image.fromarray(np.array([[0, 1], [1, 0]], dtype=np.uint8), "P")
    of_palette.putpalette([*RED, *GREEN])
    assert read(of_palette, transparency=1).tolist() == [[[*RED], [*WHITE]], [[*WHITE], [*RED]]]


def test_grey_and_colours_become_one_another() -> None:
    grey = np.array([[0, 80], [160, 255]], dtype=np.uint8)
    assert read(Image.fromarray(grey)).tolist() == np.dstack([grey] * 3).tolist()
    assert read(Image.fromarray(FOUR), channels=1)[..., 0].tolist() == [[76, 150], [29, 255]]  # as the eye weighs them


# where the top left pixel of the picture is in the file, by the numbers of the Exif standard
ROTATED = {1: FOUR, 2: FOUR[:, ::-1], 3: FOUR[::-1, ::-1], 6: np.rot90(FOUR), 8: np.rot90(FOUR, -1)}


@pytest.mark.parametrize("number", ROTATED)
def test_a_picture_is_turned_as_its_camera_was_held(number: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = number
    assert read(Image.fromarray(np.ascontiguousarray(ROTATED[number])), exif=exif).tolist() == FOUR.tolist()


def test_a_picture_covers_the_square_and_is_cut_at_its_middle() -> None:
    wide = np.zeros((2, 6, 3), dtype=np.uint8)
    wide[:, 2:4] = FOUR
    assert read(Image.fromarray(wide)).tolist() == FOUR.tolist()


# folders of splits


def of_class(folder: Path, split: str, label: str, num: int, base: int) -> None:
    """Pictures of one grey each, which says which one it is."""
    (folder / split / label).mkdir(parents=True)
    for i in range(num):
        Image.new("L", (8, 8), base + i).save(folder / split / label / f"{i}.png")


def test_folders_of_splits_are_the_splits(place: Path) -> None:
    for split, base in (("train", 10), ("val", 100), ("test", 200)):
        of_class(place / "photos", split, "cat", 4, base)
        of_class(place / "photos", split, "dog", 3, base + 20)
    data = data_of(f"{I} data.channels=1")
    # the folders are read in the order of their names: 7 of test, 7 of train, 7 of val
    ids = {"train": range(7, 14), "val": range(14, 21), "test": range(7)}
    assert {name: part.tolist() for name, part in data.ids.items()} == {name: list(part) for name, part in ids.items()}
    for split, base in (("train", 10), ("val", 100), ("test", 200)):
        x, y = data.rows[split][torch.arange(7)]
        greys = [base, base + 1, base + 2, base + 3, base + 20, base + 21, base + 22]
        assert (x * 255).round().amax((1, 2, 3)).tolist() == greys
        assert [data.spec.classes[int(label)] for label in y] == ["cat"] * 4 + ["dog"] * 3
    assert data.spec.x_mean == pytest.approx([np.mean([10, 11, 12, 13, 30, 31, 32]) / 255])


def test_a_run_that_is_opened_on_folders_of_splits_asks_for_one(place: Path) -> None:
    photos()(place)
    spec = data_of(I).spec
    both(photos("new/train"), photos("new/test", seed=1))(place)
    with pytest.raises(UserError, match=r"'test' is not one of the run's classes: cat, dog\. Name the folder of one"):
        data_of(I.replace("=photos", "=new"), fitted=spec)
    assert data_of(I.replace("=photos", "=new/test"), fitted=spec).num_rows == {"test": 40}


# the hub

FEATURES = Features({"image": Picture(), "label": ClassLabel(names=["cat", "dog"])})


def of_hub(folder: Path, **labels: list[Any]) -> None:
    """A dataset with a picture for each label, of one grey each: 0 on, and on, over all splits."""
    disable_progress_bars()
    greys = iter(range(256))
    made: Any = {}
    for split, given in labels.items():
        pictures = [{"image": Image.new("L", (8, 8), next(greys)), "label": label} for label in given]
        made[split] = Dataset.from_list(pictures, features=FEATURES)
    DatasetDict(made).save_to_disk(folder / "hub")


def greys_of(data: Any, split: str) -> tuple[list[int], list[int]]:
    """The grey and the class of each picture."""
    x, y = data.rows[split][torch.arange(len(data.rows[split]))]
    return (x * 255).round().amax((1, 2, 3)).int().tolist(), y.tolist()


def test_pictures_of_the_hub_are_read_once_with_their_classes_and_splits(place: Path) -> None:
    of_hub(place, train=[0, 1] * 10, test=[1, 0, 0, 1])
    data = data_of(f"{HUB} data.fractions=[0.6,0.2,0.2]")
    assert greys_of(data, "test") == ([20, 21, 22, 23], [1, 0, 0, 1])
    train, val = greys_of(data, "train"), greys_of(data, "val")
    assert sorted(train[0] + val[0]) == list(range(20))
    assert len(val[0]) == 5  # 0.2 of 0.8 of them
    assert [grey % 2 for grey in train[0] + val[0]] == train[1] + val[1]
    assert data.findings == []


def test_a_hidden_split_is_left_out_and_what_is_tested_is_told(place: Path) -> None:
    of_hub(place, train=[0, 1] * 20, unsupervised=[-1] * 9, test=[1, 0] * 4)
    data = data_of(HUB)
    assert greys_of(data, "test") == (list(range(49, 57)), [1, 0] * 4)
    assert data.findings == ["the split 'unsupervised' of the hub has no labels and is left out"]
    of_hub(place / "other", train=[0, 1] * 20, test=[-1] * 9)
    data = data_of(HUB.replace("hub:hub", "hub:other/hub"))
    told = "the split 'test' of the hub has no labels and is left out; test rows are taken from train"
    assert data.findings == [told]
    assert sorted(grey for split in data.rows for grey in greys_of(data, split)[0]) == list(range(40))


@pytest.mark.parametrize("label", [None, -1])
def test_a_picture_of_no_class_is_told(place: Path, label: int | None) -> None:
    of_hub(place, train=[0, 1, 0, label, 1, label] * 5, test=[1, 0])
    with pytest.raises(UserError, match="10 of 32 pictures have no class, the first is hub:hub train row 4"):
        data_of(HUB)


def test_a_run_that_is_opened_on_a_hub_dataset_scores_its_test_rows(place: Path) -> None:
    of_hub(place, train=[0, 1] * 10, validation=[0, 1], test=[1, 0, 0, 1])
    spec = data_of(HUB).spec
    data = data_of(HUB, fitted=spec)
    assert list(data.rows) == ["test"]
    assert greys_of(data, "test") == ([22, 23, 24, 25], [1, 0, 0, 1])


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ({"train": [0, 1] * 10, "validation": [0, 1]}, "is not there; those with labels are train, validation"),
        ({"train": [0, 1] * 10, "test": [-1] * 4}, "has no labels; those with labels are train"),
    ],
)
def test_a_hub_dataset_without_test_rows_is_not_scored(place: Path, labels: Any, told: str) -> None:
    photos()(place)
    spec = data_of(I).spec
    of_hub(place, **labels)
    with pytest.raises(UserError, match=f"the split 'test' of 'hub', which would be scored, {told}"):
        data_of(HUB, fitted=spec)


@pytest.mark.parametrize(
    ("words", "columns"), [("data=hub data.name=hub", of_text()), (f"{TABLE} data.path=hub:hub", of_table())]
)
def test_rows_of_the_hub_without_test_rows_are_not_scored_either(place: Path, words: str, columns: Any) -> None:
    hub({"train": rows(columns, 60), "validation": rows(columns, 20, 500)})(place)
    spec = data_of(words).spec
    with pytest.raises(UserError, match="the split 'test' of 'hub', which would be scored, is not there"):
        data_of(words, fitted=spec)


# what cannot be read


def cached(place: Path) -> Any:
    """As a command reads, with the cache."""
    option, *values = I.split()
    return read_data(with_values(composed(option), [*values, f"cache.folder={place / 'cache'}"]))


def test_a_picture_that_might_not_be_read_is_tried_again(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos(num=60)(place)
    locked = Path("photos/cat/000.png")
    content = locked.read_bytes()
    stat = locked.stat()
    read_bytes = Path.read_bytes

    def refused(path: Path) -> bytes:
        if path == locked:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return read_bytes(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", refused)
        data = cached(place)
    assert data.findings == ["1 of 120 pictures cannot be read and are left out: photos/cat/000.png: Permission denied"]
    assert locked.stat().st_mtime_ns == stat.st_mtime_ns
    assert locked.read_bytes() == content
    assert sum(cached(place).num_rows.values()) == 120
    assert cached(place).findings == []


def test_files_that_are_no_pictures_are_counted_by_suffix(place: Path) -> None:
    more = [bytes_(f"photos/cat/{i}.heic", b"") for i in range(3)]
    both(photos(), *more, bytes_("photos/dog/notes.TXT", b""), bytes_("photos/labels", b""))(place)
    bytes_("photos/cat/.DS_Store", b"")(place)
    told = "'photos' holds files that are not read as pictures: 3 .heic, 1 .txt, 1 no suffix (those that are: .bmp, "
    (found,) = data_of(I).findings
    assert found.startswith(told)
    run = data_of(I, fitted=data_of(I).spec, read=False)
    assert sum(len(inputs.given) for inputs in run.inputs("photos")) == 40
    assert run.findings == [found]


@pytest.mark.parametrize("folder", ["photos", "photos/cat"])
def test_a_folder_that_may_not_be_read_is_told(place: Path, monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    photos()(place)
    for name in ("scandir", "listdir"):  # root reads all
        real = getattr(os, name)

        def refused(path: Any = ".", real: Any = real) -> Any:
            if Path(path) == Path(folder):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return real(path)

        monkeypatch.setattr(os, name, refused)
    with pytest.raises(UserError, match=f"the folder '{folder}' cannot be read: Permission denied"):
        data_of(I)


def test_unread_pictures_are_told_by_their_names(place: Path) -> None:
    photos()(place)
    run = data_of(I, fitted=data_of(I).spec, read=False)
    bytes_("photos/cat/a.png", b"hello")(place)
    (inputs,) = run.inputs("photos")
    assert inputs.wrong == [(20, "cat/a.png: it is not a picture")]
    assert inputs.good.tolist() == [row for row in range(41) if row != 20]


# lists of pictures


def listed(name: str, columns: dict[str, Any], num: int = 40, **more: Any) -> Any:
    """A file that lists pictures in `pics`; columns are functions of the picture's number."""
    made = {"file_name": lambda i: f"pics/{i:03}.png", "label": lambda i: "ab"[i % 2], **columns}
    made = {column: value for column, value in made.items() if value}

    def make(folder: Path) -> None:
        values = np.random.default_rng(0).integers(0, 255, (num, 9, 7), dtype=np.uint8)
        (folder / name).parent.joinpath("pics").mkdir(parents=True, exist_ok=True)
        for i, pixels in enumerate(values):
            Image.fromarray(pixels).save((folder / name).parent / "pics" / f"{i:03}.png")
        table(made, num=num, name=name, **more)(folder)

    return make


L = "data=images data.size=8 data.num_workers=0"


@pytest.mark.parametrize("name", ["list.csv", "list.tsv", "list.jsonl", "list.parquet", "d/metadata.csv"])
def test_a_file_lists_pictures(name: str, place: Path) -> None:
    listed(name, {"size": lambda i: i}, separator="\t" if name.endswith("tsv") else ",")(place)
    path = "d" if name.startswith("d/") else name
    data = data_of(f"{L} data.path={path}")
    assert data.spec.classes == ("a", "b")
    for split, ids in data.ids.items():
        assert data.rows[split].labels.tolist() == [i % 2 for i in ids.tolist()]
    assert {len(rows) for rows in data.rows.values()} == {28, 6}


def test_columns_of_a_list_are_what_the_command_says(place: Path) -> None:
    parts = ("train", "train", "val", "train", "test")
    columns = {"file_name": None, "label": None, "where": lambda i: f"pics/{i:03}.png", "kind": lambda i: i % 3}
    listed("l.csv", {**columns, "part": lambda i: parts[i % 5]})(place)
    data = data_of(f"{L} data.path=l.csv data.image=where data.target=kind data.split=part")
    assert data.spec.classes == ("0", "1", "2")
    assert data.num_rows == {"train": 24, "val": 8, "test": 8}
    with pytest.raises(UserError, match=r"'l.csv' has the columns where, kind, part; which is it\? data.image="):
        data_of(f"{L} data.path=l.csv data.target=kind")
    with pytest.raises(UserError, match=r"data.target: no column 'knd'; did you mean 'kind'"):
        data_of(f"{L} data.path=l.csv data.image=where data.target=knd")


def test_few_pictures_of_a_list_may_be_missing(place: Path) -> None:
    listed("l.csv", {}, num=200)(place)
    (place / "pics" / "007.png").unlink()
    data = data_of(f"{L} data.path=l.csv")
    assert sum(data.num_rows.values()) == 199
    assert any("1 of 200 pictures cannot be read and are left out: pics/007.png" in text for text in data.findings)
    for i in range(8, 12):
        (place / "pics" / f"{i:03}.png").unlink()
    with pytest.raises(UserError, match=r"5 of 200 pictures cannot be read: pics/007.png: No such file"):
        data_of(f"{L} data.path=l.csv")


def test_pictures_of_a_list_without_a_class_are_told_or_left_out(place: Path) -> None:
    listed("l.csv", {"label": lambda i: "" if i < 4 else "ab"[i % 2]})(place)
    with pytest.raises(UserError, match=r"4 of 40 pictures have no class, the first is pics/000.png.*unlabelled=drop"):
        data_of(f"{L} data.path=l.csv")
    assert sum(data_of(f"{L} data.path=l.csv data.unlabelled=drop").num_rows.values()) == 36


def test_any_column_of_a_hub_dataset_may_be_the_target(place: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 9, 7), dtype=np.uint8)
    rows = [{"image": Image.fromarray(p), "mood": ("sad", "glad")[i % 2]} for i, p in enumerate(pixels)]
    disable_progress_bars()
    Dataset.from_list(rows, features=Features({"image": Picture(), "mood": Value("string")})).save_to_disk("hub")
    assert data_of(f"{HUB} data.target=mood").spec.classes == ("glad", "sad")
    with pytest.raises(UserError, match=r"no column of pictures with classes: image, mood"):
        data_of(HUB)


def test_columns_are_for_lists(place: Path) -> None:
    photos()(place)
    with pytest.raises(UserError, match="its folders are the classes"):
        data_of(f"{I} data.target=label")


def test_new_pictures_may_be_listed_too(place: Path) -> None:
    listed("l.csv", {})(place)
    data = data_of(f"{L} data.path=l.csv")
    other = data_of(f"{L} data.path=l.csv", fitted=data.spec)
    listed("new.csv", {"label": None, "note": lambda i: f"n{i}"}, num=5)(place)
    (place / "pics" / "003.png").unlink()
    (inputs,) = other.inputs("new.csv")
    assert inputs.given.column("note").to_pylist() == [f"n{i}" for i in range(5)]
    assert (inputs.good.tolist(), [row for row, _ in inputs.wrong]) == ([0, 1, 2, 4], [3])
