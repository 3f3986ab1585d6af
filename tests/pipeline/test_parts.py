from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from uda_reid.evaluation import Evaluator
from uda_reid.gap import MEASURES
from uda_reid.job import Job, open_domain
from uda_reid.pipeline import one, source_model
from uda_reid.report import BOUND, EMBEDDING_MAP, LABELLED, SOURCE_ONLY, collect_map, gap_closed, read, read_map
from uda_reid.report.records import remarks
from uda_reid.run import QUIET
from uda_reid.training.encoders import load_encoder


def test_bound_beside_two_sources_is_trained_on_the_target_alone(joint: Job) -> None:
    record, _, _ = one(replace(joint, source="beta,alpha", bound=True))
    bound = record.row(BOUND)
    assert bound is not None
    assert bound.facts[LABELLED] == "beta"
    assert bound.facts["target images used"] == "16 of 24, with their labels"
    names = sorted(path.name.partition("-s0-")[0] for path in (joint.out / "sources").iterdir())
    assert names == ["beta", "beta+alpha"]
    assert remarks(record)[0].startswith("the target is one of the sources (beta): ")


def test_bound_is_added_to_a_finished_run(job: Job) -> None:
    _, folder, _ = one(job)
    record, _, finished = one(replace(job, bound=True))
    assert finished
    bound = record.row(BOUND)
    assert bound is not None
    assert bound.facts["target images used"] == "16 of 24, with their labels"
    assert bound.facts["target images in batch norm"] is True
    assert [row.name for row in read(folder / "record.json").rows] == [SOURCE_ONLY, "tiny", BOUND]
    share = gap_closed(record)
    assert share is None or np.isfinite(share)


def test_both_models_are_scored_on_the_source_where_that_is_asked_for(job: Job) -> None:
    record, folder, _ = one(job)
    assert not record.on_source
    record, _, finished = one(replace(job, forgetting=True))
    assert finished and len(record.on_source) == 2
    source = open_domain("alpha", job.data)
    models = source_model(job)[0], folder / "adapted.safetensors"
    for found, model in zip(record.on_source, models, strict=True):
        expected = Evaluator(source, "market").score(load_encoder(model))
        assert found.mean_ap == expected.mean_ap and found.domain == "alpha"
    again = read(folder / "record.json").on_source
    assert [scores.cmc for scores in again] == [scores.cmc for scores in record.on_source]
    assert record.on_source[0].mean_ap != record.on_source[1].mean_ap
    assert "on the test images of its own source (alpha)" in (folder / "report.html").read_text()


def test_embedding_map_is_added_to_a_finished_run_once(job: Job, data: Path) -> None:
    _, folder, _ = one(job)
    assert not (folder / EMBEDDING_MAP).is_file()
    one(replace(job, embedding_map=True))
    shown = read_map(folder / EMBEDDING_MAP)
    assert (shown.source, shown.target) == ("alpha", "beta") and shown.before and shown.after
    assert "of the 10 nearest images" in (folder / "report.html").read_text().lower()
    source = load_encoder(source_model(job)[0])
    alpha, beta = open_domain("alpha", data), open_domain("beta", data)
    assert shown == collect_map(source, load_encoder(folder / "adapted.safetensors"), alpha, beta, run=QUIET)
    written = (folder / EMBEDDING_MAP).stat().st_mtime_ns
    one(replace(job, embedding_map=True))
    assert (folder / EMBEDDING_MAP).stat().st_mtime_ns == written
    (data / "still.yaml").write_text((data / "tiny.yaml").read_text().replace("pul", "source_only").split("adapt:")[0])
    _, direct, _ = one(replace(job, recipe=str(data / "still.yaml"), embedding_map=True))
    assert read_map(direct / EMBEDDING_MAP).after is None


def test_what_a_disk_has_damaged_is_made_again_and_equal(job: Job) -> None:
    wanted = replace(job, embedding_map=True)
    record, folder, _ = one(wanted)
    names = ("ranked.json", "embedding_map.json", "record.json")
    before = {name: (folder / name).read_bytes() for name in names}
    for name in names[:2]:
        (folder / name).write_bytes(before[name][:50])
    assert one(wanted)[2]
    assert {name: (folder / name).read_bytes() for name in names} == before
    (folder / "ranked.json").unlink()
    one(wanted)
    assert (folder / "ranked.json").read_bytes() == before["ranked.json"]
    (folder / "record.json").write_bytes(before["record.json"][:50])
    again, _, found = one(wanted)
    assert not found and again.history == record.history
    assert "is no record, or is damaged" in (folder / "log.txt").read_text()


def test_damaged_attention_is_made_again(job: Job, data: Path) -> None:
    (data / "parted.yaml").write_text(
        (data / "tiny.yaml").read_text().replace("strategy: pul", "strategy: daam").split("adapt:")[0]
        + "adapt: {epochs: 1, batch: 8, instances: 2, iterations: 2}\n"
    )
    _, folder, _ = one(replace(job, recipe=str(data / "parted.yaml")))
    before = (folder / "attention.json").read_bytes()
    (folder / "attention.json").write_bytes(before[:50])
    one(replace(job, recipe=str(data / "parted.yaml")))
    assert (folder / "attention.json").read_bytes() == before


def test_gap_is_measured_once_for_all_recipes_with_one_source_model(job: Job, data: Path) -> None:
    record, folder, _ = one(replace(job, gap=True))
    assert set(MEASURES) <= record.gap.keys() and read(folder / "record.json").gap == record.gap
    (kept,) = source_model(job)[0].parent.glob("gap-beta-*")
    written = kept.stat().st_mtime_ns
    (data / "other.yaml").write_text((data / "tiny.yaml").read_text().replace("rounds: 2", "rounds: 1"))
    other, _, _ = one(replace(job, recipe=str(data / "other.yaml"), gap=True))
    assert other.gap == record.gap and kept.stat().st_mtime_ns == written
    assert one(replace(job, seed=1))[0].gap == {}
    assert one(replace(job, seed=1, gap=True))[0].gap  # added to a finished run


def test_bound_that_was_recorded_before_a_crash_is_on_the_page(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    _, folder, _ = one(job)

    def crash(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("uda_reid.pipeline.runs.rebuild", crash)
        with pytest.raises(KeyboardInterrupt):
            one(replace(job, bound=True))
    one(replace(job, bound=True))
    assert "supervised" in (folder / "report.html").read_text()
