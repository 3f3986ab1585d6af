from __future__ import annotations

import contextlib
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.commands import run
from uda_reid import __version__, cli
from uda_reid.models.encoder import EncoderSpec, build


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
    assert not any(line.endswith(" ") for line in out.splitlines())
    assert "\n\nsupervision ledger\n" in out
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
    (data / "out.yaml").write_text("name: ../../escape\nstrategy: pul\n")
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
        (
            ["--recipe", "out.yaml"],
            "out.yaml:1: name: '../../escape' cannot begin the name of a folder; write name: NAME",
        ),
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


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupt_is_one_line_and_the_exit_code_of_its_signal(
    number: int, expected: int, base: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        os.kill(os.getpid(), number)
        time.sleep(5)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("uda_reid.pipeline.sources.pretrain", interrupted)
    code, _, err = run(monkeypatch, capsys, "adapt", "--src", "alpha", "--tgt", "beta", *base)
    assert code == expected
    assert err.splitlines()[-1].startswith("interrupted; the same command goes on")
    assert signal.getsignal(signal.SIGTERM) is before
    monkeypatch.setattr("uda_reid.strategies.known", interrupted)
    assert run(monkeypatch, capsys, "list", "strategies")[::2] == (expected, "interrupted\n")


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("processes", ["1", "2"])
def test_ctrl_c_that_the_shell_ignores_for_work_in_the_background_stays_ignored(
    processes: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[object] = []

    def app(**_: bool) -> None:
        seen.append(signal.getsignal(signal.SIGINT))
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name, value in {"WORLD_SIZE": processes, "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(cli, "app", app)
    assert run(monkeypatch, capsys) == (0, "", "")
    assert seen == [signal.SIG_IGN] == [signal.getsignal(signal.SIGINT)]


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
    code, out, _ = run(monkeypatch, capsys, "report", str(page.parent / "record.json"))
    assert (code, out) == (0, f"report: {page}\n")
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


def test_remedy_that_an_unreadable_image_is_given_works_in_every_command(
    base: list[str], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = ["pretrain", "--src", "alpha", *base]
    assert run(monkeypatch, capsys, *source)[0] == 0
    model = next((tmp_path / "runs").glob("sources/*/source.safetensors"))
    for name in ("train_003.png", "query_001.png"):
        (data / "alpha" / name).write_bytes(b"no image")
    scored = ["evaluate", "--checkpoint", str(model), "--tgt", "alpha", "--data", str(data)]
    written = ["embed", "alpha", "--checkpoint", str(model), "--data", str(data), "--out", str(tmp_path / "out")]
    adapted = ["adapt", "--src", "beta", "--tgt", "alpha", *base]
    for words in (source, scored, written, adapted):
        code, _, err = run(monkeypatch, capsys, *words)
        assert code == 2
        assert err.splitlines()[-1].endswith("; --skip-damaged leaves such images out"), words
        assert run(monkeypatch, capsys, *words, "--skip-damaged")[0] == 0, words
    code, out, _ = run(monkeypatch, capsys, *scored, "--skip-damaged", "--json")
    assert json.loads(out)["test images left out, damaged"] == "alpha: 1 in query"
    code, out, _ = run(monkeypatch, capsys, *written, "--skip-damaged", "--overwrite")
    assert out.splitlines()[-1] == "images left out, damaged: 1 in train, 1 in query"


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


def test_run_of_others_shows_no_private_picture(
    base: list[str], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, out, _ = run(monkeypatch, capsys, "adapt", "--src", "alpha", "--tgt", "beta", *base)
    page = Path(out.split("report: ")[1].strip())
    Image.new("RGB", (64, 128), "red").save(tmp_path / "private.png")
    os.mkfifo(data / "beta" / "pipe.png")
    lists = json.loads((page.parent / "ranked.json").read_text())
    pictures = [hit["picture"] for query in lists["queries"] for hit in query["after"]]
    (page.parent / "ranked.json").write_text(json.dumps(lists))
    assert run(monkeypatch, capsys, "report", str(page.parent))[0] == 0
    assert "contains photographs of people" in page.read_text()
    whole = page.read_text().count("data:image")
    for picture, path in zip(pictures, (str(tmp_path / "private.png"), "../../private.png", "pipe.png"), strict=False):
        picture["path"] = path
    for query in lists["queries"]:
        query["before"], query["picture"]["path"] = [], "pipe.png"
        query["after"] = query["after"][:3]
    lists["queries"] = lists["queries"][:1]
    (page.parent / "ranked.json").write_text(json.dumps(lists))
    assert run(monkeypatch, capsys, "report", str(page.parent))[0] == 0
    text = page.read_text()
    assert whole > 0 and "data:image" not in text and "private.png" in text and "contains photographs" not in text
    # The command of the run knows where its target lies, and makes lists that name another folder again.
    lists["root"] = str(tmp_path)
    (page.parent / "ranked.json").write_text(json.dumps(lists))
    run(monkeypatch, capsys, "adapt", "--src", "alpha", "--tgt", "beta", *base)
    assert json.loads((page.parent / "ranked.json").read_text())["root"] == str(data / "beta")
    assert page.read_text().count("data:image") == whole and "private.png" not in page.read_text()


OWN = """
from dataclasses import dataclass
from pathlib import Path
from uda_reid.types import AdaptationResult
Path("imported").touch()
@dataclass(frozen=True)
class Still:
    def adapt(self, source, target, *, run=None):
        return AdaptationResult(source.encoder, (), {})
"""


def test_recipe_that_is_a_program_runs_with_leave_alone(
    base: list[str], data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(data)
    monkeypatch.syspath_prepend(data)
    (data / "own_reid.py").write_text(OWN)
    recipe = (data / "tiny.yaml").read_text().replace("pul", "own_reid:Still").split("adapt:")[0]
    (data / "own.yaml").write_text(recipe)
    words = ["--src", "alpha", *base, "--recipe", "own.yaml"]
    for command in (["adapt", "--tgt", "beta"], ["pretrain"]):
        code, _, err = run(monkeypatch, capsys, *command, *words)
        assert (
            code == 2
            and "own.yaml:1: strategy: strategy 'own_reid:Still' is code that no installed package offers" in err
        )
        assert "give --allow-code if you trust it" in err and not Path("imported").exists()
    code, out, err = run(monkeypatch, capsys, "adapt", "--tgt", "beta", *words, "--allow-code", "--json")
    assert code == 0 and Path("imported").exists(), err
    assert "--allow-code" in json.loads(out)["command"]
    (folder,) = (path.parent for path in Path(base[base.index("--out") + 1]).glob("*/record.json"))
    again = ["adapt", "--tgt", "beta", *words, "--recipe", str(folder / "recipe.yaml")]
    code, _, err = run(monkeypatch, capsys, *again)
    assert code == 2 and "recipe.yaml:2: strategy: strategy 'own_reid:Still' is code" in err
    code, out, err = run(monkeypatch, capsys, *again, "--allow-code")
    assert code == 0 and "finished before" in out, err
    for name in ("own_reid.py", "imported"):
        Path(name).unlink()
    code, out, err = run(monkeypatch, capsys, "report", str(folder))  # which runs nothing
    assert code == 0 and "report: " in out, err


def test_module_run_by_python_imports_nothing_from_the_working_folder(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("raise RuntimeError('the typer of somebody else')\n")
    (tmp_path / "evil.py").write_text("class Evil:\n    def adapt(self, source, target): pass\n")
    offered = tmp_path / "evil-1.0.dist-info"
    offered.mkdir()
    (offered / "METADATA").write_text("Metadata-Version: 2.1\nName: evil\nVersion: 1.0\n")
    (offered / "entry_points.txt").write_text("[uda_reid.strategies]\nevil = evil:Evil\n")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-m", "uda_reid", "list", "strategies"],
        cwd=tmp_path, env=environment, text=True, capture_output=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "guided_dropout" in done.stdout and "evil" not in done.stdout
