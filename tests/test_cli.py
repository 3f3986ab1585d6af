from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from uda_reid import __version__, cli


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


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--src", "alpha", "--tgt", "nowhere"], "nowhere"),
        (["--src", "market", "--tgt", "beta"], "bounding_box_train"),
        (["--src", "alpha", "--tgt", "empty"], "empty"),
        (["--src", "alpha", "--tgt", "beta", "--recipe", "pull"], "did you mean 'pul'"),
        (
            ["--src", "alpha", "--tgt", "beta", "--recipe", "typo.yaml"],
            "typo.yaml:2: adapt.cluster: unknown option",
        ),
        (["--src", "alpha", "--tgt", "beta", "--recipe", "who.yaml"], "strateg"),
        (["--src", "alpha", "--tgt", "beta", "--set", "adapt.lr=high"], "adapt.lr"),
        (["--src", "alpha", "--tgt", "beta", "--device", "cuda:9"], "device 'cuda:9' is not there"),
        (["--src", "alpha", "--tgt", "beta", "--device", "warp"], "device 'warp' is unknown"),
        (["--src", "alpha", "--tgt", "beta", "--protocol", "markt"], "protocol 'markt' is unknown"),
        (["--src", "alpha", "--tgt", "beta", "--set", "adapt.clusters=500"], "500"),
        (["--src", "alpha", "--tgt", "corrupt"], "cannot be decoded"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    words: list[str],
    message: str,
    base: list[str],
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (data / "empty").mkdir()
    (data / "corrupt").mkdir()
    for path in (data / "beta").iterdir():
        (data / "corrupt" / path.name).write_bytes(path.read_bytes())
    (data / "corrupt" / "gallery_005.png").write_bytes(b"\x89PNG nothing")
    monkeypatch.chdir(data)
    Path("typo.yaml").write_text("strategy: pul\nadapt: {cluster: 5}\npaper: x\nfidelity: text\n")
    Path("who.yaml").write_text("strategy: nobody\npaper: x\nfidelity: text\n")
    code, out, err = run(monkeypatch, capsys, "adapt", *base, *words)
    assert code == 2, (out, err)
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last
    assert "Traceback" not in err


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


def test_interrupt_is_one_line_and_exit_code_1(
    base: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("uda_reid.pipeline.pretrain", interrupted)
    code, _, err = run(monkeypatch, capsys, "adapt", "--src", "alpha", "--tgt", "beta", *base)
    assert code == 1
    assert "error: interrupted; the same command goes on" in err


def test_full_disk_is_one_line(
    base: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "log.txt")

    monkeypatch.setattr("uda_reid.pipeline.pretrain", full)
    code, _, err = run(monkeypatch, capsys, "adapt", "--src", "alpha", "--tgt", "beta", *base)
    assert code == 2
    assert "error: log.txt: No space left on device" in err


def test_version_and_help(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, capsys, "--version")[:2] == (0, f"{__version__}\n")
    for words in (
        ["--help"],
        ["adapt", "--help"],
        ["pretrain", "-h"],
        ["evaluate", "-h"],
        ["data", "draw", "-h"],
    ):
        code, out, _ = run(monkeypatch, capsys, *words)
        assert code == 0
        assert "Usage" in out
    assert run(monkeypatch, capsys, "adapt", "--src", "plaza")[0] == 2
