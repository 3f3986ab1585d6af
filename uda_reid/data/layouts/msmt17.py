"""MSMT17: as published with four or five lists, and the two forms that people turn it into."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from uda_reid.data.layouts.files import Presence, folders_in
from uda_reid.data.layouts.labels import Parts, Row, arrange
from uda_reid.data.layouts.layout import Layout
from uda_reid.data.layouts.market import MARKET, MARKET_FOLDERS, SHORT_NAME, named_rows
from uda_reid.data.layouts.pytorch import PYTORCH, PYTORCH_FOLDERS, inside, is_pytorch
from uda_reid.errors import DataError
from uda_reid.reading import read_text
from uda_reid.types import JUNK

_NAME = re.compile(r"(\d+)_\d+_(\d+)_", re.ASCII)
"""Identity and camera at the start of a file's name: `0000_000_01_0303morning_0015_0.jpg`."""
_LINE = re.compile(r"(\S.*?)\s+(\d+)", re.ASCII)

_BOTH = ("list_train.txt", "list_val.txt")
_FOLDERS = (("train", "test"), ("mask_train_v2", "mask_test_v2"))
"""The folders of the images in the first edition, and in the second, whose faces are blurred."""

_BOTH_NOTE = "train is list_train and list_val together; msmt17-train is list_train alone"
_ALONE_NOTE = "train is list_train alone; msmt17 is list_train and list_val together, on which most adaptation trains"


def is_listed(folder: Path) -> bool:
    """Return whether MSMT17's lists lie in `folder`."""
    return all((folder / f"list_{name}.txt").is_file() for name in ("train", "query"))


def read_listed(folder: Path, lists: Sequence[str]) -> Parts:
    """Read MSMT17 as published, with `lists` for training.

    In the lists, identities count from 0 among the training images and from 0 again in the test; they are numbered
    apart here.

    Raises:
        DataError: a list or an image is missing, or a line is no line of a list.
    """
    training, testing = _image_folders(folder)
    rows = [row for name in lists for row in _listed(folder / name, "train", training)]
    for split in ("query", "gallery"):
        rows += _listed(folder / f"list_{split}.txt", split, testing)
    return _apart(rows, folder, [_BOTH_NOTE if len(lists) > 1 else _ALONE_NOTE])


def read_converted(folder: Path) -> Parts:
    """Read MSMT17 in Market-1501's folders, `0000_c1_000451.jpg`; it has no distractors, and 0 is an identity.

    Raises:
        DataError: a folder is missing or holds no image, or no image in it is named like that.
    """
    rows, notes = named_rows(folder, pattern=SHORT_NAME, folders=MARKET_FOLDERS)
    return _apart(rows, folder, notes)


def read_copied(folder: Path, training: str) -> Parts:
    """Read MSMT17 in Person_reID_baseline_pytorch's folders, with the folder `training` to train on.

    Raises:
        DataError: a folder is missing or holds no image, or no image in it is named as published.
    """
    rows, notes = named_rows(inside(folder), pattern=_NAME, folders=(training, *PYTORCH_FOLDERS[1:]), nested=True)
    return _apart(rows, folder, [_BOTH_NOTE if training == PYTORCH_FOLDERS[0] else _ALONE_NOTE, *notes])


def _image_folders(folder: Path) -> tuple[Path, Path]:
    """Return the folders of the training and of the test images."""
    here = {inner.name.lower(): inner for inner in folders_in(folder)}
    for training, testing in _FOLDERS:
        if training in here and testing in here:
            return here[training], here[testing]
    wanted = " or ".join(f"{training} and {testing}" for training, testing in _FOLDERS)
    raise DataError(f"{folder}: holds MSMT17's lists but not its images; it has to hold the folders {wanted} too")


def _listed(file: Path, split: str, images: Path) -> Iterator[Row]:
    try:
        # Some copies were saved on Windows: a byte-order mark in front, and \\ between folders.
        lines = read_text(file, encoding="utf-8-sig").replace("\\", "/").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: the list cannot be read ({error}); MSMT17 has it beside its images") from error
    present = Presence()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{file}:{number}"
        match = _LINE.fullmatch(line.strip())
        path = images / match[1] if match else images
        name = _NAME.match(path.name)
        if match is None or name is None:
            raise DataError(f"{where}: {line.strip()!r} is not like '0000/0000_000_01_0303morning_0015_0.jpg 0'")
        if path not in present:
            raise DataError(f"{where}: there is no file {path}; is the data set unpacked as a whole?")
        yield Row(path, match[2], name[2], split, where)


def _apart(rows: Sequence[Row], folder: Path, notes: list[str]) -> Parts:
    """Number the identities of train from 1 and those of the test behind them: the same number is not one person."""
    first = 1 + max((int(row.identity) + 1 for row in rows if row.split == "train"), default=0)
    numbered = []
    for row in rows:
        pid = int(row.identity)
        if pid != JUNK:
            pid += 1 if row.split == "train" else first
        numbered.append(row._replace(identity=str(pid)))
    parts = arrange(numbered, folder=folder)
    return parts._replace(notes=(*notes, *parts.notes))


_HOLDS = "list_train.txt, list_val.txt, list_query.txt and list_gallery.txt beside train and test"

MSMT17 = (
    Layout("MSMT17's lists", _HOLDS, is_listed, read=lambda folder, split: read_listed(folder, _BOTH)),
    Layout(
        "MSMT17 in Market-1501's folders",
        MARKET.holds,
        MARKET.recognises,
        read=lambda folder, split: read_converted(folder),
    ),
    Layout(
        "MSMT17 in Person_reID_baseline_pytorch's folders",
        PYTORCH.holds,
        recognises=lambda folder: is_pytorch(folder, pattern=_NAME),
        read=lambda folder, split: read_copied(folder, "train_all"),
    ),
)
"""The ways it lies on disk, to train on list_train and list_val."""

MSMT17_TRAIN = (
    Layout(
        "MSMT17's lists, list_train alone", _HOLDS, is_listed, read=lambda folder, split: read_listed(folder, _BOTH[:1])
    ),
    Layout(
        "MSMT17 in Person_reID_baseline_pytorch's folders, list_train alone",
        PYTORCH.holds,
        recognises=lambda folder: is_pytorch(folder, pattern=_NAME),
        read=lambda folder, split: read_copied(folder, "train"),
    ),
)
"""The same to train on list_train alone; a copy in Market-1501's folders no longer tells the two apart."""
