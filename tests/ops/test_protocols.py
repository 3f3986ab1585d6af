from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from uda_reid.errors import DataError, RecipeError
from uda_reid.ops.protocols import PROTOCOLS, check_labels

GOOD: dict[str, Any] = {
    "query_pids": [1, 2],
    "gallery_pids": [1, 0, -1],
    "query_cams": [1, 2],
    "gallery_cams": [1, 2, 3],
    "protocol": "market",
}


def test_every_protocol_is_defined_in_one_sentence() -> None:
    assert set(PROTOCOLS) == {"market", "cross-camera", "any-camera"}
    assert all("junk (-1)" in sentence for sentence in PROTOCOLS.values())


def test_check_labels_takes_lists_arrays_and_tensors() -> None:
    arrays = {
        **GOOD,
        "query_pids": np.array([1, 2], dtype=np.int32),
        "gallery_pids": torch.tensor([1, 0, -1]),
    }
    for labels in (check_labels(**GOOD), check_labels(**arrays)):
        assert labels.query_pids.dtype == labels.gallery_cams.dtype == torch.int64
        assert labels.gallery_pids.tolist() == [1, 0, -1]


@pytest.mark.parametrize("missing", ["query_cams", "gallery_cams"])
@pytest.mark.parametrize("protocol", ["market", "cross-camera"])
def test_missing_cameras_are_refused_and_any_camera_recommended(missing: str, protocol: str) -> None:
    message = r"needs the camera of every query and every gallery image; .* use protocol 'any-camera'"
    with pytest.raises(DataError, match=message):
        check_labels(**{**GOOD, "protocol": protocol, missing: None})
    check_labels(**{**GOOD, "protocol": "any-camera", missing: None})


def test_unknown_protocol_is_refused_with_the_known_ones() -> None:
    with pytest.raises(RecipeError, match="'duke' is unknown; use one of market, cross-camera, any-camera"):
        check_labels(**{**GOOD, "protocol": "duke"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query_pids": [1, 0]}, "query_pids: identity 0 in row 1; identities must be >= 1"),
        ({"query_pids": [-1, 1]}, "query_pids: identity -1 in row 0"),
        ({"gallery_pids": [1, 1, -2]}, "gallery_pids: identity -2 in row 2; identities must be >= -1"),
        ({"query_pids": []}, r"query_pids: .* of shape \(0,\) given"),
        ({"gallery_pids": []}, r"gallery_pids: .* of shape \(0,\) given"),
        ({"gallery_pids": [[1, 0, -1]]}, r"gallery_pids: int64 of shape \(1, 3\) given"),
        ({"gallery_pids": [1.0, 0.0, -1.0]}, "gallery_pids: float64"),
        ({"gallery_cams": [1, 2]}, "3 gallery_pids but 2 gallery_cams"),
        ({"query_cams": [1, 2, 3]}, "2 query_pids but 3 query_cams"),
    ],
)
def test_bad_labels_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_labels(**{**GOOD, **change})


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("seed", range(8))
def test_answerable_agrees_with_the_masks(protocol: str, seed: int) -> None:
    numbers = np.random.default_rng(seed)
    labels = check_labels(
        numbers.integers(1, 12, 40),
        numbers.integers(-1, 9, 30),
        numbers.integers(1, 3, 40),
        numbers.integers(1, 3, 30),
        protocol=protocol,
    )
    matches, _ = labels.masks(slice(0, 40))
    assert labels.answerable().tolist() == matches.any(dim=1).tolist()
    assert 0 < int(labels.answerable().sum()) < 40


def test_answerable_queries_have_a_match_that_is_not_removed() -> None:
    pids, cams = [1, 2, 3, 4] * 40, [1, 1, 2, 2] * 40
    gallery_pids, gallery_cams = [1, 2, 2, 3, -1, 0], [1, 1, 2, 2, 1, 1]
    expected = {
        "market": [False, True, False, False],
        "cross-camera": [False, True, False, False],
        "any-camera": [True, True, True, False],
    }
    for protocol, answers in expected.items():
        labels = check_labels(pids, gallery_pids, cams, gallery_cams, protocol=protocol)
        assert labels.answerable().tolist() == answers * 40
