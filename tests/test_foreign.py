from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from rich.console import Console, RenderableType
from scipy.io import savemat

from tests import oracles
from uda_reid.errors import CheckpointError, DataError, RecipeError, UdaReidError
from uda_reid.foreign import (
    Clustered,
    Grouping,
    Reranking,
    Search,
    audit_clusters,
    cluster_features,
    cluster_file,
    clustered_json,
    read_features,
    read_ids,
    read_rows,
    read_search,
    score_features,
    score_files,
    scored_json,
    show_clustered,
    show_scored,
    write_labels,
    write_per_query,
)
from uda_reid.foreign.clustering import FARTHEST
from uda_reid.ops.clustering import climb_graph, dbscan_graph, graph_eps, hdbscan_graph, infomap_graph, kmeans
from uda_reid.ops.distance import normalise
from uda_reid.ops.jaccard import encode_features, jaccard, rerank
from uda_reid.ops.quality import audit, silhouette, soft_neighbourhood_density
from uda_reid.ops.ranking import rank, rank_distances
from uda_reid.run import Run, Silent

T = TypeVar("T")
DOCS = Path(__file__).resolve().parents[1] / "docs" / "features.md"


def people(identities: int = 12, images: int = 5, *, seed: int = 0, dim: int = 16) -> tuple[torch.Tensor, Any, Any]:
    """Features that know people a little, their identities from 1 and their cameras from 1."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(identities, dim, generator=generator)
    pids = np.arange(identities).repeat(images)
    features = centres[pids] + 0.7 * torch.randn(len(pids), dim, generator=generator)
    return features, pids + 1, np.tile(np.arange(images) % 3 + 1, identities)


def searched(seed: int = 0) -> Search:
    """A small search with junk, distractors and a query that nothing answers."""
    features, pids, cams = people(seed=seed)
    query = np.arange(len(pids)) % 5 == 0
    pids[-4:] = 99  # the query of the last person is left without a match
    pids[[3, 8]] = -1, 0
    return Search(features[query], features[~query], pids[query], pids[~query], cams[query], cams[~query])


def shown(what: RenderableType, width: int = 1000) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(what)
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def saved(folder: Path, search: Search, *, header: str = "identity,camera") -> tuple[Path, Path, Path]:
    """Write a search as its two arrays and its table."""
    query, gallery, ids = folder / "q.npy", folder / "g.npy", folder / "ids.csv"
    np.save(query, search.query.numpy())
    np.save(gallery, search.gallery.numpy())
    assert search.query_cams is not None and search.gallery_cams is not None
    rows = [*zip(search.query_pids, search.query_cams, strict=True)]
    rows += [*zip(search.gallery_pids, search.gallery_cams, strict=True)]
    ids.write_text("\n".join([header, *(f"{pid},{cam}" for pid, cam in rows)]))
    return query, gallery, ids


# ---- files ------------------------------------------------------------


@pytest.mark.parametrize("kind", ["<f2", "<f4", "<f8", ">f4", ">f8"])
def test_arrays_of_every_floating_type_are_read_as_float32(tmp_path: Path, kind: str) -> None:
    array = np.random.default_rng(0).standard_normal((5, 3)).astype(kind)
    np.save(tmp_path / "x.npy", array)
    found = read_features(tmp_path / "x.npy")
    assert found.dtype == torch.float32
    np.testing.assert_array_equal(found.numpy(), array.astype(np.float32))


def test_array_in_columns_first_order_is_read_by_rows(tmp_path: Path) -> None:
    array = np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3))
    np.save(tmp_path / "x.npy", array)
    found = read_features(tmp_path / "x.npy")
    assert found.is_contiguous()
    assert found.tolist() == array.tolist()


def test_float32_array_stays_on_the_disk_and_is_never_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "x.npy", np.ones((4, 3), np.float32))
    mapped: list[Any] = []
    original = np.lib.format.open_memmap

    def remembering(*arguments: Any, **options: Any) -> Any:
        mapped.append(original(*arguments, **options))
        return mapped[-1]

    monkeypatch.setattr(np.lib.format, "open_memmap", remembering)
    found = read_features(tmp_path / "x.npy")
    assert isinstance(mapped[0], np.memmap)
    assert found.data_ptr() == mapped[0].ctypes.data  # no copy
    found[0, 0] = 7
    assert np.load(tmp_path / "x.npy")[0, 0] == 1


@pytest.mark.parametrize("suffix", [".pt", ".pth"])
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tensors_are_read_alone_or_in_a_mapping(tmp_path: Path, suffix: str, kind: torch.dtype) -> None:
    features = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).to(kind)
    torch.save(features.requires_grad_(), tmp_path / f"alone{suffix}")
    torch.save({"features": features, "pids": torch.ones(5)}, tmp_path / f"mapping{suffix}")
    torch.save(features, tmp_path / f"old{suffix}", _use_new_zipfile_serialization=False)
    for name in ("alone", "mapping", "old"):
        found = read_features(tmp_path / f"{name}{suffix}")
        assert not found.requires_grad
        assert torch.equal(found, features.detach().float())


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def spoilt(folder: Path) -> None:
    """Write a file for each way in which features go wrong."""
    rows = np.ones((4, 3), np.float32)
    arrays = {
        "flat": rows[0], "deep": rows[None], "empty": rows[:0], "thin": rows[:, :0], "whole": rows.astype(int),
        "complex": rows.astype(complex), "text": np.array([["a"]]), "scalar": np.float32(3),
        "huge": rows * np.float64(1e300),
    }  # fmt: skip
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    rows[2, 1] = np.nan
    np.save(folder / "nan.npy", rows)
    np.save(folder / "objects.npy", np.array([{1: 2}], dtype=object), allow_pickle=True)
    np.savez(folder / "archive.npz", rows)
    (folder / "archive.npz").rename(folder / "archive.npy")
    np.save(folder / "short.npy", rows)
    cut(folder / "short.npy", 150)
    (folder / "blank.npy").write_bytes(b"")
    (folder / "words.npy").write_bytes(b"hello")
    (folder / "pickle.npy").write_bytes(b"\x80\x04K\x01.")
    (folder / "folder.npy").mkdir()
    (folder / "x.txt").write_text("1 2 3")
    torch.save({"a": torch.ones(2, 2), "b": torch.ones(2, 2)}, folder / "two.pt")
    torch.save({"a": torch.ones(2)}, folder / "none.pt")
    torch.save({"fc.weight": torch.ones(2, 2), "bn.weight": torch.ones(2)}, folder / "model.pt")
    torch.save([torch.ones(2, 2)], folder / "list.pt")
    torch.save({"model": rows}, folder / "numpy.pt")
    torch.save(torch.ones(2, 2).to_sparse(), folder / "sparse.pt")
    torch.save(torch.ones(2, 2), folder / "short.pth")
    cut(folder / "short.pth", 300)
    (folder / "words.pt").write_bytes(b"hello")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.npy", "missing.npy: there is no such file"),
        ("folder.npy", "folder.npy is a folder; give a file, such as "),
        ("flat.npy", "flat.npy holds an array of shape (3,); features are (rows, dimensions)"),
        ("deep.npy", "deep.npy holds an array of shape (1, 4, 3)"),
        ("scalar.npy", "scalar.npy holds an array of shape ()"),
        ("empty.npy", "empty.npy is empty: its shape is (0, 3)"),
        ("thin.npy", "thin.npy is empty: its shape is (4, 0)"),
        ("whole.npy", "whole.npy holds int64; features are float16, float32 or float64"),
        ("complex.npy", "complex.npy holds complex128; features are"),
        ("text.npy", "text.npy holds <U1; features are"),
        ("nan.npy", "nan.npy: row 2 holds NaN or infinity (1 of 4 rows do)"),
        ("huge.npy", "huge.npy holds values beyond the range of float32; scale the features down"),
        ("objects.npy", "objects.npy holds Python objects, which are never unpickled; save a float32 array"),
        ("archive.npy", "archive.npy is an archive (.npz, or a .pt file under another name); save the array alone"),
        ("short.npy", "short.npy is truncated or damaged (mmap length is greater than file size); save it again"),
        ("blank.npy", "blank.npy is empty; save the array alone, with numpy.save"),
        ("words.npy", "words.npy is no .npy file; save the array alone"),
        ("pickle.npy", "pickle.npy is a pickle, which is never read; save the array alone"),
        ("x.txt", "x.txt is of a kind that is not read; save features as .npy, .pt, .pth or .mat"),
        ("two.pt", "two.pt holds 2 matrices (a, b); save the features' tensor alone"),
        ("model.pt", "model.pt holds a model's weights and not what it made of images; save the features' tensor"),
        ("none.pt", "none.pt holds 0 matrices; save the features' tensor alone"),
        ("list.pt", "list.pt holds a list and no tensor"),
        ("numpy.pt", "numpy.pt holds more than tensors, or is damaged; other objects are never unpickled"),
        ("sparse.pt", "sparse.pt holds a sparse tensor of float32; features are"),
        ("short.pth", "short.pth is truncated or no file of torch.save; save"),
        ("words.pt", "words.pt is truncated or no file of torch.save; save the tensor again"),
    ],
)
def test_unusable_features_are_one_line_that_names_the_file(tmp_path: Path, name: str, message: str) -> None:
    spoilt(tmp_path)
    with pytest.raises(DataError) as error:
        read_features(tmp_path / name)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


# ---- the table ------------------------------------------------------------


def table(folder: Path, text: str, name: str = "ids.csv") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


@pytest.mark.parametrize("identity", ["identity", "pid", "ID", "person", "Label"])
@pytest.mark.parametrize("camera", ["camera", "cam", "camid", "Camera ID"])
def test_columns_have_the_names_that_toolkits_use(tmp_path: Path, identity: str, camera: str) -> None:
    found = read_ids(table(tmp_path, f"\ufeff{camera}, {identity}\n\n3,0007\n2,-1\n4.0,12.0\n"))
    assert found.pids.tolist() == [7, -1, 12]
    assert found.cams.tolist() == [3, 2, 4]
    assert found.lines.tolist() == [3, 4, 5]
    assert list(found.names) == ["0007", "-1", "12.0"]
    assert found.notes == ()


def test_text_is_numbered_and_junk_and_distractors_keep_their_meaning(tmp_path: Path) -> None:
    found = read_ids(table(tmp_path, "id,cam,colour\nben,hall,red\n0000,door,\n-1,,\nanna,hall,\n"))
    assert found.pids.tolist() == [2, 0, -1, 1]
    assert found.cams.tolist() == [2, 1, -1, 2]
    assert found.notes == (
        "columns of ids.csv that are ignored: colour",
        "2 identities written as text and numbered from 1 (-1 stays junk, 0 a distractor)",
    )


def test_rows_may_be_numbered_in_any_order(tmp_path: Path) -> None:
    found = read_ids(
        table(tmp_path, "row,split,path,identity,camera,tracklet\n2,Query,a,7,1,\n0,train,b,,,\n1,gallery,c,8,2,\n")
    )
    assert found.pids.tolist() == [-2, 8, 7]
    assert found.cams.tolist() == [-1, 2, 1]
    assert list(found.splits) == ["train", "gallery", "query"]
    assert found.where(2) == f"{tmp_path / 'ids.csv'}:2"
    assert found.notes == ()


@pytest.mark.parametrize("junk", ["-1", "-1.0", "-1.000000000000000000e+00", "-1."])
def test_numbers_are_the_same_however_they_are_written(tmp_path: Path, junk: str) -> None:
    found = read_ids(table(tmp_path, f"pid,cam\n{junk},1.0e+00\n0.0e+00,1\n1.200000000000000000e+01,+2\n0012,2.0\n"))
    assert found.pids.tolist() == [-1, 0, 12, 12]
    assert found.cams.tolist() == [1, 1, 2, 2]
    assert found.notes == ()
    long = read_ids(table(tmp_path, "pid\n9223372036854775807\n0000000000000000000007\n"))
    assert long.pids.tolist() == [(1 << 63) - 1, 7]
    digits = read_ids(table(tmp_path, "pid,cam\nab12,0e1\n0e12,0e2\n00e5,0e3\n"))
    assert sorted(digits.pids.tolist()) == sorted(digits.cams.tolist()) == [1, 2, 3]
    named = read_ids(table(tmp_path, f"pid\n{junk}\nanna\n0.0\nben\n"))
    assert named.pids.tolist() == [-1, 1, 0, 2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pid\n7\n8\ndistractor\n", "ids.csv:4: identity 'distractor' beside '7'; write whole numbers for all, or"),
        ("pid\n7\n7.5\n8\n", "ids.csv:3: identity '7.5' beside '7'; write whole numbers"),
        ("pid\n7\nnan\n8\n", "ids.csv:3: identity 'nan' beside '7'"),
        ("pid\n7\n12345678901234567890\n8\n", "ids.csv:3: identity '12345678901234567890' beside '7'"),
        ("pid\nanna\nben\n7\n", "ids.csv:4: identity '7' beside 'anna'; write whole numbers for all, or names for all"),
        ("pid,cam\n1,hall\n1,door\n1,2\n", "ids.csv:4: camera '2' beside 'door'; write whole numbers for all, or"),
        ("pid,cam\n1,hall\n1,-1\n", "ids.csv:2: camera 'hall' beside '-1'"),
        ("", "ids.csv:1: no column identity; the header is nothing, write identity,camera,split"),
        ("name,camera\n1,1\n", "ids.csv:1: no column identity; the header is name,camera, write"),
        (
            "pid;cam\n1;1\n",
            "the header is pid;cam, write identity,camera,split, of which only identity is needed; put c",
        ),
        ("identiy,cam\n1,1\n", "ids.csv:1: no column identity; the header is identiy,cam, call identiy identity"),
        ("pid\tcam\n1\t1\n", "put commas between the columns"),
        ("identity,camera\n", "ids.csv: lists nothing; write one line for each row of features"),
        ("pid,label\n1,1\n", "ids.csv:1: the column identity is there twice, as pid and label; leave one of the two"),
        (
            "pid,camera_name\n1,1\n",
            "no column camera; the header is pid,camera_name, write camera; if camera_name means",
        ),
        ("pid,subset\n1,1\n", "no column split; the header is pid,subset, write split"),
        ("pid,index\n1,0\n", "no column row; the header is pid,index, write row"),
        ("pid,cam\n1\n", "ids.csv:2: 1 values under 2 columns; quote inner commas"),
        ("pid\n1\n-2\n", "ids.csv:3: identity -2 is negative; only -1 may be, for junk"),
        ("pid,cam\n1,-3\n", "ids.csv:2: camera -3 is negative; count cameras from 0 or 1, blank is unknown"),
        ("pid,row\n1,0\n1,2\n", "ids.csv:3: row '2' is none of 2 counted from 0; number all or none"),
        ("pid,row\n1,0\n1,\n", "ids.csv:3: row '' is none of 2 counted from 0"),
        ("pid,row\n1,1\n1,1\n", "ids.csv:3: row 1 is there already in line 2; number every row once"),
    ],
)
def test_unusable_table_is_one_line_that_names_the_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError) as error:
        read_ids(table(tmp_path, text))
    assert message in str(error.value)


def test_table_in_another_encoding_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "ids.csv").write_bytes("identity\njosé\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"^.*ids\.csv: cannot be read as CSV text in UTF-8 \("):
        read_ids(tmp_path / "ids.csv")


# ---- searches ------------------------------------------------------------


def same(one: Search, other: Search) -> None:
    for name in ("query", "gallery", "query_pids", "gallery_pids", "query_cams", "gallery_cams"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


def test_two_files_and_a_table_without_splits_are_queries_then_gallery(tmp_path: Path) -> None:
    search = searched()
    query, gallery, ids = saved(tmp_path, search)
    found = read_search([query, gallery], ids)
    same(found, search)
    assert found.query_rows is not None and found.query_rows.tolist() == list(range(12))
    assert found.query_names[:2] == ("1", "2")


def test_two_files_take_their_rows_from_the_splits_in_order(tmp_path: Path) -> None:
    search = searched()
    query, gallery, ids = saved(tmp_path, search)
    lines = ids.read_text().splitlines()
    mine, theirs = lines[1:13], lines[13:]
    mixed = [f"{line},gallery" for line in theirs[:5]] + [f"{line},query" for line in mine]
    mixed += [",,train", *(f"{line},gallery" for line in theirs[5:])]
    ids.write_text("\n".join(["identity,camera,split", *mixed]))
    found = read_search([query, gallery], ids)
    same(found, search)
    assert found.notes == ("rows left out: 1 of split train",)


@pytest.mark.parametrize("mixed", [False, True])
def test_one_file_is_told_apart_by_the_splits(tmp_path: Path, mixed: bool) -> None:
    features, pids, cams = people()
    splits = np.array(["train"] * 20 + ["query"] * 10 + ["gallery"] * 30)
    order = np.random.default_rng(0).permutation(60) if mixed else np.arange(60)
    splits = splits[order]
    np.save(tmp_path / "x.npy", features.numpy())
    rows = zip(splits, pids, cams, strict=True)
    ids = table(tmp_path, "\n".join(["split,pid,cam", *(",".join(map(str, row)) for row in rows)]))
    found = read_search([tmp_path / "x.npy"], ids)
    query, gallery = splits == "query", splits == "gallery"
    same(found, Search(features[query], features[gallery], pids[query], pids[gallery], cams[query], cams[gallery]))
    assert found.query_rows is not None and found.query_rows.tolist() == np.flatnonzero(query).tolist()
    assert found.notes == ("rows left out: 20 of split train",)


def test_row_numbers_put_the_lines_in_the_order_of_the_features(tmp_path: Path) -> None:
    search = searched()
    query, gallery, ids = saved(tmp_path, search)
    lines = ids.read_text().splitlines()[1:]
    numbered = [f"{row},{line}" for row, line in enumerate(lines)]
    ids.write_text("\n".join(["row,identity,camera", *reversed(numbered)]))
    same(read_search([query, gallery], ids), search)


def test_matlab_file_needs_no_table(tmp_path: Path) -> None:
    search = searched()
    result = {"query_f": search.query.numpy(), "query_label": search.query_pids.tolist()}
    result |= {"gallery_f": search.gallery.numpy(), "gallery_label": search.gallery_pids.tolist()}
    assert search.query_cams is not None and search.gallery_cams is not None
    result |= {"query_cam": search.query_cams.tolist(), "gallery_cam": search.gallery_cams.tolist()}
    savemat(tmp_path / "pytorch_result.mat", result)
    same(read_search([tmp_path / "pytorch_result.mat"]), search)
    features, known = read_rows(tmp_path / "pytorch_result.mat")
    assert torch.equal(features, torch.cat([search.query, search.gallery]))
    assert known is not None and known.pids.tolist() == [*search.query_pids, *search.gallery_pids]
    with pytest.raises(RecipeError, match=r"pytorch_result\.mat holds its own labels; leave out --ids$"):
        read_search([tmp_path / "pytorch_result.mat"], tmp_path / "ids.csv")
    with pytest.raises(DataError, match=r"holds queries and a gallery with their labels; give it alone, without a sec"):
        read_search([tmp_path / "pytorch_result.mat"] * 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query_cam": None}, "there is no query_cam in it; it has to hold query_f, query_label, query_cam, gallery_f"),
        ({"query_label": [1]}, "query_f holds 2 rows but query_label 1"),
        ({"gallery_cam": [1]}, "2 gallery labels but 1 cameras; one of each per row is needed"),
        ({"gallery_f": np.ones((2, 4))}, "x.mat: query_f has 3 dimensions, gallery_f 4"),
        ({"gallery_f": np.ones((2, 3), int)}, "x.mat: gallery_f holds int64; features are"),
        ({"query_f": np.full((2, 3), np.nan)}, "x.mat: query_f: row 0 holds NaN or infinity (2 of 2 rows do)"),
        ({"gallery_label": ["a", "b"]}, "the gallery labels are <U1; whole numbers are needed"),
        ({"gallery_label": [1, -2]}, "a label is below -1 or a camera below 0"),
    ],
)
def test_unusable_matlab_file_is_one_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    result = {f"{part}_{what}": [1, 2] for part in ("query", "gallery") for what in ("label", "cam")}
    result |= {"query_f": np.ones((2, 3)), "gallery_f": np.ones((2, 3)), **change}  # type: ignore[dict-item]
    savemat(tmp_path / "x.mat", {name: value for name, value in result.items() if value is not None})
    with pytest.raises(DataError) as error:
        read_search([tmp_path / "x.mat"])
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"hello", "is truncated or no MATLAB file ("),
        (b"", "is truncated or no MATLAB file ("),
        (b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(400), "is a MATLAB 7.3 file, which is not read"),
    ],
)
def test_what_is_no_matlab_file_is_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.mat").write_bytes(content)
    with pytest.raises(DataError, match=re.escape(message)):
        read_search([tmp_path / "x.mat"])


def test_rows_that_mean_something_else_are_told(tmp_path: Path) -> None:
    np.save(tmp_path / "q.npy", np.eye(3, dtype=np.float32))
    np.save(tmp_path / "g.npy", 2 * np.eye(3, dtype=np.float32))
    both = [tmp_path / "q.npy", tmp_path / "g.npy"]
    found = read_search(both, table(tmp_path, "pid,cam\n-1,1\n0,1\n1,2\n0,2\n1,1\n-1,2\n"))
    assert found.query_pids.tolist() == [1, 2]
    assert found.query_rows is not None and found.query_rows.tolist() == [1, 2]
    assert found.gallery_pids.tolist() == [1, 2, -1]
    assert torch.equal(found.query, torch.eye(3)[1:])
    assert found.notes == (
        "1 query of identity -1 (junk) left out",
        "identities count from 0, where 0 means a distractor in a gallery: 1 was added to each",
    )
    single = read_search(both, table(tmp_path, "pid,cam\n" + "3,1\n" * 5 + "4,1\n"))
    assert single.query_cams is single.gallery_cams is None
    assert single.notes == ("all rows are from one camera, so cameras count as unknown",)
    unknown = read_search(both, table(tmp_path, "pid\n" + "3\n" * 6))
    assert unknown.query_cams is None
    assert unknown.notes == (
        "the gallery shows one person only, so no answer is wrong, and the numbers say nothing",
        "no camera is given, so matches of the query's own camera cannot be removed",
    )


def test_queries_that_are_in_the_gallery_too_are_counted_where_nothing_removes_them(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)
    np.save(tmp_path / "q.npy", rows[:3])
    np.save(tmp_path / "g.npy", rows)
    both = [tmp_path / "q.npy", tmp_path / "g.npy"]
    # The third query's copy is said to be somebody else.
    found = read_search(both, table(tmp_path, "pid\n" + "\n".join("123128456")))
    assert score_features(found).notes[1:2] == (
        "2 queries are in the gallery too, row for row, and every such query finds itself; leave the queries out of it",
    )
    cams = "pid,cam\n1,1\n2,1\n3,1\n1,1\n2,1\n8,1\n1,2\n2,2\n3,2\n"
    found = read_search(both, table(tmp_path, cams))
    assert "row for row" in str(score_features(found, protocol="any-camera").notes)
    assert "row for row" not in str(score_features(found, protocol="market").notes)  # which removes them
    rows[1:3] = rows[0]
    np.save(tmp_path / "q.npy", rows[:3])
    thrice = read_search(both, table(tmp_path, "pid\n" + "\n".join("111111456")))
    assert score_features(thrice).notes[1].startswith("3 queries are in")


@pytest.mark.parametrize(
    ("text", "names", "message"),
    [
        ("pid,cam\n" + "1,1\n" * 5, "q g", "q.npy and {}g.npy hold 2 + 4 rows but {}ids.csv lists 5; write one line"),
        (
            "pid,cam,split\n" + "1,1,query\n" * 3 + "1,2,gallery\n" * 4, "q g",
            "q.npy holds 2 rows but {}ids.csv lists 3 of split query; write one line for each row",
        ),
        ("pid,cam,split\n" + "1,1,query\n" * 2 + "1,2,gallery\n", "q g", "g.npy holds 4 rows but"),
        ("pid,cam\n" + "1,1\n" * 4, "g", "ids.csv: no column split; {}g.npy is to hold queries and gallery, so write"),
        ("pid,split\n" + "1,query\n" * 3, "g", "g.npy holds 4 rows but {}ids.csv lists 3; write one line for each row"),
        ("pid,split\n" + "1,query\n" * 4, "g", "ids.csv: no row of split gallery; there are query (4); write quer"),
        (
            "pid,split\n1,query\n1,gallery\n1,galery\n1,\n", "g",
            "ids.csv:4: split 'galery' is unknown; did you mean 'gallery'?",
        ),
        ("pid,cam\n" + "1,1\n" * 5 + ",1\n", "q g", "ids.csv:7: identity is blank; every gallery row needs one"),
        ("pid,cam\n" + "1,1\n" * 5 + "1,\n", "q g", "ids.csv:7: camera is blank here but given elsewhere; fill in all"),
        ("pid,cam\n" + "-1,1\n" * 6, "q g", "ids.csv: every query is junk (-1); give the queries their identities"),
        ("pid,cam\n" + "1,1\n" * 6, "q wide", "q.npy has 3 dimensions, {}wide.npy 5; queries and gallery must come"),
    ],
)  # fmt: skip
def test_what_does_not_fit_together_is_one_line(tmp_path: Path, text: str, names: str, message: str) -> None:
    for name, shape in (("q", (2, 3)), ("g", (4, 3)), ("wide", (4, 5))):
        np.save(tmp_path / f"{name}.npy", np.ones(shape, np.float32))
    with pytest.raises(DataError) as error:
        read_search([tmp_path / f"{name}.npy" for name in names.split()], table(tmp_path, text))
    assert message.replace("{}", f"{tmp_path}/") in str(error.value)


def test_features_need_a_table_and_are_one_file_or_two(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((2, 2), np.float32))
    one = tmp_path / "x.npy"
    for several in ([one], [one, one]):
        with pytest.raises(
            RecipeError, match=r"x\.npy: whose images are these\? give a table of identities with --ids"
        ):
            read_search(several)
    with pytest.raises(RecipeError, match=r"^3 files of features; give the queries' and the gallery's, or one with bo"):
        read_search([one] * 3, tmp_path / "ids.csv")


# ---- scores ------------------------------------------------------------


def expected(search: Search, protocol: str = "market") -> tuple[list[float], list[float], list[float], list[int]]:
    """Trapezoid AP, step AP, INP and place of the first match of the queries that have one, by the oracles."""
    found: tuple[list[float], ...] = ([], [], [])
    first = []
    gallery, query = search.gallery.double().tolist(), search.query.double().tolist()
    pids = search.gallery_pids.tolist()
    cams = [0] * len(pids) if search.gallery_cams is None else search.gallery_cams.tolist()
    for row, pid in enumerate(search.query_pids.tolist()):
        distances = [oracles.cosine_distance(query[row], other) for other in gallery]
        cam = 0 if search.query_cams is None else int(search.query_cams[row])
        relevance = [int(pids[g] == pid) for g in oracles.ranked(distances, pid, cam, pids, cams, protocol)]
        if any(relevance):
            for values, measure in zip(
                found,
                (oracles.trapezoid_average_precision, oracles.step_average_precision, oracles.inverse_penalty),
                strict=True,
            ):
                values.append(measure(relevance))
            first.append(relevance.index(1) + 1)
    return found[0], found[1], found[2], first


@pytest.mark.parametrize("protocol", ["market", "cross-camera", "any-camera"])
def test_scores_are_those_of_the_definitions(protocol: str) -> None:
    search = searched()
    scored = score_features(search, protocol=protocol)
    trapezoid, step, penalty, first = expected(search, protocol)
    plain = scored.plain
    assert plain.protocol == protocol
    assert plain.mean(plain.average_precision) == pytest.approx(np.mean(trapezoid), abs=1e-9)
    assert plain.mean(plain.average_precision_step) == pytest.approx(np.mean(step), abs=1e-9)
    assert plain.mean(plain.average_precision_merged) == pytest.approx(np.mean(step), abs=1e-9)  # there are no ties
    assert plain.mean(plain.inverse_penalty) == pytest.approx(np.mean(penalty), abs=1e-9)
    assert (plain.first[plain.valid] + 1).tolist() == first
    assert plain.skipped == 12 - len(first) == 1
    content = json.loads(scored_json(scored, ids=Path("ids.csv")))
    assert content["ids"] == "ids.csv"
    assert content["rankings"]["plain"]["mean_ap"] == pytest.approx(np.mean(trapezoid), abs=1e-9)
    everyone = content["rankings"]["plain"]["all_queries"]
    assert everyone["mean_ap"] == pytest.approx(sum(trapezoid) / 12, abs=1e-9)  # as Person_reID_baseline divides
    assert everyone["cmc"]["1"] == pytest.approx(sum(place == 1 for place in first) / 12, abs=1e-9)
    assert (content["counted"], content["skipped"], content["protocol"]) == (11, 1, protocol)


@pytest.mark.parametrize("reading", ["zhong", "zhong-squared", "spcl"])
def test_reranked_scores_are_those_of_reranked_distances(reading: Any) -> None:
    search = searched()
    scored = score_features(search, reranking=Reranking(k1=6, k2=3, share=0.2, reading=reading))
    assert list(scored.rankings) == ["plain", "re-ranked"]
    labels: dict[str, Any] = {
        "query_pids": search.query_pids, "gallery_pids": search.gallery_pids, "query_cams": search.query_cams,
        "gallery_cams": search.gallery_cams,
    }  # fmt: skip
    blocks = rerank(search.query, search.gallery, k1=6, k2=3, share=0.2, reading=reading)
    again = rank_distances(blocks, **labels), rank(search.query, search.gallery, **labels)
    for found, other in zip((scored.rankings["re-ranked"], scored.plain), again, strict=True):
        np.testing.assert_array_equal(found.average_precision, other.average_precision)
        assert dict(found.accepted) == dict(other.accepted)
    content = json.loads(scored_json(scored))
    assert content["reranking"] == {"k1": 6, "k2": 3, "share": 0.2, "reading": reading}
    assert set(content["rankings"]["re-ranked"]["tpr_at_fpr"]) == {"1e-4", "1e-3"}
    assert f"re-ranked: reading {reading}, k1 6, k2 3, lambda 0.2" in shown(show_scored("x", scored))


def test_small_memory_changes_nothing_and_progress_is_shown() -> None:
    search = searched()
    descriptions: list[tuple[str, int | None]] = []
    whole = score_features(search, reranking=Reranking(k1=6))
    parts = score_features(search, reranking=Reranking(k1=6), memory=4 * 60 * 4, progress=quietly(descriptions))
    for name in whole.rankings:
        np.testing.assert_allclose(
            parts.rankings[name].average_precision, whole.rankings[name].average_precision, atol=1e-6
        )
    assert [description for description, _ in descriptions] == ["re-ranking", "neighbours"]
    assert descriptions[0][1] == 3  # 5 queries' distances at a time
    with pytest.raises(RecipeError, match=r"^memory of 100 bytes is too small: one row takes 192$"):
        score_features(search, memory=100)


def quietly(descriptions: list[tuple[str, int | None]]) -> Any:
    """A progress that remembers what it was told and checks that as many items pass as were announced."""

    def progress(items: Iterable[T], description: str, total: int | None) -> Iterable[T]:
        descriptions.append((description, total))
        passed = 0
        for item in items:
            passed += 1
            yield item
        assert total is None or passed == total

    return progress


def test_protocol_goes_by_the_cameras_and_must_be_known() -> None:
    search = searched()
    assert score_features(search).plain.protocol == "market"
    blind = Search(search.query, search.gallery, search.query_pids, search.gallery_pids)
    assert score_features(blind).plain.protocol == "any-camera"
    with pytest.raises(DataError, match=r"^protocol 'market' needs the camera of every row, and two"):
        score_features(blind, protocol="market")
    with pytest.raises(RecipeError, match=r"^protocol 'markt' is unknown"):
        score_features(search, protocol="markt")
    with pytest.raises(RecipeError, match=r"^protocol 'single-gallery-shot' draws galleries at random and knows no av"):
        score_features(search, protocol="single-gallery-shot")
    strangers = Search(search.query, search.gallery, search.query_pids + 100, search.gallery_pids)
    with pytest.raises(DataError, match=r"^none of the 12 queries has a match in the gallery under protocol 'any-came"):
        score_features(strangers, reranking=Reranking())


def test_euclidean_distances_count_lengths_as_torchreid_does() -> None:
    search = searched()
    longer = search.gallery * torch.linspace(0.2, 3, len(search.gallery))[:, None] + 5
    uneven = Search(
        search.query + 5, longer, search.query_pids, search.gallery_pids, search.query_cams, search.gallery_cams
    )
    labels: dict[str, Any] = {
        name: getattr(search, name) for name in ("query_pids", "gallery_pids", "query_cams", "gallery_cams")
    }
    distances = torch.cdist(uneven.query.double(), longer.double())
    expected = rank_distances([distances], **labels)
    for memory in (1 << 20, 16 * len(longer)):  # one query at a time
        scored = score_features(uneven, metric="euclidean", memory=memory)
        np.testing.assert_array_equal(scored.plain.average_precision, expected.average_precision)
        assert scored.notes == ()
    assert not np.array_equal(score_features(uneven).plain.average_precision, expected.average_precision)
    assert "compared by Euclidean distance, lengths and all" in shown(show_scored("", scored))
    assert json.loads(scored_json(scored))["metric"] == "euclidean"
    for stretch in (1e6, 1e15):  # one row far away changes nothing for the others, nor do large numbers
        far = uneven.gallery.clone()
        far[3] *= stretch
        distances = torch.cdist(uneven.query.double(), far.double())
        outlying = score_features(replace(uneven, gallery=far), metric="euclidean").plain
        wanted = rank_distances([distances], **labels)
        np.testing.assert_array_equal(outlying.average_precision, wanted.average_precision)
        assert outlying.near.sum() == 0
    high = replace(uneven, query=uneven.query * 1e20, gallery=uneven.gallery * 1e20)
    found = score_features(high, metric="euclidean").plain
    np.testing.assert_array_equal(found.average_precision, expected.average_precision)
    whole = replace(uneven, query=(search.query > 0).float(), gallery=(search.gallery > 0).float())
    ties = rank_distances([torch.cdist(whole.query.double(), whole.gallery.double()).square().round()], **labels)
    assert ties.ties > 0
    assert score_features(whole, metric="euclidean").plain.ties == ties.ties
    same_place = Search(torch.ones(2, 3), torch.ones(4, 3), np.array([1, 2]), np.array([3, 1, 3, 2]))
    assert score_features(same_place, metric="euclidean").plain.ties == 2
    with pytest.raises(RecipeError, match=r"^metric 'l2' is unknown; use cosine or euclidean$"):
        score_features(uneven, metric="l2")  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match=r"^re-ranking compares by cosine; use one or the other"):
        score_features(uneven, metric="euclidean", reranking=Reranking())


def test_output_says_what_the_numbers_are() -> None:
    text = shown(show_scored("mine [b]", score_features(searched())))
    for part in (
        "mine [b]", "mAP", "merged", "mINP", "1e-4", "1e-3", "protocol market: gallery images with the query's",
        "queries: 11 counted, 1 skipped: no match in the gallery is left for them", "over all 12 queries, skipped ones",
        "ties: none, and no distances within 1e-6 of one another", "torchreid", "Person_reID_baseline", "took: plain ",
        "note: features of lengths from 2.", "(torchreid by default) ranks otherwise",
    ):  # fmt: skip
        assert part in text, part


def test_output_speaks_of_lengths_only_where_they_differ_and_of_ties_where_there_are() -> None:
    search = searched()
    even = Search(normalise(search.query), normalise(search.gallery), search.query_pids, search.gallery_pids)
    assert score_features(even).notes == ()
    assert "queries: 11 counted, 1 skipped" in shown(show_scored("", score_features(even)))
    for stretch, told in ((1.002, True), (1.0005, False)):
        almost = Search(even.query * stretch, even.gallery, search.query_pids, search.gallery_pids)
        assert bool(score_features(almost).notes) == told
    lost = Search(even.query, torch.cat([even.gallery[:-3], torch.zeros(3, 16)]), even.query_pids, even.gallery_pids)
    assert score_features(lost).notes == ("3 of 60 rows are all zeros: was a batch lost on the way?",)
    both = score_features(Search(search.query, lost.gallery, search.query_pids, search.gallery_pids)).notes
    assert [note[:18] for note in both] == ["3 of 60 rows are a", "features of length"]
    flat = Search(torch.ones(2, 3), torch.ones(4, 3), np.array([1, 2]), np.array([3, 1, 3, 2]))
    text = shown(show_scored("", score_features(flat)))
    assert "queries: all 2 have a match, so the means over all queries are the same" in text
    assert "plain: 2 queries have equal distances that change the AP, in the mean by 12.5 points: the order of" in text
    assert "have the features collapsed?" in text
    assert "2 queries have near ties (6 pairs within 1e-6, which rounding may swap)" in text
    # However the gallery is ordered, and however little such features find.
    pids = np.random.default_rng(0).permutation(np.arange(400) % 100)
    flat = Search(torch.ones(50, 3), torch.ones(400, 3), np.arange(50) + 1, pids + 1)
    assert "have the features collapsed?" in shown(show_scored("", score_features(flat)))
    # Among many images some are equally far by chance; that is no collapse.
    features, pids, cams = people(30, 6)
    features[7] = features[14]
    few = Search(features[::6], features, pids[::6], pids, cams[::6], cams)
    text = shown(show_scored("", score_features(few, protocol="any-camera")))
    assert "equal distances" in text and "collapsed" not in text


@pytest.mark.parametrize("width", [80, 100])
def test_table_of_two_rankings_is_whole_on_a_narrow_terminal(width: int) -> None:
    text = shown(show_scored("x", score_features(searched(), reranking=Reranking(k1=6))), width)
    assert "\u2026" not in text
    assert all(len(line) <= width for line in text.splitlines())


def test_every_query_is_a_line(tmp_path: Path) -> None:
    search = searched()
    scored = score_features(search, reranking=Reranking(k1=6))
    write_per_query(tmp_path / "queries.csv", scored, search)
    with (tmp_path / "queries.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["ranking"] for line in lines] == ["plain"] * 12 + ["re-ranked"] * 12
    for at, name in ((0, "plain"), (12, "re-ranked")):
        ranking = scored.rankings[name]
        for query, line in enumerate(lines[at : at + 12]):
            assert (line["query"], line["row"]) == (str(query), str(query))
            assert line["identity"] == str(search.query_pids[query])
            assert search.query_cams is not None and line["camera"] == str(search.query_cams[query])
            assert line["valid"] == str(int(ranking.valid[query]))
            assert line["tied"] == "0" and line["near_pairs"] == "0"
            if not ranking.valid[query]:
                assert line["ap_trapezoid"] == line["inp"] == line["first_match_rank"] == ""
                continue
            assert float(line["ap_trapezoid"]) == ranking.average_precision[query]
            assert float(line["ap_step"]) == ranking.average_precision_step[query]
            assert float(line["ap_merged"]) == ranking.average_precision_merged[query]
            assert float(line["inp"]) == ranking.inverse_penalty[query]
            assert int(line["first_match_rank"]) == ranking.first[query] + 1


def test_queries_are_called_by_their_rows_and_names_in_the_file(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((4, 3)))
    ids = table(tmp_path, "person,split\nzo\u00eb,gallery\nadam,gallery\nzo\u00eb,query\nadam,query\n")
    out = tmp_path / "out" / "queries.csv"
    search, scored = score_files([tmp_path / "x.npy"], ids=ids, per_query=out)
    assert scored.plain.counted == len(search.query) == 2
    with out.open(newline="", encoding="utf-8") as file:
        found = [(line["query"], line["row"], line["identity"], line["camera"]) for line in csv.DictReader(file)]
    assert found == [("0", "2", "zo\u00eb", ""), ("1", "3", "adam", "")]


def test_per_query_file_is_not_overwritten_unasked_and_an_interrupted_one_is_not_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    query, gallery, ids = saved(tmp_path, searched())
    out = tmp_path / "queries.csv"
    out.write_text("mine")
    with pytest.raises(
        DataError, match=r"queries\.csv is there already; choose another --per-query, or replace it with"
    ):
        score_files([tmp_path / "missing.npy"], per_query=out)  # said before anything is read
    with pytest.raises(DataError, match=r" is a folder; name a file to write with --per-query$"):
        score_files([query, gallery], ids=ids, per_query=tmp_path)

    def stopped(*_: Any) -> Any:
        yield ("plain", 0)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("uda_reid.foreign.scoring._per_query", stopped)
        score_files([query, gallery], ids=ids, per_query=out, overwrite=True)
    assert out.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["g.npy", "ids.csv", "q.npy", "queries.csv"]
    score_files([query, gallery], ids=ids, per_query=out, overwrite=True)
    assert len(out.read_text().splitlines()) == 13


def full(*_: Any, **__: Any) -> Any:
    """Ask torch for more memory than there is: on the CPU it answers with a plain RuntimeError."""
    return torch.empty(1 << 60)


def out_of_memory(*_: Any, **__: Any) -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory")


def no_memory(*_: Any, **__: Any) -> Any:
    raise MemoryError


@pytest.mark.parametrize("fault", [full, out_of_memory, no_memory])
@pytest.mark.parametrize("place", ["read_search", "score_features", "read_rows", "cluster_features"])
def test_too_little_memory_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, fault: Callable[..., Any]
) -> None:
    query, gallery, ids = saved(tmp_path, searched())
    monkeypatch.setattr(f"uda_reid.foreign.jobs.{place}", fault)
    with pytest.raises(UdaReidError, match=r"^not enough memory for these features; give a smaller --memory, or --dev"):
        if place in ("read_search", "score_features"):
            score_files([query, gallery], ids=ids)
        else:
            cluster_file(query, out=tmp_path / "labels.csv")


def test_other_faults_of_torch_keep_their_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("a fault")

    monkeypatch.setattr("uda_reid.foreign.jobs.read_search", broken)
    with pytest.raises(RuntimeError, match=r"^a fault$"):
        score_files([tmp_path / "q.npy"])


def test_inputs_are_never_written_over(tmp_path: Path) -> None:
    query, gallery, ids = saved(tmp_path, searched())
    (tmp_path / "link.csv").symlink_to(ids)
    for out in (ids, tmp_path / "link.csv", gallery):
        with pytest.raises(DataError, match=r" is read from; choose another --per-query$"):
            score_files([query, gallery], ids=ids, per_query=out, overwrite=True)
    with pytest.raises(DataError, match=r"q\.npy is read from; choose another --out$"):
        cluster_file(query, out=query, overwrite=True)


# ---- clusters ------------------------------------------------------------


def graph(features: torch.Tensor) -> Any:
    return jaccard(encode_features(features, k1=10, k2=3))


@pytest.fixture(scope="module")
def crowd() -> torch.Tensor:
    return people(20, 8, dim=32)[0]


def options(**values: Any) -> Grouping:
    return Grouping(**{"k1": 10, "k2": 3, **values})


def test_dbscan_with_a_radius_is_that_of_the_whole_graph_without_a_ladder(crowd: torch.Tensor) -> None:
    for eps in (0.0, 0.3, 0.6):
        found = cluster_features(crowd, options(eps=eps, ladder=False))
        np.testing.assert_array_equal(found.labels, dbscan_graph(graph(crowd), eps=eps))
        assert (found.eps, found.steps, found.backend, found.recall) == (eps, (), "tiles", 1.0)
        assert found.sizes.tolist() == np.bincount(found.labels[found.labels >= 0]).tolist()


@pytest.mark.parametrize("rule", ["knee", "pairs"])
def test_dbscan_by_rule_climbs_as_on_the_whole_graph(crowd: torch.Tensor, rule: Any) -> None:
    found = cluster_features(crowd, options(eps=rule))
    other = climb_graph(graph(crowd), eps=graph_eps(graph(crowd), rule=rule))
    np.testing.assert_array_equal(found.labels, other.labels)
    assert (found.eps, found.steps) == (other.eps, other.steps)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("rule", ["knee", "pairs"])
def test_rules_see_what_is_farther_than_is_kept(rule: Any, seed: int) -> None:
    features = people(400, 3, seed=seed, dim=64)[0]
    found = cluster_features(features, Grouping(eps=rule, k1=4, k2=2))
    whole = jaccard(encode_features(features, k1=4, k2=2))
    assert math.isclose(
        cluster_features(features, Grouping(eps=rule, k1=4, k2=2, ladder=False)).eps, graph_eps(whole, rule=rule)
    )
    other = climb_graph(whole, eps=graph_eps(whole, rule=rule), limit=max(graph_eps(whole, rule=rule), FARTHEST))
    np.testing.assert_array_equal(found.labels, other.labels)
    assert found.steps == other.steps


def test_ladder_changes_a_given_radius_only_when_asked_to(crowd: torch.Tensor) -> None:
    assert len(cluster_features(crowd, options(eps=0.001, ladder=False)).sizes) == 0
    climbed = cluster_features(crowd, options(eps=0.001))
    assert len(climbed.sizes) > 1
    assert climbed.steps[0].startswith("eps 0.001 finds 0 clusters, try ")
    text = shown(show_clustered("x", climbed))
    assert f"radius {climbed.eps:.4g}, as given; then the ladder" in text
    assert "ladder: eps 0.001 finds 0 clusters" in text


def test_hdbscan_infomap_and_kmeans_are_those_of_the_core(crowd: torch.Tensor) -> None:
    close = jaccard(encode_features(crowd, k1=10, k2=3), most=FARTHEST)
    hdbscan = cluster_features(crowd, options(method="hdbscan", min_samples=5))
    np.testing.assert_array_equal(hdbscan.labels, hdbscan_graph(close, min_cluster_size=5, ties="apart"))
    assert math.isnan(hdbscan.eps)
    pytest.importorskip("infomap")
    infomap = cluster_features(crowd, options(method="infomap", eps=0.5), seed=3)
    seed = 1 + Run(seed=3).seed_for("cluster/infomap") % (1 << 31)
    np.testing.assert_array_equal(infomap.labels, infomap_graph(graph(crowd), eps=0.5, seed=seed, min_cluster_size=4))
    means = cluster_features(crowd, Grouping(method="kmeans", clusters=20), seed=3)
    other = kmeans(normalise(crowd), 20, generator=Run(seed=3).stream("cluster/kmeans"))
    np.testing.assert_array_equal(means.labels, other.labels)
    assert (means.backend, means.steps) == ("", ())


def test_lengths_of_features_do_not_matter(crowd: torch.Tensor) -> None:
    longer = crowd * torch.linspace(0.1, 10, len(crowd))[:, None]
    for grouping in (options(), Grouping(method="kmeans", clusters=9)):
        one, other = (cluster_features(features, grouping).labels for features in (crowd, longer))
        np.testing.assert_array_equal(one, other)


def test_approximate_neighbours_state_their_recall(crowd: torch.Tensor) -> None:
    pytest.importorskip("faiss")
    found = cluster_features(crowd, options(backend="faiss-hnsw", eps=0.6))
    assert 0.5 < found.recall <= 1
    for recall, told in ((0.875, "87.5%"), (0.99996, "99.9%"), (1.0, "100.0%")):
        poor = Clustered(found.labels, found.grouping, backend="faiss HNSW", recall=recall)
        assert f"neighbours: faiss HNSW, {told} of the true neighbours found, on a sample" in shown(
            show_clustered("", poor)
        )
    with pytest.raises(RecipeError, match=r"^backend 'faiss-hnsw' does not see the farthest rows; use tiles$"):
        cluster_features(crowd, options(backend="faiss-hnsw", reading="zhong"))


def test_what_speaks_for_clusters_without_labels(crowd: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    found = cluster_features(crowd, options(eps=0.6), seed=5)
    stream = Run(seed=5).stream("cluster/silhouette")
    assert found.silhouette == tuple(silhouette(crowd, found.labels, generator=stream))
    assert found.density == soft_neighbourhood_density(crowd)
    monkeypatch.setattr("uda_reid.foreign.clustering.DENSITY_ROWS", 100)
    assert math.isnan(cluster_features(crowd, options(eps=0.6)).density)
    nothing = cluster_features(torch.eye(5), options(eps=0.0, ladder=False))
    text = shown(show_clustered("x", nothing))
    assert "n/a" in text and "radius 0, as given" in text
    content = json.loads(clustered_json(nothing, labels=Path("labels.csv")))
    assert (content["clusters"], content["outliers"], content["silhouette"]["value"], content["median"]) == (
        0, 5, None, None
    )  # fmt: skip
    assert content["asked"].keys() == {"eps", "ladder", "min_samples", "k1", "k2", "reading", "backend"}
    assert content["eps"] == 0 and content["recall"] == 1
    means = json.loads(clustered_json(cluster_features(crowd, Grouping(method="kmeans", clusters=20))))
    assert means["asked"] == {"clusters": 20}
    assert means["eps"] is means["recall"] is means["neighbours"] is means["reach"] is None
    assert content["labels"] == "labels.csv"


def identified(folder: Path, pids: Iterable[Any], cams: Iterable[Any], *, splits: Sequence[str] = ()) -> Any:
    rows = list(zip(pids, cams, *([splits] if splits else []), strict=True))
    header = "identity,camera" + (",split" if splits else "")
    return read_ids(table(folder, "\n".join([header, *(",".join(map(str, row)) for row in rows)])))


def test_audit_is_that_of_the_rows_with_an_identity(tmp_path: Path) -> None:
    features, pids, cams = people(20, 8, dim=32)
    labels = cluster_features(features, options(eps=0.6)).labels
    pids[:3] = -1
    pids[3:5] = 0
    names = ["" if row == 5 else str(pid) for row, pid in enumerate(pids)]
    found = audit_clusters(labels, identified(tmp_path, names, cams))
    rows = np.arange(len(pids)) > 5
    assert found.values == audit(labels[rows], pids[rows], cams=cams[rows])
    assert found.rows == len(pids) - 6
    assert 0 < found.chance < 1
    assert found.notes == ("the audit leaves out 6 rows of junk (-1), of distractors (0) or without an identity",)
    text = shown(show_clustered("x", cluster_features(features, options(eps=0.6)), found))
    assert f"camera purity of these clusters with the cameras shuffled: {100 * found.chance:.1f}" in text
    assert "over the rows in clusters, of 154 rows with an identity" in text


def test_audit_goes_without_cameras_and_takes_0_for_a_person_outside_the_gallery(tmp_path: Path) -> None:
    labels = np.array([0, 0, 1, 1])
    found = audit_clusters(labels, identified(tmp_path, [0, 0, 1, 1], [1, 1, 1, 1], splits=["train"] * 4))
    assert found.rows == 4
    assert "camera_purity" not in found.values
    assert found.notes == ("no camera purity: rows are without a camera, or all from one",)
    assert found.values["pair_f1"] == 1
    assert math.isnan(found.chance)
    text = shown(show_clustered("x", Clustered(labels, Grouping()), found))
    assert "camera purity of these clusters" not in text
    assert "purity" in text
    with pytest.raises(DataError, match=r"ids\.csv: no row has an identity to compare with; leave out --ids$"):
        audit_clusters(labels, identified(tmp_path, [-1, 0, "", ""], [1, 1, 1, 1]))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"method": "spectral"}, "method 'spectral' is unknown; use dbscan, hdbscan, kmeans, infomap"),
        ({"method": "kmeans"}, "k-means needs the number of clusters; give it with --clusters"),
        ({"eps": 1.5}, "eps 1.5 is out of range on a graph"),
        ({"eps": math.nan}, "eps nan is out of range on a graph"),
        ({"min_samples": 0}, "min_samples 0 cannot be for dbscan; use 1 or more"),
        ({"method": "hdbscan", "min_samples": 1}, "min_samples 1 cannot be for hdbscan; use 2 or more"),
        ({"reading": "zong"}, "reading 'zong' is unknown"),
        ({"k1": 0}, "k1 0 and k2 3 must be at least 1"),
    ],
)
def test_impossible_groupings_are_refused_before_the_search(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=f"^{re.escape(message)}"):
        cluster_features(torch.eye(4), options(**values))


def test_labels_are_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features, pids, cams = people(20, 8, dim=32)
    np.save(tmp_path / "x.npy", features.numpy())
    ids = table(tmp_path, "\n".join(["pid,cam", *(f"{pid},{cam}" for pid, cam in zip(pids, cams, strict=True))]))
    out = tmp_path / "labels.csv"
    found, audited = cluster_file(tmp_path / "x.npy", options(), out=out, ids=ids)
    lines = out.read_text().splitlines()
    assert lines == ["row,cluster", *(f"{row},{label}" for row, label in enumerate(found.labels.tolist()))]
    assert audited is not None and audited.rows == len(pids)
    before = out.read_bytes()
    with pytest.raises(
        DataError, match=r"labels\.csv is there already; choose another --out, or replace it with --over"
    ):
        cluster_file(tmp_path / "missing.npy", options(), out=out)

    class Stopped:
        def tolist(self) -> Any:
            yield 0
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_labels(out, Stopped())  # type: ignore[arg-type]
    assert out.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ids.csv", "labels.csv", "x.npy"]
    monkeypatch.setattr("uda_reid.foreign.jobs.audit_clusters", lambda *_, **__: pytest.fail("there is no table"))
    again, nothing = cluster_file(
        tmp_path / "x.npy", Grouping(method="kmeans", clusters=3), out=out, overwrite=True, reporter=Silent()
    )
    assert nothing is None and len(again.sizes) == 3
    assert out.read_bytes() != before


def test_place_that_cannot_be_written_to_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"labels\.csv cannot be written \("):
        write_labels(tmp_path / "file" / "labels.csv", np.zeros(3, np.int64))


def test_table_of_another_length_is_refused_before_the_clustering(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((3, 2), np.float32))
    with pytest.raises(DataError, match=r"x\.npy holds 3 rows but .*ids\.csv lists 2; write one line for each row$"):
        cluster_file(tmp_path / "x.npy", out=tmp_path / "labels.csv", ids=table(tmp_path, "pid\n1\n2\n"))
    assert not (tmp_path / "labels.csv").exists()


def test_what_is_known_beforehand_is_said_before_the_clustering(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "x.npy", np.ones((2, 2), np.float32))
    monkeypatch.setattr("uda_reid.foreign.jobs.cluster_features", lambda *_, **__: pytest.fail("too late"))
    with pytest.raises(DataError, match=r"ids\.csv: no row has an identity to compare with; leave out --ids$"):
        cluster_file(tmp_path / "x.npy", out=tmp_path / "labels.csv", ids=table(tmp_path, "pid\n-1\n-1\n"))
    with pytest.raises(CheckpointError, match=r"labels\.csv cannot be written \("):
        cluster_file(tmp_path / "x.npy", out=tmp_path / "x.npy" / "labels.csv")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ids.csv", "x.npy"]


def test_refused_work_leaves_no_folder_behind(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((4, 2), np.float32))
    with pytest.raises(RecipeError, match=r"^eps 2 is out of range"):
        cluster_file(tmp_path / "x.npy", Grouping(eps=2), out=tmp_path / "new" / "deep" / "labels.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]


# ---- docs/features.md ------------------------------------------------------------


def snippets() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", DOCS.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def held(search: Search, tool: int) -> dict[str, Any]:
    """The variables that a tool holds where its snippet is pasted."""
    assert search.query_cams is not None and search.gallery_cams is not None
    q_pids, g_pids, q_cams, g_cams = search.query_pids, search.gallery_pids, search.query_cams, search.gallery_cams
    if tool == 0:
        held = {"qf": search.query, "gf": search.gallery, "q_camids": q_cams, "g_camids": g_cams}
        return {**held, "q_pids": q_pids, "g_pids": g_pids}
    features = {"query_features": search.query, "gallery_features": search.gallery}
    if tool == 1:
        return {**features, "pids": np.concatenate([q_pids, g_pids]), "camids": np.concatenate([q_cams, g_cams])}
    if tool == 2:
        return {**features, "q_pids": q_pids, "g_pids": g_pids, "q_cids": q_cams, "g_cids": g_cams}
    query = [("a.jpg", pid, cam) for pid, cam in zip(q_pids.tolist(), q_cams.tolist(), strict=True)]
    gallery = [("b.jpg", pid, cam) for pid, cam in zip(g_pids.tolist(), g_cams.tolist(), strict=True)]
    arrays = {name: tensor.numpy() for name, tensor in features.items()}
    return {**arrays, "query": query, "gallery": gallery}


@pytest.mark.parametrize("tool", range(4))
def test_snippets_write_what_is_read(tool: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    search = searched()
    exec(snippets()[tool], held(search, tool))
    same(read_search([Path("q.npy"), Path("g.npy")], Path("ids.csv")), search)


def test_python_of_the_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    saved(tmp_path, searched())
    (last,) = snippets()[4:]
    exec(last, {})
    assert capsys.readouterr().out.startswith("plain 0.")


def test_table_of_the_page_is_read_as_the_text_says(tmp_path: Path) -> None:
    (text,) = re.findall(r"^```csv\n(.*?)^```$", DOCS.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    np.save(tmp_path / "q.npy", np.eye(2, 3))
    np.save(tmp_path / "g.npy", np.eye(3))
    search = read_search([tmp_path / "q.npy", tmp_path / "g.npy"], table(tmp_path, text))
    assert search.query_pids.tolist() == [7, 12]
    assert search.gallery_pids.tolist() == [7, 0, -1]
