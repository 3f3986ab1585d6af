from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.manifold import trustworthiness

from tests.report.examples import RECORD
from tests.report.test_page import Page
from uda_reid.data.images import images_of
from uda_reid.errors import CheckpointError
from uda_reid.report import EmbeddingMap, Shown, collect_map, read_map, rebuild, write, write_map
from uda_reid.report.embedding_map import NEIGHBOURS, View, clouds, told
from uda_reid.report.page import render
from uda_reid.run import QUIET
from uda_reid.testing import tiny_domain, tiny_source
from uda_reid.training.features import extract
from uda_reid.types import Domain, Encoder


@pytest.fixture(scope="module")
def domains(tmp_path_factory: pytest.TempPathFactory) -> tuple[Domain, Domain]:
    folder = tmp_path_factory.mktemp("tiny")
    return tiny_domain(folder / "a", name="a", identities=7), tiny_domain(folder / "b", name="b", identities=9, seed=1)


@pytest.fixture(scope="module")
def encoders(domains: tuple[Domain, Domain]) -> tuple[Encoder, Encoder]:
    return tuple(tiny_source(domains[0], epochs=epochs).encoder for epochs in (0, 1))  # type: ignore[return-value]


@pytest.fixture(scope="module")
def shown(domains: tuple[Domain, Domain], encoders: tuple[Encoder, Encoder]) -> EmbeddingMap:
    return collect_map(*encoders, *domains, run=QUIET)


def test_shares_are_those_of_the_nearest_images(
    shown: EmbeddingMap, domains: tuple[Domain, Domain], encoders: tuple[Encoder, Encoder]
) -> None:
    galleries = [domain.gallery for domain in domains]
    counts = [len(gallery) for gallery in galleries]
    assert shown.splits == ("gallery", "gallery") and (shown.source, shown.target) == ("a", "b")
    assert shown.of_target == (False,) * counts[0] + (True,) * counts[1]
    cams = [cam for gallery in galleries if gallery.cams is not None for cam in gallery.cams.tolist()]
    assert list(shown.cams) == cams
    for view, encoder in zip((shown.before, shown.after), encoders, strict=True):
        features = torch.cat([extract(encoder, images_of(gallery), run=QUIET) for gallery in galleries]).double()
        other, same = [], []
        for row, feature in enumerate(features):
            angles = torch.nn.functional.cosine_similarity(feature[None], features)
            order = [near for near in angles.argsort(descending=True).tolist() if near != row][:NEIGHBOURS]
            for near in order:
                other.append(shown.of_target[near] != shown.of_target[row])
                if not other[-1]:
                    same.append(cams[near] == cams[row])
        assert view is not None
        assert view.mixed == pytest.approx(np.mean(other), abs=2 / len(other))  # two may be equally far
        assert view.same_camera == pytest.approx(np.mean(same), abs=2 / len(same))


def test_map_keeps_neighbours_and_fills_the_square(
    shown: EmbeddingMap, domains: tuple[Domain, Domain], encoders: tuple[Encoder, Encoder]
) -> None:
    assert shown.before is not None
    positions = np.array(shown.before.positions)
    assert positions.min() >= 0 and positions.max() <= 1
    spans = np.ptp(positions, axis=0)
    assert spans.max() == pytest.approx(1, abs=2e-3)
    np.testing.assert_allclose(positions.min(0) + positions.max(0), 1, atol=2e-3)  # in the middle
    features = torch.cat([extract(encoders[0], images_of(domain.gallery), run=QUIET) for domain in domains])
    unit = torch.nn.functional.normalize(features).numpy()
    assert trustworthiness(unit, positions, n_neighbors=5) > 0.8
    shuffled = np.random.default_rng(0).permutation(positions)
    assert trustworthiness(unit, shuffled, n_neighbors=5) < 0.7
    assert collect_map(encoders[0], None, *domains, run=QUIET) == replace(shown, after=None)  # and it repeats


def test_chance_is_the_share_after_a_shuffle(shown: EmbeddingMap) -> None:
    uneven = replace(shown, of_target=(False, False, False, True))
    pairs = [(a, b) for a in range(4) for b in range(4) if a != b]
    assert uneven.chance == pytest.approx(np.mean([uneven.of_target[a] != uneven.of_target[b] for a, b in pairs]))


