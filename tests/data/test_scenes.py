from __future__ import annotations

import json
import os
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from pydantic import ValidationError

from tests.data.drawings import MARKET, SMALL, contents, pixels, rows_of
from uda_reid.data import scenes
from uda_reid.data.scenes import SCENES, Drawing, draw, ensure, sheet, workers
from uda_reid.data.scenes.body import Pose, body_pack, bone_matrices, skin
from uda_reid.data.scenes.camera import picture, shoot
from uda_reid.data.scenes.depict import depict, draw_items, person
from uda_reid.data.scenes.plan import GALLERY, QUERY, TRAIN, Item, plan
from uda_reid.data.scenes.render import rasterise
from uda_reid.data.scenes.world import MOST_CAMERAS, camera
from uda_reid.errors import DataError


def test_draw_same_seed_gives_the_same_bytes(drawn: dict[str, Path], tmp_path: Path) -> None:
    assert contents(draw("plaza", tmp_path / "again", SMALL)) == contents(drawn["plaza"])


def test_draw_other_seed_gives_other_pictures(drawn: dict[str, Path]) -> None:
    item = plan("plaza", SMALL)[0]
    other, _ = depict("plaza", Drawing(height=64, width=32, seed=1), item)
    same, _ = depict("plaza", SMALL, item)
    assert other.image.tobytes() != same.image.tobytes()


def test_draw_two_processes_give_the_same_bytes_as_one(tmp_path: Path) -> None:
    options = Drawing(train_identities=12, test_identities=4, cameras=2, junk=3, distractors=3, height=64, width=32)
    assert len(plan("campus", options)) > 32  # more than one chunk, or nothing is shared out
    one = draw("campus", tmp_path / "one", options)
    two = draw("campus", tmp_path / "two", options, processes=2)
    assert contents(one) == contents(two)


def test_draw_without_workers_falls_back_to_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("uda_reid.data.scenes.workers._CHUNK", 4)
    monkeypatch.setattr("uda_reid.data.scenes.workers.sys.executable", str(tmp_path / "no-such-python"))
    folder = draw("campus", tmp_path / "out", SMALL, processes=2)
    assert len(rows_of(folder)) == len(plan("campus", SMALL))


