from __future__ import annotations

import csv
import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.commands import run
from uda_reid.ops.clustering import dbscan_graph
from uda_reid.ops.jaccard import encode_features, jaccard
from uda_reid.ops.ranking import rank


@pytest.fixture
def features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the features of 12 people, whose table knows them, and files that are none of that."""
    folder = tmp_path / "features"
    folder.mkdir()
    monkeypatch.chdir(folder)
    pids = np.arange(12).repeat(6)
    draw = np.random.default_rng(0)
    rows = (draw.standard_normal((12, 16))[pids] + 0.7 * draw.standard_normal((72, 16))).astype(np.float32)
    query = np.arange(72) % 6 == 0
    np.save("q.npy", rows[query])
    np.save("g.npy", rows[~query])
    np.save("narrow.npy", rows[~query, :5])
    order = [*np.flatnonzero(query), *np.flatnonzero(~query)]
    np.save("x.npy", rows[order])
    lines = [(int(pids[row]) + 1, row % 3 + 1, "query" if query[row] else "gallery") for row in order]
    Path("ids.csv").write_text("identity,camera\n" + "".join(f"{pid},{cam}\n" for pid, cam, _ in lines))
    Path("rows.csv").write_text("pid,cam,split\n" + "".join(f"{pid},{cam},{split}\n" for pid, cam, split in lines))
    Path("short.csv").write_text("identity,camera\n1,1\n")
    Path("odd.csv").write_text("name;camera\n1;1\n")
    rows[0] = np.nan
    np.save("nan.npy", rows[query])
    np.save("objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    (folder / "cut.npy").write_bytes((folder / "g.npy").read_bytes()[:1000])
    (folder / "taken.csv").write_text("mine")
    return folder


def test_features_are_scored_as_the_issue_writes_it(
    features: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = shlex.split("evaluate --features q.npy g.npy --ids ids.csv")
    code, out, err = run(monkeypatch, capsys, *words)
    assert code == 0, err
    for text in ("q.npy and g.npy: 12 queries, 60 gallery images, 16 dimensions", "merged", "protocol market", "took"):
        assert text in out, text
    assert "re-ranked" not in out
    code, plain, _ = run(monkeypatch, capsys, *words, "--json")
    found = json.loads(plain)
    query, gallery = (torch.from_numpy(np.load(name)) for name in ("q.npy", "g.npy"))
    table = np.loadtxt("ids.csv", delimiter=",", skiprows=1, dtype=int)
    labels: dict[str, Any] = {"query_pids": table[:12, 0], "gallery_pids": table[12:, 0]}
    labels |= {"query_cams": table[:12, 1], "gallery_cams": table[12:, 1]}
    ranking = rank(query, gallery, **labels)
    assert found["rankings"]["plain"]["mean_ap"] == ranking.mean(ranking.average_precision)
    assert found["rankings"]["plain"]["cmc"] == {str(rank): share for rank, share in ranking.cmc().items()}
    assert (found["features"], found["ids"], found["per_query"]) == (["q.npy", "g.npy"], "ids.csv", None)
    options = shlex.split("--rerank --k1 8 --k2 3 --lambda 0.2 --reading spcl --memory 1 --protocol any-camera")
    code, out, err = run(monkeypatch, capsys, *words, *options, "--per-query", "queries.csv")
    assert code == 0, err
    for text in ("re-ranked: reading spcl, k1 8, k2 3, lambda 0.2", "protocol any-camera", "per query: queries.csv"):
        assert text in out, text
    assert len(Path("queries.csv").read_text().splitlines()) == 25
    assert run(monkeypatch, capsys, *words, "--per-query", "queries.csv", "--overwrite")[0] == 0
    assert len(Path("queries.csv").read_text().splitlines()) == 13
    # Both parts in one file, and files in the other two ways to write them.
    for other in ("--features x.npy --ids rows.csv", "--features q.npy --features g.npy --ids ids.csv"):
        code, out, _ = run(monkeypatch, capsys, "evaluate", *other.split(), "--json")
        assert json.loads(out)["rankings"]["plain"]["mean_ap"] == found["rankings"]["plain"]["mean_ap"]


def test_what_embed_writes_scores_as_the_model_does(
    base: list[str], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, out, _ = run(monkeypatch, capsys, "pretrain", "--src", "alpha", *base)
    model = out.split("model: ")[1].strip()
    monkeypatch.setenv("UDA_REID_DATA", str(data))
    _, out, _ = run(monkeypatch, capsys, "evaluate", "--checkpoint", model, "--tgt", "beta", "--json")
    expected = json.loads(out)
    folder = tmp_path / "beta-features"
    run(monkeypatch, capsys, "embed", "beta", "--checkpoint", model, "--out", str(folder))
    words = ("--features", str(folder / "features.npy"), "--ids", str(folder / "rows.csv"))
    code, out, err = run(monkeypatch, capsys, "evaluate", *words, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["notes"][0] == "rows left out: 24 of split train"
    assert found["protocol"] == expected["protocol"] == "market"
    scores = found["rankings"]["plain"]
    for name in ("mean_ap", "mean_ap_step", "mean_inp", "cmc"):
        assert scores[name] == pytest.approx(expected[name], abs=1e-9), name
    code, out, err = run(monkeypatch, capsys, "cluster", *words, "--out", str(tmp_path / "labels.csv"), "--k1", "8")
    assert code == 0, err
    assert len((tmp_path / "labels.csv").read_text().splitlines()) == 55


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("evaluate", "what is to be scored? give --checkpoint, a model, or --features, files; one of the two"),
        (
            "evaluate --checkpoint m --features q.npy",
            "give --checkpoint, a model, or --features, files; one of the two",
        ),
        ("evaluate g.npy --ids ids.csv", "give --checkpoint, a model, or --features, files; one of the two"),
        ("evaluate --checkpoint m", "what is m to be scored on? name a data set with --tgt"),
        ("evaluate g.npy --checkpoint m --tgt beta", "the file g.npy has no meaning with --checkpoint; leave it out"),
        ("evaluate --checkpoint m --tgt beta --rerank", "--rerank has no meaning with --checkpoint; leave it out"),
        ("evaluate --checkpoint m --tgt beta --ids ids.csv", "--ids has no meaning with --checkpoint"),
        ("evaluate --features q.npy g.npy --ids ids.csv --tgt beta", "--tgt has no meaning with --features"),
        ("evaluate --features q.npy g.npy --ids ids.csv --data .", "--data has no meaning with --features"),
        ("evaluate --features q.npy g.npy --ids ids.csv --k1 9", "--k1 has no meaning without --rerank"),
        ("evaluate --features q.npy g.npy --ids ids.csv --lambda 0", "--lambda has no meaning without --rerank"),
        ("evaluate --features q.npy g.npy --ids ids.csv --rerank --lambda 2", "Invalid value for '--lambda'"),
        ("evaluate --features q.npy g.npy --ids ids.csv --rerank --reading x", "'x' is not one of 'zhong', 'zhong-sq"),
        ("evaluate --features q.npy g.npy --ids ids.csv --protocol markt", "protocol 'markt' is unknown"),
        ("evaluate --features q.npy g.npy --ids ids.csv --protocol single-gallery-shot", "draws galleries at random"),
        ("evaluate --features q.npy g.npy --ids ids.csv --device warp", "device 'warp' is unknown"),
        ("evaluate --features q.npy g.npy --ids ids.csv --per-query taken.csv", "taken.csv is there already; choose"),
        ("evaluate --features q.npy g.npy", "q.npy: whose images are these? give a table of identities with --ids"),
        ("evaluate --features q.npy g.npy --ids short.csv", "hold 12 + 60 rows but short.csv lists 1"),
        ("evaluate --features q.npy g.npy --ids odd.csv", "odd.csv:1: no column identity; the header is name;camera"),
        ("evaluate --features q.npy g.npy --ids none.csv", "none.csv: there is no such file"),
        ("evaluate --features q.npy narrow.npy --ids ids.csv", "q.npy has 16 dimensions, narrow.npy 5"),
        ("evaluate --features q.npy cut.npy --ids ids.csv", "cut.npy is truncated or damaged"),
        ("evaluate --features nan.npy g.npy --ids ids.csv", "nan.npy: row 0 holds NaN or infinity"),
        ("evaluate --features objects.npy g.npy --ids ids.csv", "objects.npy holds Python objects, which are never"),
        ("evaluate --features . g.npy --ids ids.csv", ". is a folder; give a file, such as features.npy"),
        ("evaluate --features none.npy g.npy --ids ids.csv", "none.npy: there is no such file"),
        ("evaluate --features ids.csv g.npy --ids ids.csv", "ids.csv is of a kind that is not read"),
        ("evaluate --features x.npy --ids ids.csv", "ids.csv: no column split; x.npy is to hold queries and gallery"),
        ("evaluate --features q.npy --features g.npy x.npy --ids ids.csv", "3 files of features; give the queries'"),
        ("cluster", "Missing option '--features'"),
        ("cluster --features none.npy", "none.npy: there is no such file"),
        ("cluster --features x.npy --out taken.csv", "taken.csv is there already; choose another --out, or replace"),
        ("cluster --features x.npy --out .", ". is a folder; name a file to write with --out"),
        ("cluster --features x.npy --ids short.csv", "x.npy holds 72 rows but short.csv lists 1"),
        ("cluster --features x.npy --method spectral", "'spectral' is not one of 'dbscan', 'hdbscan', 'kmeans'"),
        ("cluster --features x.npy --method kmeans", "k-means needs the number of clusters; give it with --clusters"),
        ("cluster --features x.npy --method kmeans --clusters 100", "cannot make 100 clusters of 72 samples"),
        ("cluster --features x.npy --method kmeans --clusters 9 --k1 9", "--k1 has no meaning with --method kmeans"),
        ("cluster --features x.npy --clusters 9", "--clusters has no meaning with --method dbscan"),
        ("cluster --features x.npy --method hdbscan --eps 0.5", "--eps has no meaning with --method hdbscan"),
        ("cluster --features x.npy --method infomap --ladder", "--ladder has no meaning with --method infomap"),
        ("cluster --features x.npy --eps 1", "eps 1.0 is out of range on a graph; use from 0 to below 1"),
        ("cluster --features x.npy --eps far", "--eps far is no number and no rule; use auto, knee, pairs, or from 0"),
        ("cluster --features x.npy --backend faiss --reading zhong", "does not see the farthest rows; use tiles"),
    ],
)
def test_bad_features_are_one_line_and_exit_code_2(
    words: str, message: str, features: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(path.name for path in features.iterdir())
    code, out, err = run(monkeypatch, capsys, *words.split())
    assert (code, out) == (2, ""), (out, err)
    assert err.startswith("error: ") and err.count("\n") == 1
    assert message in err
    assert sorted(path.name for path in features.iterdir()) == before
    assert (features / "taken.csv").read_text() == "mine"


def test_clusters_are_printed_written_and_audited(
    features: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = shlex.split("cluster --features x.npy --k1 10 --k2 3 --threads 1")
    code, out, err = run(monkeypatch, capsys, *words, "--eps", "0.6", "--ids", "rows.csv", "--seed", "1")
    assert code == 0, err
    for text in ("x.npy: 72 rows", "clusters", "outliers", "dbscan on Jaccard distances: reading spcl, k1 10, k2 3",
                 "radius 0.6, as given", "neighbours: tiles, exact", "audit, by the identities", "NMI",
                 "with the cameras shuffled", "labels: labels.csv"):  # fmt: skip
        assert text in out, text
    with Path("labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["row"] for row in rows] == [str(row) for row in range(72)]
    encoding = encode_features(torch.from_numpy(np.load("x.npy")), k1=10, k2=3)
    labels = dbscan_graph(jaccard(encoding), eps=0.6)
    assert [int(row["cluster"]) for row in rows] == labels.tolist()
    for options in ("--overwrite", "--method hdbscan --out h.csv", "--method kmeans --clusters 12 --out k.csv"):
        given = ["cluster", "--features", "x.npy", *options.split(), "--json"]
        code, out, err = run(monkeypatch, capsys, *given)
        assert code == 0, err
        found = json.loads(out)
        assert found["rows"] == 72 and found["audit"] is None and found["clusters"] > 1
    assert sorted(Path().glob("?.csv")) == [Path("h.csv"), Path("k.csv")]


@pytest.mark.parametrize(
    ("words", "place", "message"),
    [
        ("evaluate --features q.npy g.npy --ids ids.csv", "scoring.rank", "interrupted; nothing was scored"),
        ("cluster --features x.npy", "clustering.encode_features", "interrupted; nothing was written"),
    ],
)
def test_interrupted_work_on_features_is_one_line_and_writes_nothing(
    words: str, place: str, message: str, features: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    before = sorted(path.name for path in features.iterdir())
    monkeypatch.setattr(f"uda_reid.foreign.{place}", interrupted)
    assert run(monkeypatch, capsys, *words.split()) == (130, "", f"{message}\n")
    assert sorted(path.name for path in features.iterdir()) == before