def test_without_a_gallery_training_images_are_shown_and_junk_is_not(
    domains: tuple[Domain, Domain], encoders: tuple[Encoder, Encoder]
) -> None:
    source, target = domains
    nobody = replace(target, gallery=replace(target.gallery, paths=(), pids=np.zeros(0, dtype=np.int64), cams=None))
    pids = source.gallery.pids.copy()
    pids[:3] = -1
    found = collect_map(
        encoders[0], None, replace(source, gallery=replace(source.gallery, pids=pids)), nobody, run=QUIET
    )
    assert found.splits == ("gallery", "train")
    assert found.of_target.count(False) == len(pids) - 3 and found.of_target.count(True) == len(target.train)


def test_unknown_cameras_and_few_images_are_no_error(
    domains: tuple[Domain, Domain], encoders: tuple[Encoder, Encoder]
) -> None:
    blind = replace(domains[1], gallery=replace(domains[1].gallery, cams=None))
    found = collect_map(encoders[0], None, domains[0], blind, run=QUIET)
    assert found.cams[-1] is None and found.before is not None
    assert [each.name for each in clouds(found)] == ["before, by domain"]
    both = collect_map(
        encoders[0], None, replace(domains[0], gallery=replace(domains[0].gallery, cams=None)), blind, run=QUIET
    )
    assert both.before is not None and math.isnan(both.before.same_camera) and "camera" not in told(both)
    few = replace(
        domains[1],
        gallery=replace(domains[1].gallery, paths=domains[1].gallery.paths[:3], pids=np.array([1, 1, 2]), cams=None),
    )
    none = collect_map(encoders[0], None, domains[0], few, run=QUIET)
    assert none.before is None and clouds(none) == () and told(none).startswith("Nothing is drawn")


def test_collapsed_embeddings_have_a_map_without_a_warning(
    domains: tuple[Domain, Domain], encoders: tuple[Encoder, Encoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    def collapsed(_: object, images: object, *, rows: torch.Tensor, **__: object) -> torch.Tensor:
        return torch.ones(len(rows), 4)

    monkeypatch.setattr("uda_reid.report.embedding_map.extract", collapsed)
    found = collect_map(encoders[0], None, *domains, run=QUIET)
    assert found.before is not None and np.isfinite(found.before.positions).all()


def test_map_is_written_and_read(shown: EmbeddingMap, tmp_path: Path) -> None:
    path = tmp_path / "embedding_map.json"
    write_map(shown, path)
    assert read_map(path) == shown
    assert shown.before is not None
    write_map(replace(shown, before=replace(shown.before, same_camera=math.nan), after=None), path)
    again = read_map(path)
    assert again.after is None and again.before is not None and math.isnan(again.before.same_camera)


@pytest.mark.parametrize("damage", ["{", "[]", '{"format": 9}', '{"format": 1, "of_target": []}'])
def test_damaged_file_is_one_line(damage: str, tmp_path: Path) -> None:
    (tmp_path / "embedding_map.json").write_text(damage)
    with pytest.raises(CheckpointError, match=r"embedding_map\.json: holds no embedding map, or is damaged"):
        read_map(tmp_path / "embedding_map.json")


@pytest.mark.parametrize("cams", [[1], ["1", 2, 1, 2], [1.5, 2, 1, 2], [True, 2, 1, 2]])
def test_cameras_that_are_not_one_number_for_every_image_are_refused(cams: list[object], tmp_path: Path) -> None:
    path = tmp_path / "embedding_map.json"
    write_map(small(), path)
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, "cams": cams}))
    with pytest.raises(CheckpointError, match="cameras that are not one for every image"):
        read_map(path)


def test_source_called_like_a_camera_is_not_taken_for_one() -> None:
    around, first, _ = clouds(replace(small(), source="camera 1"))[2].groups
    assert (around.name, around.hue, first.name) == ("camera 1 (source)", None, "camera 1")


