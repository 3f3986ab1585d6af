from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.pipeline.conftest import Stopper
from uda_reid.errors import CheckpointError, DataError
from uda_reid.evaluation import Evaluator, Features
from uda_reid.job import Job, open_domain
from uda_reid.ops.losses import identification
from uda_reid.pipeline import one, score_checkpoint
from uda_reid.report import BOUND, LABELLED, SOURCE_ONLY, read
from uda_reid.report.records import remarks
from uda_reid.training.encoders import load_facts
from uda_reid.types import Encoder, Scores


def test_run_leaves_its_record_recipe_log_and_model(job: Job) -> None:
    record, folder, finished = one(job)
    assert not finished
    assert {path.name for path in folder.iterdir()} == {
        ".lock", "record.json", "recipe.yaml", "log.txt", "adapted.safetensors", "ranked.json", "report.html"
    }  # fmt: skip
    assert [row.name for row in record.rows] == [SOURCE_ONLY, "tiny"]
    assert record.rows[0].facts["target images used"] == "none"
    assert record.rows[1].facts["number of clusters given"] == 5
    assert record.rows[1].facts["camera ids used"] is False
    assert [entry["step"] for entry in record.curve] == [1, 2]
    assert record.curve[-1]["mean_ap"] == record.adapted.scored.mean_ap
    assert {"nmi", "ari", "pair_f1"} <= record.curve[0].keys()
    assert len(record.history) == 2
    assert record.validation.keys() == {"mean_ap", "rank1"}
    assert record.environment["threads"]
    assert "round 2/2" in (folder / "log.txt").read_text()


def test_finished_run_is_found_and_equal(job: Job) -> None:
    record, folder, _ = one(job)
    before = (folder / "record.json").read_bytes()
    again, same_folder, finished = one(job)
    assert finished
    assert same_folder == folder
    assert (folder / "record.json").read_bytes() == before
    assert again.adapted.scored.mean_ap == record.adapted.scored.mean_ap
    assert np.array_equal(
        again.adapted.scored.average_precision, record.adapted.scored.average_precision, equal_nan=True
    )


def test_rerun_elsewhere_gives_the_same_weights(job: Job, tmp_path: Path) -> None:
    _, first, _ = one(job)
    _, second, _ = one(replace(job, out=tmp_path / "elsewhere"))
    assert first.name == second.name
    assert (first / "adapted.safetensors").read_bytes() == (second / "adapted.safetensors").read_bytes()


def test_another_seed_or_option_is_another_run(job: Job) -> None:
    _, first, _ = one(job)
    folders = {first}
    for other in (
        replace(job, seed=1),
        replace(job, settings=("adapt.lr=0.01",)),
        replace(job, target="alpha"),
    ):
        _, folder, finished = one(other)
        assert not finished
        folders.add(folder)
    assert len(folders) == 4
    assert len(list((job.out / "sources").iterdir())) == 2  # one per seed: options of adapt do not touch it


def test_run_from_two_sources_names_both_and_is_found_again(joint: Job) -> None:
    record, folder, _ = one(joint)
    assert folder.name.startswith("tiny-alpha+gamma-beta-s0-")
    assert record.source == "alpha+gamma"
    assert [row.facts[LABELLED] for row in record.rows] == ["alpha, gamma"] * 2
    assert record.rows[0].facts["pretraining"] == "identification+triplet, 2 epochs, 16 of 48 images held out"
    assert "alpha+gamma \u2192 beta" in (folder / "report.html").read_text(encoding="utf-8")
    (model,) = (joint.out / "sources").glob("*/source.safetensors")
    assert model.parent.name.startswith("alpha+gamma-s0-")
    assert load_facts(model)[LABELLED] == "alpha, gamma"
    assert remarks(record)[1:] == ()
    _, again, finished = one(joint)
    assert (again, finished) == (folder, True)


