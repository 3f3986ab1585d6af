from __future__ import annotations

import base64
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tests.report.examples import RECORD, call_drawn
from tests.report.test_page import Page
from uda_reid.data.images import augment, images_of
from uda_reid.errors import CheckpointError
from uda_reid.models.branches import with_attention
from uda_reid.models.encoder import Embedder
from uda_reid.report import AttentionMaps, Shown, collect_maps, read_maps, rebuild, write, write_maps
from uda_reid.report.attention import evenness
from uda_reid.report.page import render
from uda_reid.report.pictures import heat
from uda_reid.run import QUIET
from uda_reid.testing import HEIGHT, WIDTH, tiny_domain, tiny_source
from uda_reid.types import Domain


@pytest.fixture(scope="module")
def domain(tmp_path_factory: pytest.TempPathFactory) -> Domain:
    return tiny_domain(tmp_path_factory.mktemp("tiny"), identities=7)


@pytest.fixture(scope="module")
def encoder(domain: Domain) -> Embedder:
    parted = with_attention(tiny_source(domain, epochs=0).encoder, "both")
    assert parted.attention is not None
    numbers = torch.Generator().manual_seed(0)
    for weight in parted.attention.parameters():
        nn.init.normal_(weight, std=0.3, generator=numbers)
    return parted


@pytest.fixture(scope="module")
def maps(domain: Domain, encoder: Embedder) -> AttentionMaps:
    found = collect_maps(encoder, domain, run=QUIET)
    assert found is not None
    return found


def test_maps_are_those_of_the_attention_at_even_steps(maps: AttentionMaps, domain: Domain, encoder: Embedder) -> None:
    rows = [1, 4, 7, 9, 12, 15, 18, 21, 23, 26]  # of 28
    assert [part.picture.path for part in maps.images] == [f"train_{row:03d}.png" for row in rows]
    assert maps.root == str(domain.root)
    pictures = images_of(domain.train).read(torch.tensor(rows), HEIGHT, WIDTH)
    assert encoder.attention is not None
    with torch.inference_mode():
        entering = encoder.eval().early(augment(pictures, "none"))
        weights = encoder.attention.weights(entering)
    whole, kept = entering.abs().mean(1).numpy(), (weights * entering).abs().mean(1).numpy()
    for part, everything, mine in zip(maps.images, whole, kept, strict=True):
        scale = max(mine.max(), (everything - mine).max())
        np.testing.assert_allclose(np.array(part.shared), mine / scale, atol=6e-4)
        np.testing.assert_allclose(np.array(part.specific), (everything - mine) / scale, atol=6e-4)
        assert max(np.max(part.shared), np.max(part.specific)) == 1
        assert part.share == pytest.approx(mine.sum() / everything.sum(), abs=6e-4)
        assert part.picture.cam in (1, 2)


def test_encoder_without_attention_has_none(domain: Domain) -> None:
    assert collect_maps(tiny_source(domain, epochs=0).encoder, domain, run=QUIET) is None


def test_few_images_are_all_shown(domain: Domain, encoder: Embedder) -> None:
    train = domain.train
    few = replace(train, paths=train.paths[:3], pids=train.pids[:3], cams=None)
    found = collect_maps(encoder, replace(domain, train=few), run=QUIET)
    assert found is not None
    assert [(part.picture.path, part.picture.cam) for part in found.images] == [
        ("train_000.png", None), ("train_001.png", None), ("train_002.png", None)
    ]  # fmt: skip


def test_maps_are_written_and_read(maps: AttentionMaps, tmp_path: Path) -> None:
    write_maps(maps, tmp_path / "attention.json")
    assert read_maps(tmp_path / "attention.json") == maps


@pytest.mark.parametrize("damage", ["{", "[]", '{"format": 9}', '{"format": 1, "root": "a", "images": [{}]}'])
def test_damaged_file_is_one_line(damage: str, tmp_path: Path) -> None:
    (tmp_path / "attention.json").write_text(damage)
    with pytest.raises(CheckpointError, match=r"attention\.json: holds no attention maps, or is damaged"):
        read_maps(tmp_path / "attention.json")


@pytest.mark.parametrize("shared", [[[1.0]], [[1.0, None]], [1.0, 1.0]])
def test_maps_of_another_shape_are_refused(shared: object, maps: AttentionMaps, tmp_path: Path) -> None:
    write_maps(maps, tmp_path / "attention.json")
    data = json.loads((tmp_path / "attention.json").read_text())
    data["images"][0]["shared"] = shared
    (tmp_path / "attention.json").write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match="holds no attention maps"):
        read_maps(tmp_path / "attention.json")


def test_page_shows_picture_shared_and_specific_side_by_side(maps: AttentionMaps, tmp_path: Path) -> None:
    text = render(RECORD, Shown(attention=maps))
    page = Page(text)
    assert "attention" in [section.get("id") for section in page.all("section")]
    assert {"href": "#attention"} in page.all("a")
    names = [image["alt"] for image in page.all("img")]
    assert names[:2] == ["shared map of image 1", "specific map of image 1"] and len(names) == 20
    assert len(page.all("use")) == 10 and "image 1, camera 2" in [svg.get("aria-label") for svg in page.all("svg")]
    assert page.text.count("% shared") == 10
    bare = Page(render(RECORD, Shown(attention=maps), pictures=False))
    assert len(bare.all("img")) == 20 and not bare.all("use")
    assert "contains photographs of people" in text
    assert "contains photographs" not in render(RECORD, Shown(attention=maps), pictures=False)
    call_drawn(Path(maps.root), [picture.path for picture in maps.pictures])
    assert "contains photographs" not in render(RECORD, Shown(attention=maps))
    (Path(maps.root) / "scene.json").unlink()
    (Path(maps.root) / "annotations.csv").unlink()
    assert 'id="attention"' not in render(RECORD)
    write(RECORD, tmp_path / "record.json")
    write_maps(maps, tmp_path / "attention.json")
    assert rebuild(tmp_path).read_text(encoding="utf-8") == text


def test_evenness_says_whether_the_attention_tells_places_apart(maps: AttentionMaps) -> None:
    def of(*places: tuple[float, float]) -> str:
        shared, specific = zip(*places, strict=True)
        part = replace(maps.images[0], shared=(shared,), specific=(specific,))
        return evenness(replace(maps, images=(part,)))

    hardly = "the attention hardly tells places apart, and both maps show where features are strong."
    assert of((0.5, 0.5), (0.09, 0.11)) == f"At every place between 45% and 50% is taken for shared: {hardly}"
    assert of((1.0, 0.0), (0.3, 0.7)) == "At every place between 30% and 100% is taken for shared."
    assert of((0.5, 0.5), (0.04, 0.0)).startswith("At every place between 50% and 50%")  # there was next to nothing
    assert of((0.0, 0.0)) == ""


def test_heat_goes_from_black_to_white() -> None:
    values = [[0.0, 0.0], [1.0, 1.0]]
    data = base64.b64decode(heat(values).removeprefix("data:image/jpeg;base64,"))
    pixels = np.asarray(Image.open(io.BytesIO(data))).astype(int)
    assert pixels.shape == (128, 64, 3)
    assert pixels[0].max() < 12 and pixels[-1].min() > 243
    assert pixels[48, 32, 0] > pixels[48, 32, 1] + 50  # red before yellow
