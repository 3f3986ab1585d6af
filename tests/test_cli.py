from __future__ import annotations

import contextlib
import csv
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from uda_reid import __version__, cli
from uda_reid.cli.arguments import stop
from uda_reid.errors import DataError
from uda_reid.models.encoder import EncoderSpec, build
from uda_reid.ops.clustering import dbscan_graph
from uda_reid.ops.jaccard import encode_features, jaccard
from uda_reid.ops.ranking import rank


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["uda-reid", *words])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    output = capsys.readouterr()
    return int(stop.value.code or 0), output.out, output.err


@pytest.fixture
def base(data: Path, tmp_path: Path) -> list[str]:
    return [
        "--recipe", str(data / "tiny.yaml"), "--data", str(data), "--out", str(tmp_path / "runs"), "--profile", "paper"
    ]  # fmt: skip


def test_adapt_prints_the_table_the_gain_and_the_ledger(
    base: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    code, out, err = run(monkeypatch, capsys, "adapt", "--src", "alpha", "--tgt", "beta", *base)
    assert code == 0, err
    for text in (
        "source-only", "mAP step", "rank-10", "mINP", "queries", "skipped", "supervision ledger", "gain:",
        "protocol market", "trapezoid average precision", "adapted.safetensors", "camera ids used",
    ):  # fmt: skip
        assert text in out, text
    assert "PUL: round 1/2" in err
    code, out, _ = run(monkeypatch, capsys, "adapt", "--src", "alpha", "--tgt", "beta", *base)
    assert code == 0
    assert "finished before" in out


def test_json_is_the_record_and_nothing_else(
    base: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(monkeypatch, capsys, "adapt", "--src", "alpha", "--tgt", "beta", "--json", *base)
    assert code == 0
    record = json.loads(out)
    assert record["target"] == "beta"
    assert len(record["rows"][0]["scores"]["average_precision"]) == 6
    assert record["command"].startswith("uda-reid adapt --src alpha")


def test_pretrain_then_evaluate(
    base: list[str], data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    code, out, _ = run(monkeypatch, capsys, "pretrain", "--src", "alpha", *base)
    assert code == 0
    assert "held-out identities: mean_ap" in out
    model = out.split("model: ")[1].strip()
    words = ("evaluate", "--checkpoint", model, "--tgt", "beta", "--data", str(data))
    code, out, _ = run(monkeypatch, capsys, *words)
    assert code == 0
    assert "rank-1" in out
    code, out, _ = run(monkeypatch, capsys, *words, "--json")
    assert 0 < json.loads(out)["mean_ap"] <= 1


def test_two_sources_are_pretrained_adapted_from_and_found_again(
    base: list[str], three: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    code, out, err = run(monkeypatch, capsys, "pretrain", "--src", "alpha,gamma", *base)
    assert code == 0, err
    model = Path(out.split("model: ")[1].strip())
    assert model.parent.name.startswith("alpha+gamma-s0-")
    words = ("adapt", "--src", "alpha, gamma", "--tgt", "beta", *base)
    code, out, err = run(monkeypatch, capsys, *words)
    assert code == 0, err
    for text in ("alpha+gamma -> beta, tiny", "trained with labels on", "alpha, gamma", "/tiny-alpha+gamma-beta-s0-"):
        assert text in out, text
    assert f"{model} (found)" in err.replace("\n", "")
    code, out, _ = run(monkeypatch, capsys, *words, "--json")
    assert code == 0
    assert json.loads(out)["source"] == "alpha+gamma"
    code, out, err = run(monkeypatch, capsys, "adapt", "--src", "alpha,beta", "--tgt", "beta", *base)
    assert code == 0, err
    assert "the target is one of the sources (beta)" in out
    assert err.index("warning: the target is one of the sources (beta)") < err.index("training the source model")
    record = json.loads(run(monkeypatch, capsys, "adapt", "--src", "alpha,beta", "--tgt", "beta", *base, "--json")[1])
    used = [row["facts"]["target images used"] for row in record["rows"]]
    assert used == ["with labels: it is one of the sources"] * 2


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("datasets", ["plaza", "campus", "station", "market", "duke"]),
        ("recipes", ["pul", "ide", "source_only"]),
        ("strategies", ["pul", "source_only"]),
        ("encoders", ["resnet50", "mobilenet_v2", "resnet_tiny"]),
    ],
)
def test_list_names_everything(
    kind: str, expected: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(monkeypatch, capsys, "list", kind)
    assert code == 0
    for name in expected:
        assert name in out


def relabel(folder: Path, change: Callable[[dict[str, str]], dict[str, str]]) -> None:
    """Rewrite every line of a folder's manifest."""
    with (folder / "manifest.csv").open(newline="") as file:
        rows = [change(row) for row in csv.DictReader(file)]
    with (folder / "manifest.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


@pytest.fixture
def spoilt(data: Path) -> Path:
    """The data folder, with one folder more for each way in which data go wrong."""
    (data / "empty").mkdir()
    (data / "com,ma").mkdir()
    for name in ("corrupt", "single", "strangers"):
        shutil.copytree(data / "beta", data / name)
    picture = Image.effect_noise((64, 128), 60)
    picture.save(data / "corrupt" / "whole.jpg")
    whole = (data / "corrupt" / "whole.jpg").read_bytes()
    (data / "corrupt" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    with (data / "corrupt" / "manifest.csv").open("a") as file:
        file.write("whole.jpg,7,1,gallery\ncut.jpg,7,2,gallery\n")
    (data / "unlabelled").mkdir()
    for path in (data / "beta").glob("train_*.png"):
        shutil.copy(path, data / "unlabelled")
    relabel(data / "single", lambda row: {**row, "identity": "3"} if row["split"] == "train" else row)
    relabel(data / "strangers", lambda row: {**row, "identity": row["identity"] + ("0" * (row["split"] == "query"))})
    (data / "typo.yaml").write_text("strategy: pul\nadapt: {cluster: 5}\npaper: x\nfidelity: text\n")
    (data / "who.yaml").write_text("strategy: nobody\npaper: x\nfidelity: text\n")
    return data


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tgt", "nowhere"], "'nowhere' is no known data set and no folder"),
        (["--tgt", "betta"], "did you mean 'beta'?"),
        (["--src", "market"], "bounding_box_train"),
        (["--tgt", "empty"], "empty: no images in it"),
        (["--tgt", "corrupt"], "cut.jpg: cannot be decoded (truncated): remove or replace it; 1 of 26 images"),
        (["--src", "single"], "single: 1 identity to train on; identification needs at least 2"),
        (["--src", "unlabelled"], "unlabelled: its training images have no identities, so no source model"),
        (["--src", "alpha,unlabelled"], "unlabelled: its training images have no identities, so no source model"),
        (["--src", "alpha,"], "--src alpha,: a name is missing beside a comma; write two sources as plaza,station"),
        (["--src", "alpha,alpha"], "--src alpha,alpha: alpha is there twice; name every source once"),
        (["--src", "alpha,./alpha"], "alpha and alpha are both read from alpha, and the same people would be two"),
        (["--src", "alpha,betta"], "'betta' is no known data set and no folder"),
        (["--src", "com,ma"], "--src com,ma: a comma separates sources, and"),
        (["--tgt", "unlabelled", "--bound"], "--bound needs a target with training images with identities, queries"),
        (["--tgt", "strangers"], "none of the 6 queries has a match in the gallery under protocol 'market'"),
        (["--recipe", "pull"], "did you mean 'pul'"),
        (["--recipe", "typo.yaml"], "typo.yaml:2: adapt.cluster: unknown option; did you mean 'clusters'?"),
        (["--recipe", "who.yaml"], "who.yaml:1: strategy: strategy 'nobody' is unknown"),
        (["--set", "adapt.lr=high"], "adapt.lr=high: 'high' is not a number; the default is 0.05"),
        (["--set", "adapt.clusters=500"], "500 clusters are more than the target's"),
        (
            ["--set", "encoder.weights=model.safetensors", "--set", "encoder.backbone=resnet18"],
            "does not hold resnet18",
        ),
        (["--set", "encoder.weights=nowhere.pth"], "nowhere.pth: there is no such weights file"),
        (["--weights", "nowhere"], "--weights nowhere: there is no such folder"),
        (["--out", ""], "Invalid value for '--out': is empty; give a path"),
        (["--tgt", "x" * 300], "File name too long"),
        (["--device", "cuda:9"], "device 'cuda:9' is not there"),
        (["--device", "warp"], "device 'warp' is unknown"),
        (["--protocol", "markt"], "protocol 'markt' is unknown"),
        (["--threads", "10000"], "10000 threads are too many"),
        (["--profil", "small"], "No such option: --profil"),
        (["--seed", "-1"], "Invalid value for '--seed'"),
        (["--profile", "tiny"], "'tiny' is not one of 'paper', 'small', 'scenes'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2_before_any_training(
    words: list[str],
    message: str,
    base: list[str],
    spoilt: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(spoilt)
    save_file(build(EncoderSpec(backbone="resnet_tiny", weights="none")).state_dict(), "model.safetensors")
    monkeypatch.setattr("uda_reid.pretraining.train", None)  # nothing of this gets as far as that
    given = ("adapt", *base, "--src", "alpha", "--tgt", "beta", *words)
    code, out, err = run(monkeypatch, capsys, *given)
    assert code == 2, (out, err)
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last
    assert "Traceback" not in err


def test_target_without_labels_is_adapted_to_and_the_output_says_why_nothing_is_scored(
    base: list[str], spoilt: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    words = ("adapt", "--src", "alpha", "--tgt", "unlabelled", *base)
    code, out, err = run(monkeypatch, capsys, *words)
    assert code == 0, err
    assert "not scored: unlabelled has no query and gallery images" in out
    assert "supervision ledger" in out
    assert "PUL: round 2/2" in err
    folder = Path(out.split("run: ")[1].splitlines()[0])
    assert "ot scored: unlabelled has no query and gallery" in (folder / "report.html").read_text()
    # Its labels were never read: the same images with labels give the same weights.
    code, labelled, _ = run(monkeypatch, capsys, "adapt", "--src", "alpha", "--tgt", "beta", *base)
    beta = Path(labelled.split("run: ")[1].splitlines()[0])
    ours, theirs = (load_file(place / "adapted.safetensors") for place in (folder, beta))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_target_without_cameras_is_scored_under_any_camera(
    base: list[str], data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    relabel(data / "beta", lambda row: {**row, "camera": ""})
    code, out, _ = run(monkeypatch, capsys, "adapt", "--src", "alpha", "--tgt", "beta", *base, "--json")
    assert code == 0
    assert {row["scores"]["protocol"] for row in json.loads(out)["rows"]} == {"any-camera"}


def test_evaluate_refuses_what_is_no_checkpoint(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "model.safetensors").write_bytes(b"no model")
    for checkpoint in ("model.safetensors", "missing"):
        words = ("evaluate", "--checkpoint", str(data / checkpoint), "--tgt", "beta", "--data", str(data))
        code, _, err = run(monkeypatch, capsys, *words)
        assert code == 2
        assert err.startswith("error: ")
        assert checkpoint in err


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupt_is_one_line_and_the_exit_code_of_its_signal(
    number: int, expected: int, base: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        os.kill(os.getpid(), number)
        time.sleep(5)

    before = signal.getsignal(signal.SIGTERM)
    on_ctrl_c = signal.signal(signal.SIGINT, signal.default_int_handler)  # work in the background ignores it
    try:
        monkeypatch.setattr("uda_reid.pipeline.sources.pretrain", interrupted)
        code, _, err = run(monkeypatch, capsys, "adapt", "--src", "alpha", "--tgt", "beta", *base)
        assert code == expected
        assert "error: interrupted; the same command goes on" in err
        assert signal.getsignal(signal.SIGTERM) is before
        monkeypatch.setattr("uda_reid.strategies.known", interrupted)
        assert run(monkeypatch, capsys, "list", "strategies")[::2] == (expected, "error: interrupted\n")
    finally:
        signal.signal(signal.SIGINT, on_ctrl_c)


def test_full_disk_is_one_line(
    base: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "log.txt")

    monkeypatch.setattr("uda_reid.pipeline.sources.pretrain", full)
    code, _, err = run(monkeypatch, capsys, "adapt", "--src", "alpha", "--tgt", "beta", *base)
    assert code == 2
    assert "error: log.txt: No space left on device" in err


def test_full_disk_under_the_output_is_one_line(
    base: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    monkeypatch.setattr(sys, "argv", ["uda-reid", "list", "recipes"])
    with open("/dev/full", "w") as full, monkeypatch.context() as patch:  # noqa: PTH123
        patch.setattr(sys, "stdout", full)
        with pytest.raises(SystemExit) as stop:
            cli.main()
            full.flush()
        patch.undo()
        with contextlib.suppress(OSError):
            full.close()
    assert stop.value.code == 2
    assert "error: the output: No space left on device" in capsys.readouterr().err


def test_names_that_no_terminal_can_show_are_spelt_out(
    base: list[str], data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    strange = "b\x1b[31m\n:x:ta"
    shutil.copytree(data / "beta", data / strange)
    (data / strange / "gallery_000.png").write_bytes(b"no image")
    code, _, err = run(monkeypatch, capsys, "adapt", "--src", "alpha", "--tgt", strange, *base)
    assert code == 2
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: ") and "b\\x1b[31m\\n:x:ta/gallery_000.png: cannot be decoded" in last


def test_command_in_the_record_names_the_data_folder_of_the_environment(
    base: list[str], data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("UDA_REID_DATA", str(data))
    words = [word for word in base if word not in ("--data", str(data))]
    code, out, _ = run(monkeypatch, capsys, "adapt", "--src", "alpha", "--tgt", "beta", "--json", *words)
    assert code == 0
    assert json.loads(out)["command"].endswith(f"--json {' '.join(words)} --data {data} --threads 1")


def test_report_writes_the_page_anew_and_says_where_there_is_no_run(
    base: list[str], data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    _, out, _ = run(monkeypatch, capsys, "adapt", "--src", "alpha", "--tgt", "beta", *base)
    page = Path(out.split("report: ")[1].strip())
    page.unlink()
    assert run(monkeypatch, capsys, "report", str(page.parent), "--no-pictures")[:2] == (0, f"report: {page}\n")
    assert "data:image" not in page.read_text()
    run(monkeypatch, capsys, "report", str(page.parent / "record.json"))
    assert "data:image" in page.read_text()
    code, _, err = run(monkeypatch, capsys, "report", str(data))
    assert (code, err) == (
        2,
        f"error: {data}: no finished run is there (record.json is missing), nor a matrix (matrix.json is missing); "
        "give a folder that adapt or matrix printed\n",
    )  # fmt: skip


def test_check_and_embed_from_the_command_line(
    base: list[str], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(monkeypatch, capsys, "data", "check", str(data / "beta"))
    assert code == 0 and "as a target" in out and "a table (manifest.csv)" in out
    code, out, _ = run(monkeypatch, capsys, "data", "check", str(data / "beta"), "--json", "--no-decode")
    assert json.loads(out)["name"] == "beta"
    (data / "beta" / "train_000.png").write_bytes(b"no image")
    assert run(monkeypatch, capsys, "data", "check", "beta", "--data", str(data))[0] == 2
    _, out, _ = run(monkeypatch, capsys, "pretrain", "--src", "alpha", *base)
    model = out.split("model: ")[1].strip()
    words = ("embed", str(data / "alpha"), "--checkpoint", model, "--out", str(tmp_path / "features"))
    code, out, err = run(monkeypatch, capsys, *words, "--split", "query", "--normalise")
    assert code == 0, err
    assert np.load(tmp_path / "features" / "features.npy").shape[0] == 6
    assert run(monkeypatch, capsys, *words)[0] == 2  # not over what is there


def test_version_and_help(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, capsys, "--version")[:2] == (0, f"{__version__}\n")
    for words in (
        ["--help"],
        ["adapt", "--help"],
        ["pretrain", "-h"],
        ["evaluate", "-h"],
        ["cluster", "-h"],
        ["data", "draw", "-h"],
    ):
        code, out, _ = run(monkeypatch, capsys, *words)
        assert code == 0
        assert "Usage" in out
    assert run(monkeypatch, capsys, "adapt", "--src", "plaza")[0] == 2


# ---- anybody's features ------------------------------------------------------------


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
    assert run(monkeypatch, capsys, *words.split()) == (130, "", f"error: {message}\n")
    assert sorted(path.name for path in features.iterdir()) == before


@pytest.mark.slow  # half a minute: starts the program three times
def test_run_that_is_asked_to_end_ends_at_once_and_goes_on_to_the_same_weights(data: Path) -> None:
    def start(out: str) -> subprocess.Popen[str]:
        words = ["adapt", "--recipe", str(data / "tiny.yaml"), "--src", "alpha", "--tgt", "beta", "--data", str(data)]
        words += ["--profile", "paper", "--threads", "1", "--out", str(data / out)]
        return subprocess.Popen([sys.executable, "-m", "uda_reid", *words], stderr=subprocess.PIPE, text=True)

    first = start("whole")
    first.communicate(timeout=300)
    assert first.returncode == 0
    running, seen = start("ended"), ""
    assert running.stderr is not None
    for line in running.stderr:
        seen += line
        if "PUL: round 2" in line:  # by then the state of the first is there
            break
    assert "PUL: round 2" in seen
    running.send_signal(signal.SIGTERM)
    began = time.monotonic()
    rest = running.communicate(timeout=60)[1]
    assert running.returncode == 143 and time.monotonic() - began < 30
    assert "error: interrupted; the same command goes on from the last finished epoch or round" in rest
    again = start("ended")
    told = again.communicate(timeout=300)[1]
    assert again.returncode == 0 and "PUL: round 1" not in told
    one, other = (path.read_bytes() for path in sorted(data.glob("*/*/adapted.safetensors")))
    assert one == other


# SIGTERM while a model is trained


def after_steps(monkeypatch: pytest.MonkeyPatch, place: str, steps: int, act: Callable[[], object]) -> None:
    """Do something in a step of a training, once."""
    real, made = getattr(import_module(f"uda_reid.{place}"), "identification"), 0  # noqa: B009

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal made
        made += 1
        if made == steps:
            act()
        return real(*args, **kwargs)

    monkeypatch.setattr(f"uda_reid.{place}.identification", counted)


@pytest.mark.parametrize(
    ("place", "steps", "where"),
    [
        ("pretraining", 3, "pretrain: epoch 2: stopped after step 1"),
        ("strategies.pul", 5, "pul/round/1: epoch 1: stopped after step 2"),
    ],
)
def test_sigterm_in_training_keeps_the_step_and_the_same_command_ends_with_the_same_model(
    place: str, steps: int, where: str, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def words(out: str) -> list[str]:
        files = ["--recipe", str(data / "tiny.yaml"), "--data", str(data), "--out", str(data / out)]
        return ["adapt", "--src", "alpha", "--tgt", "beta", "--profile", "paper", *files]

    assert run(monkeypatch, capsys, *words("whole"))[0] == 0
    with monkeypatch.context() as patch:
        after_steps(patch, place, steps, lambda: os.kill(os.getpid(), signal.SIGTERM))
        began = time.monotonic()
        code, out, err = run(patch, capsys, *words("ended"))
        assert (code, out) == (143, "") and time.monotonic() - began < 30
    assert err.splitlines()[-1].startswith(f"error: {where}, which is kept; the same command goes on from there")
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    code, _, err = run(monkeypatch, capsys, *words("ended"))
    name, step = where.split(": stopped ")
    assert code == 0 and f"{name}: goes on {step}" in err
    for file in ("adapted", "source"):
        one, other = (load_file(next((data / out).glob(f"**/{file}.safetensors"))) for out in ("whole", "ended"))
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    records = [json.loads(next((data / out).glob("*/record.json")).read_text()) for out in ("whole", "ended")]
    assert records[0]["history"] == records[1]["history"] and records[0]["rows"] == records[1]["rows"]


def test_sigterm_that_training_does_not_notice_ends_it_after_a_while(
    base: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "GRACE", 0.2)

    def hang() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(20)  # one long step

    after_steps(monkeypatch, "pretraining", 2, hang)
    began = time.monotonic()
    code, _, err = run(monkeypatch, capsys, "adapt", "--src", "alpha", "--tgt", "beta", *base)
    assert code == 143 and time.monotonic() - began < 15
    assert "error: interrupted; the same command goes on" in err


def test_a_second_sigterm_ends_training_at_once_and_one_that_comes_twice_does_not(
    base: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)

    for at_once, message in ((60.0, "epoch 1: stopped after step 2"), (0.1, "interrupted")):
        with monkeypatch.context() as patch:
            patch.setattr(cli, "AT_ONCE", at_once)
            after_steps(patch, "pretraining", 2, twice)
            code, _, err = run(patch, capsys, "pretrain", "--src", "alpha", *base)
        assert code == 143 and f"{message}" in err and "the same command goes on" in err


# Started by a launcher


class Left(Exception):
    """The process has ended."""


@pytest.mark.parametrize(("rank", "told"), [("0", 1), ("1", 0)])
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["list", "recipes"],
            "list is work for one process, and the launcher started 2; start it without one "
            "(together go adapt, pretrain, evaluate)",
        ),
        (["adapt", "--src", "alpha"], "Missing option '--tgt'; see uda-reid adapt --help"),
        (
            ["evaluate", "--features", "x.npy"],
            "evaluate --features is work for one process, and the launcher started 2; start it without one",
        ),
        (
            ["adapt", "--src", "alpha", "--tgt", "beta", "--set", "adapt.lrr=1"],
            "--set adapt.lrr=1: unknown option; did you mean 'lr'?",
        ),
    ],
)
def test_mistakes_are_told_by_the_first_of_several_processes(
    rank: str, told: int, words: list[str], message: str, base: list[str], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    codes: list[int] = []

    def leave(code: int) -> None:
        codes.append(code)
        raise Left

    for name, value in {"WORLD_SIZE": "2", "RANK": rank}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(sys, "argv", ["uda-reid", *words, *(base if words[0] == "adapt" else [])])
    with pytest.raises(Left):
        cli.main()
    output = capsys.readouterr()
    assert (codes, output.out, output.err) == ([2], "", f"error: {message}\n" * told)


@pytest.mark.parametrize("json_wanted", [True, False])
@pytest.mark.parametrize(("rank", "prints"), [("0", True), ("1", False)])
def test_scores_are_printed_by_the_first_process_alone(
    rank: str, prints: bool, json_wanted: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": rank}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("uda_reid.pipeline.score_checkpoint", lambda *_, **__: SimpleNamespace(scores=None))
    monkeypatch.setattr("uda_reid.report.scores_json", lambda _: "the scores\n")
    monkeypatch.setattr("uda_reid.report.show_row", lambda *_: "the scores")
    words = ["evaluate", "--checkpoint", "x", "--tgt", "beta", *(["--json"] if json_wanted else [])]
    assert run(monkeypatch, capsys, *words) == (0, "the scores\n" * prints, "")


def test_who_was_asked_to_end_and_then_loses_the_others_has_ended_as_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def app(**_: bool) -> None:
        with stop.watched():
            os.kill(os.getpid(), signal.SIGTERM)
            deadline = time.monotonic() + 10
            while not stop.asked and time.monotonic() < deadline:
                time.sleep(0.01)
        raise DataError("another process has ended")

    monkeypatch.setattr(cli, "app", app)
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 143
    assert "error: another process has ended" in capsys.readouterr().err