def test_snapshots_are_measured_by_proxies_where_that_is_asked_for(job: Job, data: Path) -> None:
    assert not any("density" in entry for entry in one(job)[0].curve)
    record, _, _ = one(replace(job, selection=True, seed=1))
    names = {"silhouette", "density", "agreement", "source mAP", "mean_ap", "nmi"}
    assert len(record.curve) == 2 and all(names <= entry.keys() for entry in record.curve)
    assert record.curve[-1]["source mAP"] != record.validation["mean_ap"]  # of the snapshot, and of the source model
    table = data / "beta" / "manifest.csv"
    table.write_text("\n".join(line for line in table.read_text().splitlines() if not line.endswith("query")))
    record, _, _ = one(replace(job, selection=True, seed=1))  # also where nothing can be scored
    assert all("density" in entry and "mean_ap" not in entry for entry in record.curve)


def test_record_names_whom_every_query_shows(job: Job) -> None:
    record, folder, _ = one(job)
    query = open_domain("beta", job.data).query
    assert record.identities == tuple(query.pids.tolist()) == read(folder / "record.json").identities
    assert len(record.identities) == len(record.adapted.scored.average_precision)


def test_page_follows_the_record_and_the_wish_for_pictures(job: Job) -> None:
    _, folder, _ = one(job)
    page = folder / "report.html"
    assert "supervised" not in page.read_text() and "data:image" in page.read_text()
    one(replace(job, pictures=False))
    assert "data:image" not in page.read_text()
    one(replace(job, bound=True))
    assert "supervised" in page.read_text()
    page.write_text("half a page")
    one(job)
    assert page.read_text().endswith("</html>")


def test_single_gallery_shot_goes_from_end_to_end(job: Job) -> None:
    record, folder, _ = one(replace(job, protocol="single-gallery-shot", bound=True))
    assert np.isnan(record.adapted.scored.mean_ap) and record.adapted.scored.cmc[1] > 0
    page = (folder / "report.html").read_text()
    assert "it is one of mAP, which this protocol lacks" in page
    assert "nan" not in (folder / "log.txt").read_text()


def test_labelled_training_images_are_audited_without_queries(job: Job, data: Path) -> None:
    lines = (data / "beta" / "manifest.csv").read_text().splitlines()
    (data / "beta" / "manifest.csv").write_text("\n".join([lines[0], *(row for row in lines if "train" in row)]))
    record, _, _ = one(job)
    assert record.adapted.scores is None
    assert [set(entry) >= {"step", "pair_precision", "nmi"} for entry in record.curve] == [True, True]


def test_saved_model_scores_as_the_record_says(job: Job) -> None:
    record, folder, _ = one(job)
    for checkpoint in (folder, folder / "adapted", folder / "adapted.safetensors"):
        scores = score_checkpoint(checkpoint, "beta", data=job.data)
        assert scores.scored.mean_ap == record.adapted.scored.mean_ap
        assert scores.facts["number of clusters given"] == 5


def test_corrupt_image_is_named_before_any_training(job: Job) -> None:
    broken = job.data / "beta" / "train_008.png"
    broken.write_bytes(broken.read_bytes()[:100])
    with pytest.raises(DataError, match=r"train_008.png: cannot be decoded .*1 of 24 images is unreadable"):
        one(job)
    assert not (job.out / "sources").exists()


def test_damaged_images_are_left_out_where_that_is_asked_for_and_counted_in_every_ledger(job: Job) -> None:
    for place in ("alpha/train_003.png", "beta/train_008.png", "beta/gallery_002.png"):
        (job.data / place).write_bytes(b"no image")
    job = replace(job, skip_damaged=True, bound=True, settings=("adapt.rounds=1",))
    record, folder, _ = one(job)
    entry = "images left out, damaged"
    both = "alpha: 1 in train; beta: 1 in train, 1 in gallery"
    beta = "beta: 1 in train, 1 in gallery"
    assert [row.facts[entry] for row in record.rows] == [both, both, beta]
    assert load_facts(folder / "adapted.safetensors")[entry] == both
    assert {load_facts(path)[entry] for path in job.out.glob("sources/*/source.safetensors")} == {
        "alpha: 1 in train",
        beta,
    }
    assert record.images == 23
    assert sum("cannot be read and are left out" in note for note in record.notes) == 3
    row = score_checkpoint(folder, "beta", data=job.data, skip_damaged=True)
    assert row.facts["test images left out, damaged"] == "beta: 1 in gallery"
    assert row.scored.mean_ap == record.adapted.scored.mean_ap


