from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.foreign.made import options, people, saved, searched, table
from uda_reid.errors import CheckpointError, DataError, RecipeError, UdaReidError
from uda_reid.foreign import Grouping, cluster_file, score_files, write_labels
from uda_reid.run import Silent


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
