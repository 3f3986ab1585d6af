from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from uda_reid.data.images import without_damaged
from uda_reid.errors import DataError
from uda_reid.testing import tiny_domain
from uda_reid.types import Domain

SPLITS = ("train", "query", "gallery")


@pytest.fixture
def yard(tmp_path: Path) -> Domain:
    return tiny_domain(tmp_path / "yard")


def spoil(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


def test_damaged_images_are_left_out_with_their_labels_and_counted(yard: Domain) -> None:
    tracklets = np.arange(24)
    yard = replace(yard, train=replace(yard.train, tracklets=tracklets, domains=tracklets % 2), notes=("odd",))
    spoil(yard.train.paths[3])
    yard.train.paths[5].unlink()
    spoil(yard.gallery.paths[0])
    sound = without_damaged(yard, SPLITS)
    rows = np.delete(np.arange(24), [3, 5])
    assert sound.train.paths == tuple(yard.train.paths[row] for row in rows)
    for name in ("pids", "cams", "tracklets", "domains"):
        np.testing.assert_array_equal(getattr(sound.train, name), getattr(yard.train, name)[rows])
    assert (len(sound.query), len(sound.gallery)) == (6, 23)
    assert sound.left_out == {"train": 2, "gallery": 1}
    assert sound.notes[0] == "odd"
    assert sound.notes[1].startswith("2 of 24 train images cannot be read and are left out; the first: ")
    assert "train_003.png: cannot be decoded (truncated)" in sound.notes[1]


def test_sound_domain_stays_as_it_is_and_other_splits_are_not_opened(yard: Domain) -> None:
    assert without_damaged(yard, SPLITS) is yard
    spoil(yard.train.paths[3])
    assert without_damaged(yard, ("query", "gallery")) is yard


def test_image_damaged_after_it_was_decoded_is_left_out(yard: Domain) -> None:
    assert not without_damaged(yard, SPLITS).left_out
    content = bytearray(yard.query.paths[2].read_bytes())
    content[40:60] = bytes(20)  # of the same size
    yard.query.paths[2].write_bytes(content)
    assert without_damaged(yard, SPLITS).left_out == {"query": 1}


def test_split_of_which_nothing_can_be_read_is_refused(yard: Domain) -> None:
    for path in yard.query.paths:
        spoil(path)
    with pytest.raises(DataError, match=r"yard: none of the 6 query images can be read; the first: .*query_000\.png: "):
        without_damaged(yard, SPLITS)