def test_changed_data_make_another_run(job: Job) -> None:
    _, first, _ = one(job)
    image = job.data / "beta" / "train_008.png"
    image.write_bytes((job.data / "beta" / "train_012.png").read_bytes() + b" ")
    _, second, finished = one(job)
    assert first != second
    assert not finished


def test_scene_of_the_same_name_gives_way_to_a_folder(job: Job) -> None:
    (job.data / "alpha").rename(job.data / "plaza")
    assert open_domain("plaza", job.data).root == job.data / "plaza"


@pytest.mark.slow  # about 4 minutes: draws two scenes, trains two source models, adapts once
def test_built_in_scenes_have_a_gap_and_pul_closes_a_part_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UDA_REID_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    record, _, _ = one(Job(recipe="pul", source="plaza", target="campus", bound=True))
    start, bound = record.row(SOURCE_ONLY), record.row(BOUND)
    assert start is not None and bound is not None
    assert record.profile == "scenes"
    assert start.scored.mean_ap < 0.7 * bound.scored.mean_ap
    assert record.adapted.scored.mean_ap > start.scored.mean_ap + 0.02


@pytest.mark.parametrize("line", ["pretrained on alpha+gamma", "PUL: round 1"])
def test_interrupted_run_from_two_sources_goes_on_to_the_same_weights(joint: Job, tmp_path: Path, line: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        one(joint, reporter=Stopper(line))
    record, folder, finished = one(joint)
    assert not finished
    whole, other, _ = one(replace(joint, out=tmp_path / "whole"))
    assert (folder / "adapted.safetensors").read_bytes() == (other / "adapted.safetensors").read_bytes()
    assert (record.history, record.curve, record.validation) == (whole.history, whole.curve, whole.validation)


@pytest.mark.parametrize("line", ["pretrained on alpha", "PUL: round 1", "PUL: round 2", "scored afterwards"])
def test_interrupted_run_goes_on_to_the_same_weights(job: Job, tmp_path: Path, line: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        one(job, reporter=Stopper(line))
    record, folder, finished = one(job)
    assert not finished
    whole, other, _ = one(replace(job, out=tmp_path / "whole"))
    assert (folder / "adapted.safetensors").read_bytes() == (other / "adapted.safetensors").read_bytes()
    assert record.history == whole.history
    assert record.curve == whole.curve


@pytest.mark.parametrize("line", ["PUL: round 2", "scored afterwards"])
def test_run_whose_newest_states_are_damaged_goes_on_from_the_ones_before(job: Job, tmp_path: Path, line: str) -> None:
    whole = one(job)[1]
    other = replace(job, out=tmp_path / "other")
    with pytest.raises(KeyboardInterrupt):
        one(other, reporter=Stopper(line))
    damaged = 0
    for path in other.out.glob("*/state/*.safetensors"):
        if path.with_name(f"{path.name}.previous").exists():
            content = path.read_bytes()
            path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
            damaged += 1
    told = Stopper()
    folder = one(other, reporter=told)[1]
    assert damaged == sum("warning" in text and "is damaged" in text for text in told.lines) > 0
    assert (folder / "adapted.safetensors").read_bytes() == (whole / "adapted.safetensors").read_bytes()
    assert not list(other.out.rglob("*.previous"))


@pytest.mark.parametrize("write", [1, 3, 5, 8])
def test_run_on_a_full_disk_loses_nothing_and_goes_on_once_there_is_room(
    job: Job, tmp_path: Path, write: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, other, _ = one(replace(job, out=tmp_path / "whole"))
    flush, left = os.fsync, write

    def full(descriptor: int) -> None:
        nonlocal left
        left -= 1
        if left <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr("uda_reid.writing.os.fsync", full)
        with pytest.raises(CheckpointError, match=r"^.* cannot be written \(No space left on device\); make room .*$"):
            one(job)
    assert list(job.out.rglob("*.tmp")) == []
    record, folder, _ = one(job)
    assert (folder / "adapted.safetensors").read_bytes() == (other / "adapted.safetensors").read_bytes()
    assert (record.history, record.curve) == (whole.history, whole.curve)


def test_interrupted_audit_scores_nothing_twice(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _, _ = one(replace(job, out=job.out / "whole"))
    scored: list[str] = []
    score = Evaluator.score

    def counted(self: Evaluator, encoder: Encoder | Features) -> Scores:
        scored.append(type(encoder).__name__)
        return score(self, encoder)

    monkeypatch.setattr(Evaluator, "score", counted)
    with pytest.raises(KeyboardInterrupt):
        one(job, reporter=Stopper("after step 2 (scored afterwards)"))
    # Before and after from their features, the first snapshot; the last is the adapted model itself.
    assert scored == ["Features", "Features", "Embedder"]
    scored.clear()
    record, _, _ = one(job)
    assert scored == ["Features", "Features"]
    assert record.curve == whole.curve


@pytest.mark.slow  # about a minute: starts the program eight times and kills it seven times
def test_run_killed_between_any_two_saves_ends_with_the_same_weights(job: Job, tmp_path: Path) -> None:
    settings = ("adapt.rounds=4", "adapt.epochs=3", "pretrain.epochs=8")
    _, expected, _ = one(replace(job, threads=1, settings=settings))
    out = tmp_path / "killed"
    command = [
        sys.executable, "-m", "uda_reid", "adapt", "--recipe", job.recipe, "--src", "alpha", "--tgt", "beta",
        "--data", str(job.data), "--out", str(out), "--profile", "paper", "--threads", "1", "--json",
        *(word for setting in settings for word in ("--set", setting)),
    ]  # fmt: skip
    run = out / expected.name
    awaited = [
        *[next(iter((job.out / "sources").iterdir())).name + "/pretrain.safetensors"] * 2,
        *["state/pul+round.safetensors", "state/pul.safetensors"] * 2,
        "adapted.safetensors",
    ]
    for name in awaited:
        path = out / "sources" / name if "pretrain" in name else run / name
        before = path.stat().st_mtime_ns if path.is_file() else 0
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        while process.poll() is None and not (path.is_file() and path.stat().st_mtime_ns > before):
            time.sleep(0.001)
        assert process.poll() is None or name == "adapted.safetensors", process.communicate()[1].decode()
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    finished = subprocess.run(command, capture_output=True, check=True)
    assert (run / "adapted.safetensors").read_bytes() == (expected / "adapted.safetensors").read_bytes()
    record, whole = json.loads(finished.stdout), json.loads((expected / "record.json").read_text())
    assert record["history"] == whole["history"]
    assert record["curve"] == whole["curve"]
    assert not (run / "state").exists()


@pytest.mark.parametrize("interrupted", [False, True])
def test_the_ledger_tells_of_halved_rates_also_behind_an_interruption(
    job: Job, interrupted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = 0

    def once_infinite(*args: Any, **kwargs: Any) -> torch.Tensor:
        nonlocal made
        made += 1
        loss = identification(*args, **kwargs)
        return loss * torch.inf if made == 2 else loss

    monkeypatch.setattr("uda_reid.strategies.pul.identification", once_infinite)
    job = replace(job, rollbacks=1)
    if interrupted:  # when no step is left to make
        with pytest.raises(KeyboardInterrupt):
            one(job, reporter=Stopper("after step 2 (scored afterwards)"))
    record, folder, _ = one(job)
    told = {"learning rate halved": "1 x, after a loss that was not finite"}
    assert record.rows[0].facts.items() & told.items() == set()
    for facts in (record.rows[1].facts, load_facts(folder / "adapted.safetensors")):
        assert facts.items() >= told.items()


def test_ledger_says_where_the_number_of_cameras_bounds_the_clusters(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    key = "number of target cameras used"
    assert all(key not in row.facts for row in one(job)[0].rows)
    monkeypatch.setattr("uda_reid.pipeline.runs.bounded_by_cameras", lambda recipe: recipe.name == "tiny")
    rows = one(replace(job, seed=9))[0].rows
    assert [row.facts.get(key) for row in rows] == [None, "to bound the clusters"]
