from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from uda_reid.errors import DataError
from uda_reid.job import Job, open_domain
from uda_reid.pipeline import one, score_checkpoint
from uda_reid.report import BOUND, LABELLED, SOURCE_ONLY, read
from uda_reid.report.records import remarks
from uda_reid.training.checkpoint import load_facts


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
