"""What users get wrong in their own files: each ends in one message with the place and the fix, or in a warning."""

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest
from making import (
    TABLE,
    I,
    Make,
    T,
    X,
    archive,
    array,
    at,
    both,
    broken_picture,
    bytes_,
    cut,
    data_of,
    header_of_parquet_twice,
    hub,
    of_table,
    of_text,
    photos,
    rows,
    table,
    text,
    two,
)

from research.data import files
from research.engine.errors import UserError

Case = tuple[str, Make, str, tuple[str, ...]]  # its name, what makes the files, words, what is told

J = f"{TABLE} data.path=t.jsonl"
P = f"{TABLE} data.path=t.parquet"
SPLIT = f"{TABLE} data.train=t.csv data.test=test.csv"
H = "data=hub data.name=hub"
LONG_CELL = {5: '1,"red\nor\nblue",3,yes', 16: "1,red"}  # the second and third line of a cell are no rows
COPIES = of_table(size=lambda i: 1, price=lambda i: i % 3, colour=lambda i: "red", good=lambda i: "ab"[i % 2])

FILES: list[Case] = [
    ("an empty file", bytes_("t.csv", b""), T, ("'t.csv' is empty",)),
    ("a header and no rows", table(num=0), T, ("t.csv: it has a header and no rows",)),
    ("a row with too few cells", table(lines={18: "1,red"}), T, ("t.csv: line 18: it has 2 cells, the header has 4",)),
    ("too many cells", table(lines={18: "1,2,3,4,5"}), T, ("t.csv: line 18: it has 5 cells, the header has 4",)),
    ("a short row behind a long cell", table(lines=LONG_CELL), T, ("t.csv: line 18: it has 2 cells",)),
    ("a quote that is not closed", table(lines={18: '1,"red,3,yes'}), T, ("t.csv: line 18: ", "1,\"red,3,yes")),
    ("a short row behind blank lines", table(lines={5: "", 6: "", 18: "1,red"}), T,
     ("t.csv: line 18: it has 2 cells",)),
    ("a number of 71 bits", table(of_table(**at(2**70, "price")), name="t.jsonl"), f"{TABLE} data.path=t.jsonl",
     ("t.jsonl: line 17, column 'price': 1180591620717411303424 has more than 64 bits",)),
    ("semicolons and commas", table(separator=";", lines={11: "1,5;red;3;yes"}), T,
     ("t.csv, line 11, column 'size': '1,5' is not numeric",)),
    ("a delimiter that cuts lines differently", table(of_table(price=lambda i: "a|" * (i % 4))),
     f"{T} data.delimiter='|'", ("t.csv: line ", "cells, the header has", "data.delimiter")),
    ("an encoding that it is not in", table(of_table(**at("\u0142", "colour"))), f"{T} data.encoding=ascii",
     ("t.csv: ", "it is not ascii; data.encoding=")),
    ("an encoding that nobody knows", table(), f"{T} data.encoding=utf-9", ("data.encoding=utf-9: Python knows no",)),
    ("an archive of two files", archive("t.zip", "a.csv", "b.csv"), f"{TABLE} data.path=t.zip", ("holds 2 files",)),
    ("a name twice", table(lines={1: "size,size,price,good"}), T, ("t.csv: the header names 'size' more than once",)),
    ("a picture as csv", bytes_("t.csv", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\xff"), T, ("t.csv: ", "not UTF-8")),
    ("no gzip", table(name="t.csv.gz"), f"{TABLE} data.path=t.csv.gz", ("t.csv.gz", "gzip")),
    ("gzip cut", cut(bytes_("t.csv.gz", gzip.compress(b"a,good\n1,2\n" * 99)), "t.csv.gz"),
     f"{TABLE} data.path=t.csv.gz", ("t.csv.gz: it is not gz, or cut",)),
    ("a parquet with gz", bytes_("t.parquet.gz", gzip.compress(b"PAR1")), f"{TABLE} data.path=t.parquet.gz",
     ("t.parquet.gz", "parquet")),
    ("an Excel file", bytes_("t.xlsx", b"PK"), f"{TABLE} data.path=t.xlsx", ("'t.xlsx' is not of a kind", ".csv")),
    ("a path with a typo", table(), f"{TABLE} data.path=tt.csv",
     ("no file or folder 'tt.csv'", "did you mean 't.csv'")),
    ("a folder of nothing", lambda folder: (folder / "d").mkdir(), f"{TABLE} data.path=d",
     ("'d' holds no file", ".csv")),
    ("a folder of two kinds", both(table(name="d/a.csv"), table(name="d/b.jsonl")), f"{TABLE} data.path=d",
     ("'d' holds files of several kinds", ".csv")),
    ("a folder of other columns", both(table(name="d/a.csv"), table(of_text(), name="d/b.csv")), f"{TABLE} data.path=d",
     ("b.csv' has the columns 'text', 'label'; before it: 'size'",)),
    ("JSON that breaks off", table(name="t.jsonl", lines={18: '{"size": 1,'}), J,
     ("t.jsonl: line 18: it is not JSON",)),
    ("JSON of two types", table(of_table(**at("abc", "price")), name="t.jsonl"), J,
     ("t.jsonl: line 17, column 'price': 'abc' is not of the type",)),
    ("JSON that is a number", table(name="t.jsonl", lines={18: "3"}), J,
     ("t.jsonl: line 18: it is not an object", "one row a line")),
    ("JSON in latin-1", table(of_text(text=lambda i: "x"), name="t.jsonl", lines={3: '{"text": "ü"}'},
     encoding="latin-1"), "data=text data.path=t.jsonl", ("t.jsonl: ", "not UTF-8")),
    ("a cut parquet", cut(table(name="t.parquet"), "t.parquet"), P, ("t.parquet: ",)),
    ("a name twice in a parquet", header_of_parquet_twice, P,
     ("t.parquet: ", "'size' more than once")),
    ("lists", table(of_table(tags=lambda i: [i]), name="t.parquet"), P,
     ("column 'tags' holds list", "data.drop=[tags]")),
    ("objects", table(of_table(tags=lambda i: {"a": i}), name="t.jsonl"), J,
     ("column 'tags' holds struct", "data.drop=[tags]")),
    ("no path", table(), TABLE, ("no path is given", "data.path=...")),
    ("two kinds of path", table(), f"{T} data.train=t.csv", ("data.path=t.csv, data.train=t.csv", "data.test=...")),
    ("a test set alone", table(), f"{TABLE} data.test=t.csv", ("data.test=t.csv: give all rows",)),
]  # fmt: skip

COLUMNS: list[Case] = [
    ("no such target", table(), "data=table data.path=t.csv data.target=goood",
     ("data.target: no column 'goood'; did you mean 'good'?",)),
    *((f"no such column to {key}", table(), f"{T} data.{key}={word}", (f"data.{key}: no column 'pric'", "'price'?"))
      for key, word in {"drop": "[pric]", "group": "pric", "time": "pric", "split": "pric", "date": "[pric]"}.items()),
    ("the target dropped", table(), f"{T} data.drop=[good]", ("data.drop: 'good' is the target",)),
    ("one cell of text", table(of_table(**at("abc", "price"))), T, ("t.csv, line 18, column 'price': 'abc' is not",)),
    ("one cell of text in the second file", both(table(name="d/a.csv"), table(of_table(**at("abc", "price")),
     name="d/b.csv")), f"{TABLE} data.path=d", ("b.csv, line 18, column 'price': 'abc' is not",)),
    ("one cell of text in a tested file", two(lines={18: "1,red,abc,yes"}), SPLIT,
     ("test.csv, line 18, column 'price': 'abc' is not a finite number",)),
    ("no such day", table(of_table(day=lambda i: f"2026-02-{1 + i % 28 if i - 16 else 30:02}")), T,
     ("t.csv, line 18, column 'day': '2026-02-30' is not",)),
    ("a column of two kinds", table(), f"{T} data.numeric=[price] data.date=[price]",
     ("'price'", "data.numeric", "data.date")),
    ("texts as numbers", table(), f"{T} data.numeric=[colour]", ("t.csv, line 2, column 'colour': 'red' is not",)),
    ("an infinite cell", table(of_table(**at("inf", "price"))), T, ("t.csv, line 18, column 'price'", "finite")),
    ("a cell beyond float32", table(of_table(**at("1e39", "size"))), T, ("t.csv, line 18, column 'size'", "1e39")),
    ("nothing to learn from", table({"good": of_table()["good"], "id": lambda i: i}), T,
     ("no column is left to learn from: column 'id' is named like an id",)),
    ("a target of one value", table(of_table(good=lambda i: "yes")), T,
     ("target 'good' has one value, 'yes', in all 60",)),
    ("a target of one number", table(of_table(good=lambda i: 2.5)), f"{T} data.task=regression",
     ("'good' is 2.5 in all 60",)),
    ("a target like an id", table(of_table(good=lambda i: f"n{i}")), T, ("as many classes as rows (60): is it an id",)),
    ("a missing target", table(of_table(**at("", "good"))), T, ("target 'good' is missing in 1 of 60", "line 18")),
    ("a NaN target", table(of_table(good=lambda i: i / 7 if i else float("nan")), name="t.parquet"),
     P, ("target 'good' is missing in 1 of 60", "t.parquet, row 1")),
    ("an infinite target", table(of_table(good=lambda i: i / 7 if i - 16 else "inf")), T,
     ("t.csv, line 18", "'good'", "infinite")),
    ("a target beyond float32", table(of_table(good=lambda i: i / 7 if i - 16 else "1e39")), T, ("line 18", "'good'")),
    ("a target with text", table(of_table(good=lambda i: i / 7 if i - 16 else "abc")), T,
     ("t.csv, line 18, column 'good': 'abc' is not a number",)),
    ("a regression on text", table(), f"{T} data.task=regression", ("'good' is boolean; a regression needs numbers",)),
    ("a target with text in the test file", two(of_table(good=lambda i: "abc" if i == 516 else i / 7),
     of_table(good=lambda i: i / 7)), SPLIT, ("test.csv, line 18, column 'good': 'abc' is not a number",)),
    ("a target of lists", table(of_table(good=lambda i: [i % 2]), name="t.parquet"), P,
     ("column 'good' holds list",)),
    ("classes that differ in case", table(of_table(**at("Yes", "good"))), T,
     ("'Yes' and 'yes'", "differ in case only")),
    ("a column that is the target", table(of_table(same=lambda i: of_table()["good"](i) == "yes"), 300), T,
     ("column 'same' is the target in other words", "data.drop=[same]")),
    ("a column of the target's numbers", table(of_table(size=None, good=lambda i: i * 37 % 1009,
     same=lambda i: i * 37 % 1009 * 2), 300), T, ("column 'same' is the target", "data.drop=[same]")),
]  # fmt: skip

DAYS = table(of_table(day=lambda i: f"2026-01-{1 + i % 28:02}" if i - 16 else "soon"))
SPLITS: list[Case] = [
    ("two rows", table(of_table(good=lambda i: i / 7), 2), T, ("2 rows are too few", "data.fractions")),
    ("five rows", table(of_table(good=lambda i: "ab"[i % 2]), 5), T, ("5 rows are too few", "data.stratify=false")),
    ("a class with one row", table(of_table(**at("maybe", "good"))), T, ("'maybe' (1)", "data.stratify=false")),
    ("a class with fewer rows than folds", table(of_table(**at("maybe", "good"))), f"{T} data.folds=3",
     ("'maybe' (1)", "3 of each")),
    ("a fold out of range", table(), f"{T} data.folds=4 data.fold=4", ("data.fold=4", "data.folds=4 are 0 to 3")),
    ("a fold of none", table(), f"{T} data.fold=3", ("data.fold=3", "data.folds=")),
    ("one fold", table(), f"{T} data.folds=1", ("data.folds=1",)),
    ("more folds than rows", table(of_table(good=lambda i: i / 7), 40), f"{T} data.folds=50", ("data.folds=50", "40")),
    ("folds of given tests", two(), f"{SPLIT} data.folds=3", ("data.folds=3 makes test rows",)),
    ("folds over time", table(), f"{T} data.folds=3 data.time=price", ("data.folds and data.time exclude each other",)),
    ("a time that is no date", table(), f"{T} data.time=colour", ("column 'colour'", "needs dates", "'red'")),
    ("one time", table(of_table(day=lambda i: "2026-01-31")), f"{T} data.time=day",
     ("data.time: there are too few different times",)),
    ("a time with a word", DAYS, f"{T} data.time=day", ("t.csv, line 18, column 'day'", "'soon'")),
    ("a time that is missing", table(of_table(**at("", "price"))), f"{T} data.time=price",
     ("t.csv, line 18, column 'price'", "data.time")),
    ("a strange split", table(of_table(part=lambda i: "train" if i - 16 else "dev")), f"{T} data.split=part",
     ("t.csv, line 18, column 'part': 'dev' is not train, val or test",)),
    ("a split of no training rows", table(of_table(part=lambda i: "test")), f"{T} data.split=part",
     ("no row for train",)),
    ("two ways to say the split", two(of_table(part=lambda i: "train"), of_table(part=lambda i: "train")),
     f"{SPLIT} data.split=part", ("data.split", "data.test")),
    ("too few groups", table(of_table(who=lambda i: "ab"[i % 2])), f"{T} data.group=who", ("2 groups are too few",)),
    ("groups that given files share", both(table(of_table(who=lambda i: f"c{i % 30}")),
     table(of_table(who=lambda i: f"c{i % 50}"), 20, "test.csv", first=520)), f"{SPLIT} data.group=who",
     ("group(s) of data.group are in train and in test", "leave data.group out")),
    ("groups that a column of splits divides", table(of_table(who=lambda i: f"c{i % 30}",
     part=lambda i: ("train", "train", "val", "test")[i % 4])), f"{T} data.split=part data.group=who",
     ("15 group(s) of data.group are in train and in test (15 of 30 train rows)",)),
    ("a group that is missing", table(of_table(**at("", "colour"))), f"{T} data.group=colour",
     ("t.csv, line 18, column 'colour'", "data.group")),
    ("copies everywhere", both(two(), table(name="test.csv")), SPLIT,
     ("training rows are copies of rows of val or test", "data.duplicates=keep")),
    ("a test file without a column", two(of_table(price=None)), SPLIT, ("'test.csv' lacks the column price", "size, ")),
    ("a test file without the target", two(of_table(good=None)), SPLIT, ("'test.csv' lacks the column good",)),
    ("a class that only tests have", two(of_table(good=lambda i: "no" if i % 2 else "new")), SPLIT,
     ("no training row has the class(es) new",)),
]  # fmt: skip

NUMBERS = [{"text": f"text {i}", "label": i % 2} for i in range(40)]
TEXTS: list[Case] = [
    ("an empty text", text(**at(" ", "text", of_text())), X, ("1 of 60 texts are empty", "t.csv, line 18")),
    ("a missing label", text(**at("", "label", of_text())), X, ("1 of 60 rows have no target", "t.csv, line 18")),
    ("no column of texts", text(text=None, title=lambda i: f"a{i}", body=lambda i: f"b{i}"), X,
     ("columns label, title, body", "data.text=")),
    ("a text column with a typo", text(), f"{X} data.text=txt", ("'t.csv': data.text: no column 'txt'", "'text'?")),
    ("a label column with a typo", text(), f"{X} data.target=lable", ("data.target: no column 'lable'", "'label'?")),
    ("one label", text(label=lambda i: "x"), X, ("the target 'label' has one value, 'x', in all 60 rows",)),
    ("a label for each text", text(label=lambda i: f"n{i}"), X, ("as many classes as rows (60)",)),
    ("labels that differ in case", text(**at("X", "label", of_text())), X, ("'X' and 'x'", "differ in case only")),
    ("lists of labels", table(of_text(label=lambda i: ["a"]), name="t.parquet"), "data=text data.path=t.parquet",
     ("t.parquet", "column 'label' holds list")),
    ("texts in lists", table(of_text(text=lambda i: ["a", "b"]), name="t.jsonl"), "data=text data.path=t.jsonl",
     ("t.jsonl", "column 'text' holds list")),
    ("texts of a strange split", text(part=lambda i: "train" if i - 16 else "dev"), f"{X} data.split=part",
     ("t.csv, line 18", "'dev' is not train, val or test")),
    ("texts of no time", text(day=lambda i: f"{i} days ago"), f"{X} data.time=day", ("data.time", "'0 days ago'")),
    ("a label that only tests have", both(text(), table(of_text(label=lambda i: "xz"[i % 2]), 20, "test.csv",
     first=500)), "data=text data.train=t.csv data.test=test.csv", ("no training row has the class(es) z",)),
    ("a hub dataset that is not there", both(), "data=hub data.name=no_such_dataset",
     ("'no_such_dataset'", "copy the cache")),
    ("a hub table that is not there", both(), f"{TABLE} data.path=hub:no_such_dataset",
     ("'no_such_dataset'", "folder")),
    ("a hub dataset of other columns", hub({"train": rows(of_table(), 40)}), H,
     ("'hub:hub' has the columns size, colour, price, good", "data.text=")),
    ("a hub dataset of other splits", hub({"one": NUMBERS, "two": NUMBERS}), H,
     ("'hub'", "one, two", "train")),
    ("pictures of other splits", hub({"one": NUMBERS, "two": NUMBERS}), "data=images data.path=hub:hub",
     ("'hub'", "one, two", "train")),
    ("a hub split without labels", hub({"train": NUMBERS, "test": [{"text": "a b", "label": None}] * 9}),
     H, ("9 of 49 rows have no target", "test")),
    ("pictures of a hub dataset of texts", hub({"train": NUMBERS}), "data=images data.path=hub:hub",
     ("'hub:hub' has no column of pictures with classes: text, label",)),
]  # fmt: skip

PICTURES: list[Case] = [
    ("no pictures", lambda folder: (folder / "photos").mkdir(), I, ("'photos' has no folder of pictures",)),
    ("no folder", photos("photo"), I, ("no folder 'photos'", "did you mean 'photo'?")),
    ("a table in place of pictures", table(), "data=images data.path=t.csv",
     ("'t.csv'", "which is it? data.image=...")),
    ("a class without pictures", both(photos(), lambda folder: (folder / "photos/emu").mkdir()), I,
     ("'photos/emu' holds no picture",)),
    ("pictures of one class", photos(classes=("cat",)), I, ("has one value, 'cat', in all 20",)),
    ("classes of pictures in two cases", photos(classes=("cat", "Cat")), I, ("'Cat' and 'cat'", "differ in case only")),
    ("a picture each", photos(num=1, classes=tuple("0123456789")), I, ("as many classes as rows (10)",)),
    ("many cut pictures", cut(photos(), "photos/cat/000.png"), I, ("1 of 40 pictures", "photos/cat/000.png: ", "Mend")),
    ("text as a picture", broken_picture(b"hello"), I, ("1 of 41", "photos/cat/a.png: it is not a picture",)),
    ("an empty picture", broken_picture(b""), I, ("1 of 41 pictures cannot be read: photos/cat/a.png",)),
    ("pictures in train and beside it", both(photos(), photos("photos/train", seed=1)), I,
     ("some pictures of 'photos' are in train and some are not",)),
    ("pictures beside the classes", both(photos(), photos("", classes=("photos",))), I, ("photos/000.png", "class")),
    ("pictures that only test", photos("photos/test"), I, ("no row for train",)),
    ("a class that only test pictures have", both(photos("photos/train"), photos("photos/test", 9,
     ("cat", "emu"), 1)), I,
     ("no training row has the class(es) emu",)),
    ("the same pictures everywhere", both(photos("photos/train", 9), photos("photos/test")), I,
     ("training rows are copies of rows of val or test",)),
]  # fmt: skip


TWO_OF_A_CLASS = of_table(good=lambda i: "maybe" if i in (3, 16) else "ab"[i * i % 11 < 5])
AFTER = of_table(after=lambda i: (of_table()["good"](i) == "yes") * 100 + i % 50)
WINDOWS = {i: f"{i * i % 97},{'red' if i % 3 else 'sea'},{i * i % 53},{i % 2}\r" for i in range(2, 62)}
# What is told of data that is used all the same, and what is not even told.
WARNED: list[Case] = [
    ("a column that predicts alone", table(AFTER, 300), T, ("column 'after' alone predicts", "data.drop=[after]")),
    ("a column like an id", table(of_table(id=lambda i: f"n{i}")), T, ("column 'id' differs from row to row",)),
    ("a column that counts", table(of_table(id=lambda i: i + 7)), T,
     ("column 'id' is named like an id, differs from row to row, and is left out", "data.numeric=[id]")),
    ("ranks", table(of_table(rank=lambda i: i + 7)), T, ("column 'rank' counts the rows", "data.drop=[rank]")),
    ("few values", table(COPIES), T, ("equal rows of another split, as so few different values do by chance",)),
    ("a column without a name", table(of_table() | {"": lambda i: i}), T,
     ("column '' is the index of a data frame and is left out", "data.numeric=['']")),
    ("the index of a data frame", table(of_table(__index_level_0__=lambda i: i), name="t.parquet"), P,
     ("column '__index_level_0__' is the index of a data frame",)),
    ("a column of one value", table(of_table(one=lambda i: 1)), T, ("column 'one' has one value and is left out",)),
    ("a column of nothing", table(of_table(none=lambda i: "")), T, ("column 'none' is empty and left out",)),
    ("a column of nulls", table(of_table(none=lambda i: None), name="t.parquet"), P, ("column 'none' is empty",)),
    ("few of a class", table(of_table(good=lambda i: "ab"[i % 20 == 0]), 200), T,
     ("class 'a' has 132", "class_weights")),
    ("two of a class", table(TWO_OF_A_CLASS), T, ("val has no row of the class(es) maybe",)),
    ("copies in the test file", both(two(first=40), table(num=15, first=700, name="val.csv")),
     f"{SPLIT} data.val=val.csv", ("20 of train left out", "data.duplicates=keep")),
    ("one cut picture of many", cut(photos(num=55), "photos/cat/000.png"), I,
     ("1 of 110 pictures", "left out: photos/cat/000.png: ")),
    ("a split with hidden labels", hub({"train": NUMBERS, "test": [{"text": "a", "label": -1}] * 9}, ("x", "y")), H,
     ("the split 'test' of the hub has no labels and is left out",)),
    ("cells with decimal commas", table(of_table(price=lambda i: f"{i},5")), T,
     ("column 'price' is read as numbers with a comma",)),
    ("latin-1", table(of_table(**at("grün", "colour")), encoding="latin-1"), T,
     ("t.csv is read with the encoding cp1252",)),
    ("utf-16", table(encoding="utf-16"), T, ("t.csv is read with the encoding utf-16",)),
    ("semicolons", table(separator=";"), T, ("t.csv is read with ';' between cells",)),
    ("pipes in a txt", table(name="t.txt", separator="|"), f"{TABLE} data.path=t.txt", ("with '|' between cells",)),
    ("tabs that are said", table(separator="\t"), f"{T} data.delimiter=tab", ()),
    ("tabs in a csv", table(separator="\t"), T, ("with '\\t' between cells",)),
    ("commas in a tsv", table(name="t.tsv"), f"{TABLE} data.path=t.tsv", ("t.tsv is read with ',' between cells",)),
    ("no header", table(lines={1: "1,red,1,yes"}), T.replace("good", "column4"),
     ("no header", "column1, column2, column3")),
    ("a title", table(lines={1: "Sales of 2026\n\nsize,colour,price,good"}), T, ("before the header left out",)),
    ("a JSON array", both(table(name="t.jsonl"), array("t.jsonl", "t.json")), f"{TABLE} data.path=t.json", ()),
    ("an archive", archive("t.csv.zip", "t.csv"), f"{TABLE} data.path=t.csv.zip", ()),
    ("a byte order mark", table(encoding="utf-8-sig"), T, ()),
    ("lines that end as on Windows", table(lines=WINDOWS), T, ()),
    ("blank lines", table(lines={5: "", 6: "", 61: ""}), T, ()),
    ("objects without a key", table(name="t.jsonl", lines={9: '{"size": 1, "good": "yes"}'}), J, ()),
    ("lists that are dropped", table(of_table(tags=lambda i: [i]), name="t.jsonl"), f"{J} data.drop=[tags]", ()),
]  # fmt: skip

# Of a file of more than one block, whose first does not tell what the next ones hold.
BLOCKS = {
    "whole numbers, then others": of_table(price=lambda i: i if i < 40 else i + 0.5),
    "nothing, then texts": of_table(colour=lambda i: None if i < 40 else "ab"[i % 2]),
    "a key that comes late": of_table() | {"late": lambda i: i % 7},
    "a line longer than a block": of_table(**at("r" * 5000, "colour")),
}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Paths in words and messages are those of a folder of the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path


def cases(*many: list[Case]) -> Any:
    named = [pytest.param(*case, id=name) for given in many for name, *case in given]
    return pytest.mark.parametrize(("make", "words", "told"), named)


@cases(FILES, COLUMNS, SPLITS, TEXTS, PICTURES)
def test_a_mistake_is_told(make: Make, words: str, told: tuple[str, ...], place: Path) -> None:
    make(place)
    with pytest.raises(UserError) as error:
        data_of(words)
    assert [part for part in told if part not in str(error.value)] == [], str(error.value)


def test_a_file_that_may_not_be_read_is_told(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table()(place)
    (place / "t.csv").chmod(0)
    if os.access("t.csv", os.R_OK):  # root reads all
        monkeypatch.setattr(files.os, "access", lambda *_: False)
    with pytest.raises(UserError, match=r"'t\.csv' may not be read; see its permissions"):
        data_of(T)


@cases(WARNED)
def test_what_can_be_used_is_used_and_told(make: Make, words: str, told: tuple[str, ...], place: Path) -> None:
    make(place)
    data = data_of(words)
    assert [part for part in told if part not in " ".join(data.findings)] == [], data.findings
    assert bool(data.findings) == bool(told)
    left_out = {name for name in ("id", "one", "none", "", "__index_level_0__") if f"column '{name}'" in " ".join(told)}
    assert left_out.isdisjoint(column.name for column in data.spec.columns)
    assert all(len(rows) for rows in data.rows.values())


@pytest.mark.parametrize("columns", BLOCKS.values(), ids=BLOCKS)
def test_json_may_change_from_block_to_block(columns: Any, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table(columns, name="t.jsonl")(place)
    if "late" in columns:
        lines = [json.loads(line) for line in (place / "t.jsonl").read_text().splitlines()]
        lines[:40] = [{name: cell for name, cell in row.items() if name != "late"} for row in lines[:40]]
        (place / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    monkeypatch.setattr(files, "BLOCK_ROWS", 8)
    data = data_of(J)
    assert sum(data.num_rows.values()) == 60
    assert [column.name for column in data.spec.columns] == [name for name in columns if name != "good"]