def test_embeddings_that_are_no_numbers_have_no_map(
    domains: tuple[Domain, Domain], encoders: tuple[Encoder, Encoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: object, images: object, *, rows: torch.Tensor, **__: object) -> torch.Tensor:
        return torch.full((len(rows), 4), torch.nan)

    monkeypatch.setattr("uda_reid.report.embedding_map.extract", broken)
    found = collect_map(encoders[0], None, *domains, run=QUIET)
    assert found.before is None and "not finite" in told(found)


def test_large_domains_are_shown_at_even_steps(
    domains: tuple[Domain, Domain], encoders: tuple[Encoder, Encoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[int]] = []

    def noted(_: object, images: object, *, rows: torch.Tensor, **__: object) -> torch.Tensor:
        seen.append(rows.tolist())
        return torch.randn(len(rows), 4, generator=torch.Generator().manual_seed(len(rows)))

    monkeypatch.setattr("uda_reid.report.embedding_map.extract", noted)
    gallery = domains[0].gallery
    many = replace(
        gallery, paths=gallery.paths[:1] * 1000, pids=np.ones(1000, dtype=np.int64), cams=np.ones(1000, dtype=np.int64)
    )
    found = collect_map(encoders[0], None, replace(domains[0], gallery=many), domains[1], run=QUIET)
    assert found.of_target.count(False) == len(seen[0]) == 240
    assert seen[0][:3] == [2, 6, 10] and seen[0][-1] == 997


@pytest.mark.parametrize("positions", [[], [[0.5, 0.5]], [[0.1, 0.2, 0.3]], "near"])
def test_positions_of_another_shape_are_refused(positions: object, shown: EmbeddingMap, tmp_path: Path) -> None:
    path = tmp_path / "embedding_map.json"
    write_map(shown, path)
    data = json.loads(path.read_text())
    data["before"]["positions"] = positions
    path.write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match="holds no embedding map"):
        read_map(path)


def small() -> EmbeddingMap:
    before = View(((0.0, 0.0), (0.5, 0.5), (1.0, 1.0), (1.0, 0.0)), 0.25, 0.5)
    return EmbeddingMap(
        "alpha", "beta", ("gallery", "gallery"), (False, False, True, True), (1, 2, 1, 2), before,
        replace(before, mixed=0.5, same_camera=0.75),
    )  # fmt: skip


def test_clouds_put_every_image_in_its_domain_and_camera() -> None:
    found = clouds(small())
    assert [each.name for each in found] == [
        "before, by domain", "after, by domain", "before, cameras of beta", "after, cameras of beta",
    ]  # fmt: skip
    one, two = found[0].groups
    assert (one.name, two.name) == ("alpha (source)", "beta (target)")
    assert one.path == "M8.0,292.0h0M150.0,150.0h0"
    assert two.path.startswith("M292.0,8.0m-3,-3l6,6") and one.hue != two.hue  # a cross: not by colour alone
    around, first, second = found[2].groups
    assert (around.name, around.hue, first.name, second.name) == ("alpha (source)", None, "camera 1", "camera 2")
    assert first.path == "M292.0,8.0h0" and second.path.startswith("M292.0,292.0m-3")


def test_sentence_has_both_shares() -> None:
    assert told(small()) == (
        "Of the 10 nearest images of an image 25% → 50% are of the other domain (by chance 67%); "
        "of the others, 50% → 75% are of its own camera."
    )


def test_page_has_the_maps(tmp_path: Path) -> None:
    text = render(RECORD, Shown(embeddings=small()))
    page = Page(text)
    assert "embeddings" in [section.get("id") for section in page.all("section")]
    assert {"href": "#embeddings"} in page.all("a") and "25% → 50%" in page.text
    drawn = [svg["aria-label"] for svg in page.all("svg") if "a map of" in (svg.get("aria-label") or "")]
    assert len(drawn) == 4 and drawn[2] == "before, cameras of beta: a map of alpha (source), camera 1, camera 2"
    assert not re.search(r"https?:|url\(", text)
    assert 'id="embeddings"' not in render(RECORD)
    write(RECORD, tmp_path / "record.json")
    write_map(small(), tmp_path / "embedding_map.json")
    assert rebuild(tmp_path).read_text(encoding="utf-8") == text