def test_draw_with_workers_draws_nothing_in_this_process(
    drawn: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_CHUNK", 8)
    monkeypatch.setattr(workers, "draw_items", lambda *_: pytest.fail("drawn by the parent"))
    assert contents(draw("plaza", tmp_path / "out", SMALL, processes=2)) == contents(drawn["plaza"])


def test_draw_worker_finds_its_own_libraries_before_those_beside_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    root = str(Path(workers.__file__).resolve().parents[3])
    head = workers._PROGRAM.split("from uda_reid")[0]
    monkeypatch.setattr(workers, "_PROGRAM", head + "print(sys.path.index(sys.argv[1]), len(sys.path), sys.argv[1])")
    index, length, given = workers._start().communicate()[0].split(maxsplit=2)
    assert given.strip() == root
    assert int(index) > 2 and int(index) <= int(length) - 1


def test_draw_does_not_ask_a_dead_worker_again(
    drawn: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = workers._ask
    asked: list[int] = []
    own: list[int] = []

    def kills_the_first(worker: subprocess.Popen[str], *arguments: Any) -> Any:
        asked.append(worker.pid)
        if worker.pid == asked[0]:
            worker.kill()
            worker.wait()
        return ask(worker, *arguments)

    def counted(name: str, options: Drawing, folder: Path, items: list[Item]) -> Any:
        own.append(len(items))
        return draw_items(name, options, folder, items)

    monkeypatch.setattr(workers, "_CHUNK", 8)
    monkeypatch.setattr(workers, "_ask", kills_the_first)
    monkeypatch.setattr(workers, "draw_items", counted)
    assert contents(draw("plaza", tmp_path / "out", SMALL, processes=2)) == contents(drawn["plaza"])
    assert asked.count(asked[0]) == 1 and len(asked) == -(-len(plan("plaza", SMALL)) // 8)
    assert own == [8]  # only what the dead one had been asked for; the other worker draws the rest


def test_draw_all_workers_dead_falls_back_to_this_process(
    drawn: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_CHUNK", 4)
    monkeypatch.setattr(workers, "_PROGRAM", "raise SystemExit(1)")
    assert contents(draw("plaza", tmp_path / "out", SMALL, processes=3)) == contents(drawn["plaza"])


def test_depict_alone_equals_the_picture_of_the_whole_drawing(drawn: dict[str, Path], tmp_path: Path) -> None:
    for item in plan("station", SMALL)[5::7]:
        shown, _ = depict("station", SMALL, item)
        alone = tmp_path / item.file
        shown.image.save(alone, "JPEG", quality=camera(SCENES["station"], item.cam).quality)
        assert alone.read_bytes() == (drawn["station"] / item.split / item.file).read_bytes()


def test_draw_writes_market_names_that_match_the_plan(drawn: dict[str, Path]) -> None:
    for name, folder in drawn.items():
        seen: dict[str, Counter[int]] = {}
        for split in (TRAIN, QUERY, GALLERY):
            matches = [MARKET.fullmatch(path.name) for path in (folder / split).iterdir()]
            assert all(matches)
            assert {int(match[2]) for match in matches if match} <= {1, 2}
            seen[split] = Counter(int(match[1]) for match in matches if match)
        assert sorted(seen[TRAIN]) == [1, 2, 3, 4, 5, 6]
        assert sorted(seen[QUERY]) == [7, 8, 9]
        assert sorted(seen[GALLERY]) == [-1, 0, 7, 8, 9]
        assert (seen[GALLERY][-1], seen[GALLERY][0]) == (4, 3)
        facts = json.loads((folder / "scene.json").read_text())
        assert (facts["name"], facts["version"], facts["options"]["height"]) == (name, scenes.VERSION, 64)
        assert facts["images"] == len(list(folder.rglob("*.jpg")))
        assert (facts["pillow"], facts["numpy"]) == (PIL.__version__, np.__version__)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_plan_default_has_the_promised_size_and_answers_every_query(seed: int) -> None:
    items = plan("plaza", Drawing(seed=seed))
    splits = Counter(item.split for item in items)
    per_identity = Counter(item.pid for item in items if item.split == TRAIN)
    assert 760 <= splits[TRAIN] <= 800
    assert 100 <= splits[QUERY] <= 125
    assert 450 <= splits[GALLERY] <= 550
    assert len(per_identity) == 100 != splits[TRAIN] // 8
    assert len(set(per_identity.values())) > 5
    assert len({(item.split, item.file) for item in items}) == len(items)
    gallery = {(item.pid, item.cam) for item in items if item.split == GALLERY}
    for query in (item for item in items if item.split == QUERY):
        assert any(pid == query.pid and cam != query.cam for pid, cam in gallery)
    assert per_identity.keys().isdisjoint({item.pid for item in items if item.split != TRAIN})


def test_annotations_agree_with_the_files(drawn: dict[str, Path]) -> None:
    for name, folder in drawn.items():
        rows = rows_of(folder)
        files = {(path.parent.name, path.name) for path in folder.rglob("*.jpg")}
        assert {(row["split"], row["file"]) for row in rows} == files
        for row in rows:
            match = MARKET.fullmatch(row["file"])
            assert match is not None
            assert (match[1], match[2]) == (f"{int(row['pid']):0{2 if row['pid'] == '-1' else 4}d}", row["cam"])
            assert pixels(folder, row).shape == (64, 32, 3)
            assert 0 <= int(row["x0"]) <= int(row["x1"]) <= 32 and 0 <= int(row["y0"]) <= int(row["y1"]) <= 64
            if int(row["pid"]) > 0:
                outfit = person(SCENES[name], 0, int(row["pid"]))
                assert (row["bag"], row["legs"], row["coat"]) == (outfit.bag, outfit.legs, outfit.coat)


def test_people_fill_their_boxes_and_junk_does_not(drawn: dict[str, Path]) -> None:
    for folder in drawn.values():
        rows = rows_of(folder)
        tall = [(int(row["y1"]) - int(row["y0"])) / 64 for row in rows if int(row["pid"]) > 0]
        assert min(tall) > 0.55 and np.mean(tall) > 0.75
        shown = [float(row["visible"]) for row in rows if int(row["pid"]) > 0]
        assert min(shown) > 0.3 and np.mean(shown) > 0.8
        assert max(float(row["visible"]) for row in rows if int(row["pid"]) == -1) < 0.75


def test_annotated_box_is_where_the_person_is() -> None:
    world = replace(SCENES["plaza"], occluders=0.0)
    eye, outfit = camera(world, 1), person(world, 0, 1)
    for seed in range(4):
        shot = shoot(world, eye, np.random.default_rng(seed), 90.0 * seed)
        without, alone = (
            picture(world, eye, someone, shot, np.random.default_rng(seed), 64, 32) for someone in (None, outfit)
        )
        x0, y0, x1, y1 = alone.box
        change = np.abs(np.asarray(alone.image, float) - np.asarray(without.image, float)).sum(2)
        inside = change[y0:y1, x0:x1]
        around = (change.sum() - inside.sum()) / (change.size - inside.size)
        assert without.box == (0, 0, 0, 0)
        assert inside.mean() > 2.5 * around


def test_worlds_differ_more_than_their_cameras_pull_them_apart(drawn: dict[str, Path]) -> None:
    def statistics(name: str) -> dict[str, float]:
        images = np.stack([pixels(drawn[name], row) for row in rows_of(drawn[name]) if int(row["pid"]) > 0])
        red, green, blue = images.mean((0, 1, 2))
        top, bottom = images.max(3), images.min(3)
        return {
            "warmth": (red - blue) / (red + green + blue),
            "light": float(images.mean()),
            "saturation": float(((top - bottom) / np.maximum(top, 1)).mean()),
        }

    plaza, campus, station = (statistics(name) for name in ("plaza", "campus", "station"))
    assert plaza["warmth"] > campus["warmth"] + 0.10
    assert plaza["saturation"] > campus["saturation"] + 0.10
    assert plaza["light"] > station["light"] + 10
    assert station["warmth"] > campus["warmth"] + 0.03


def test_people_of_a_world_can_be_told_apart() -> None:
    for world in SCENES.values():
        outfits = [person(world, 0, number) for number in range(1, 61)]
        looks = {(o.shape, o.top.colour, o.lower.colour, o.bag, o.hair, o.coat) for o in outfits}
        assert len(looks) == 60
        assert len({o.shape for o in outfits}) > 10
        assert len({o.bag for o in outfits}) >= 3


def test_cameras_of_a_world_differ() -> None:
    for world in SCENES.values():
        eyes = [camera(world, number) for number in range(1, MOST_CAMERAS + 1)]
        assert min(abs(a.azimuth - b.azimuth) for a in eyes for b in eyes if a is not b) > 15
        assert np.ptp([eye.exposure for eye in eyes]) > 0.6 * (world.exposure[1] - world.exposure[0])


def test_skin_keeps_a_standing_body_whole_and_moves_a_walking_one() -> None:
    pack = body_pack()
    still, walking = (
        skin(pack.rest[3], pack.weights, bone_matrices(3, Pose(phase=0.25, swing=swing))) for swing in (0.0, 25.0)
    )
    assert np.ptp(still[:, 2]) == pytest.approx(np.ptp(pack.rest[3][:, 2]), abs=0.05)
    assert np.ptp(walking[:, 1]) > np.ptp(still[:, 1]) + 0.3  # a stride


def test_rasterise_finds_the_nearer_triangle_at_every_pixel_centre() -> None:
    near = [[0, 0, 1], [0, 8, 1], [8, 0, 1]]
    far = [[0, 0, 2], [0, 16, 2], [16, 0, 2]]
    away = [[0, 0, 0.5], [16, 0, 0.5], [0, 16, 0.5]]  # nearest of all, but seen from behind
    points = np.array(near + far + away, np.float32)
    hits = rasterise(points, np.arange(9).reshape(3, 3), 8, 8)
    found = np.full(64, -1)
    found[hits.pixel] = hits.face
    for row in range(8):
        for column in range(8):
            inside_near = (column + 0.5) + (row + 0.5) <= 8
            assert found[row * 8 + column] == (0 if inside_near else 1)
    np.testing.assert_allclose(hits.corner.sum(1), 1, atol=1e-5)


def test_draw_existing_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(DataError, match="not empty"):
        draw("plaza", tmp_path, SMALL)
    assert contents(tmp_path) == {"mine.txt": b"precious"}


def test_draw_unknown_name_suggests_the_near_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="did you mean 'plaza'"):
        draw("plazza", tmp_path / "out", SMALL)
    with pytest.raises(DataError, match="known are plaza, campus, station"):
        ensure("market1501", cache=tmp_path)
    assert not list(tmp_path.iterdir())


def test_draw_parent_that_is_a_file_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write to"):
        draw("plaza", tmp_path / "file" / "out", SMALL)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_draw_interrupted_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    def stops(items: Iterable[Any], description: str, total: int | None) -> Iterator[Any]:
        for number, item in enumerate(items):
            if number == 3:
                raise error
            yield item

    expected = DataError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected, match="No space left on device" if isinstance(error, OSError) else None):
        draw("plaza", tmp_path / "out", SMALL, progress=stops)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name != "posix", reason="only POSIX has a umask")
def test_draw_gives_the_folder_the_rights_that_the_umask_allows(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        folder = draw("plaza", tmp_path / "out", replace(SMALL, train_identities=1, distractors=0, junk=0))
    finally:
        os.umask(before)
    assert folder.stat().st_mode & 0o777 == 0o750


def test_sheet_shows_identities_by_cameras(drawn: dict[str, Path], tmp_path: Path) -> None:
    assert sheet(drawn["plaza"], columns=2, rows=3).size == (2 * 34 - 2, 3 * 66 - 2)
    with pytest.raises(DataError, match="holds no drawn scene"):
        sheet(tmp_path)
    for name in (str(tmp_path / "private.jpg"), "../../private.jpg"):
        (tmp_path / "annotations.csv").write_text(f"split,pid,cam,file\nbounding_box_train,3,1,{name}\n")
        with pytest.raises(DataError, match=r"its annotations\.csv names .*private\.jpg, which is no file of"):
            sheet(tmp_path)


def test_drawing_out_of_range_is_refused() -> None:
    with pytest.raises(ValidationError, match="cameras"):
        Drawing(cameras=MOST_CAMERAS + 1)
    with pytest.raises(ValidationError, match="fewest_images=4 is more than most_images=3"):
        Drawing(fewest_images=4)
    with pytest.raises(ValidationError, match=r"width\n.*more than 3 times the height \(32\); choose at most 96"):
        Drawing(height=32, width=97)
    with pytest.raises(ValidationError, match="1 validation error for Drawing\nheight"):
        Drawing(height=8, width=64)


@pytest.mark.parametrize(("height", "width"), [(32, 16), (32, 96), (41, 123), (85, 255), (512, 16), (512, 256)])
def test_drawing_every_allowed_size_draws(height: int, width: int) -> None:
    options = replace(SMALL, height=height, width=width)
    for name in SCENES if height < 64 else ("plaza",):
        items = plan(name, options)
        for item in items if height < 64 else items[-2:]:  # where it takes no time: each with a zoom of its own
            assert depict(name, options, item)[0].image.size == (width, height)
