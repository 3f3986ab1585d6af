from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from uda_reid.doctor import Diagnosis, examine, show, to_json
from uda_reid.errors import DataError, RecipeError
from uda_reid.evaluation import evaluate
from uda_reid.job import Job, open_domain
from uda_reid.models.encoder import EncoderSpec, build
from uda_reid.pipeline import one
from uda_reid.pretraining import Pretrain, pretrain
from uda_reid.recipe import load
from uda_reid.testing import tiny_domain

SPEC = EncoderSpec(backbone="resnet_tiny", height=32, width=16, weights="none", neck="none")
QUICK = Pretrain(epochs=1, batch=8, instances=2, warmup=0, augmentation="none")
MARKET = Path(__file__).resolve().parents[1] / "../shared/data/mini_market1501"


def spoil(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def relabel(folder: Path, change: Callable[[list[str]], list[str] | None]) -> None:
    """Change or drop lines of a manifest: path, identity, camera, split."""
    table = folder / "manifest.csv"
    header, *lines = table.read_text().splitlines()
    changed = [change(line.split(",")) for line in lines]
    table.write_text("\n".join([header, *(",".join(cells) for cells in changed if cells)]) + "\n")


def healthy(folder: Path) -> None:
    pass


def bad_train_image(folder: Path) -> None:
    spoil(folder / "train_005.png")


def bad_gallery_image(folder: Path) -> None:
    spoil(folder / "gallery_005.png")


def bad_image_in_a_gallery_without_queries(folder: Path) -> None:
    spoil(folder / "gallery_005.png")
    relabel(folder, lambda cells: None if cells[3] == "query" else cells)


def training_images_alone(folder: Path) -> None:
    relabel(folder, lambda cells: cells if cells[3] == "train" else None)


def one_training_identity(folder: Path) -> None:
    relabel(folder, lambda cells: [cells[0], "1", *cells[2:]] if cells[3] == "train" else cells)


def no_valid_query(folder: Path) -> None:
    relabel(folder, lambda cells: [cells[0], f"9{cells[1]}", *cells[2:]] if cells[3] == "query" else cells)


def some_valid_queries(folder: Path) -> None:
    relabel(folder, lambda cells: [cells[0], "99", *cells[2:]] if cells[0] == "query_001.png" else cells)


def no_cameras(folder: Path) -> None:
    relabel(folder, lambda cells: [*cells[:2], "", cells[3]])


def identity_in_train_and_test(folder: Path) -> None:
    relabel(folder, lambda cells: [cells[0], "7", *cells[2:]] if cells[1] == "1" else cells)


def no_training_identities(folder: Path) -> None:
    relabel(folder, lambda cells: [cells[0], "", *cells[2:]] if cells[3] == "train" else cells)


def images_alone(folder: Path) -> None:
    (folder / "manifest.csv").unlink()


def two_training_images(folder: Path) -> None:
    relabel(folder, lambda cells: None if cells[3] == "train" and cells[0] not in TWO else cells)


TWO = ("train_000.png", "train_023.png")
CASES = [
    (healthy, "target source scoring"),
    (bad_train_image, "scoring"),
    (bad_gallery_image, "source"),
    (bad_image_in_a_gallery_without_queries, "target source"),
    (training_images_alone, "target source"),
    (one_training_identity, "target scoring"),
    (no_valid_query, "source"),
    (some_valid_queries, "target source scoring"),
    (no_cameras, "target source scoring"),
    (identity_in_train_and_test, "target source scoring"),
    (no_training_identities, "target scoring"),
    (images_alone, "target"),
    (two_training_images, "target source scoring"),
]


def verdicts(diagnosis: Diagnosis) -> set[str]:
    found = {"target": diagnosis.target, "source": diagnosis.source, "scoring": diagnosis.scoring}
    return {name for name, verdict in found.items() if verdict.works}


def works(action: Callable[[], object]) -> bool:
    try:
        action()
    except DataError:
        return False
    return True


@pytest.mark.parametrize(("damage", "expected"), CASES, ids=lambda case: getattr(case, "__name__", ""))
def test_verdicts_are_what_happens(data: Path, tmp_path: Path, damage: Callable[[Path], None], expected: str) -> None:
    damage(data / "beta")
    domain = open_domain("beta", data)
    diagnosis = examine(domain)
    job = Job(
        recipe=str(data / "tiny.yaml"), source="alpha", target="beta", data=data, out=tmp_path / "runs",
        profile="paper", settings=("adapt.clusters=2", "adapt.rounds=1"),
    )  # fmt: skip
    happened = {
        "target": works(lambda: one(job)),
        "source": works(lambda: pretrain(domain, QUICK, encoder=SPEC)),
        "scoring": works(lambda: evaluate(build(SPEC), domain)),
    }
    assert verdicts(diagnosis) == {name for name, worked in happened.items() if worked} == set(expected.split())
    assert diagnosis.exit_code == (0 if happened["target"] else 2)
    broken = {"target", "source", "scoring"} - verdicts(diagnosis)
    assert all(getattr(diagnosis, name).why for name in broken)


def test_fewest_training_images_are_those_that_recipes_take(data: Path) -> None:
    with pytest.raises(RecipeError, match=r"2 clusters are more than the target's 1 training images"):
        load("pul", profile="scenes", target_images=1)
    assert load("pul", profile="scenes", target_images=2).profile == "scenes"
    relabel(data / "beta", lambda cells: None if cells[3] == "train" and cells[0] != "train_000.png" else cells)
    target = examine(open_domain("beta", data)).target
    assert (target.works, target.why) == (False, "1 training image to learn from, where 2 are the least")


def test_findings_begin_with_the_gravest(data: Path) -> None:
    spoil(data / "beta" / "train_005.png")
    shutil.copy(data / "beta" / "train_001.png", data / "beta" / "gallery_001.png")
    levels = [finding.level for finding in examine(open_domain("beta", data)).findings]
    assert levels == sorted(levels, key=["error", "warning", "note"].index)
    assert set(levels) == {"error", "warning", "note"}


@pytest.mark.parametrize(
    ("damage", "note"),
    [
        (identity_in_train_and_test, "both in train and query"),
        (training_images_alone, "nothing can be scored on it"),
        (no_training_identities, "training images have no identities"),
        (images_alone, "no file name holds a camera"),
    ],
)
def test_reader_s_notes_are_not_told_twice(data: Path, damage: Callable[[Path], None], note: str) -> None:
    damage(data / "beta")
    domain = open_domain("beta", data)
    (retold,) = [text for text in domain.notes if note in text]
    domain = replace(domain, notes=(*domain.notes, "a remark"))
    texts = [finding.text for finding in examine(domain).findings]
    assert "a remark" in texts
    assert retold not in texts


def test_images_that_were_left_out_are_a_warning(data: Path, tmp_path: Path) -> None:
    image = data / "beta" / "train_001.png"
    for name in (
        "bounding_box_train/1_c1.png",
        "bounding_box_train/x.png",
        "query/2_c1.png",
        "bounding_box_test/2_c2.png",
    ):
        (tmp_path / "shop" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, tmp_path / "shop" / name)
    findings = examine(open_domain("shop", tmp_path), decode=False).findings
    (told,) = [finding for finding in findings if "left out" in finding.text]
    assert told.level == "warning"
    assert told.text.startswith("1 of 4 images (25.0%) not named by identity and camera")


def test_without_decoding_no_image_is_opened(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(data / "beta" / "train_005.png")

    def opened(*_: object) -> None:
        raise AssertionError("an image was opened")

    monkeypatch.setattr("PIL.Image.open", opened)
    monkeypatch.setattr("uda_reid.doctor.copies", opened)
    diagnosis = examine(open_domain("beta", data), decode=False)
    assert diagnosis.exit_code == 0
    assert "no image was opened, so damaged ones and copies of one another are not known" in [
        finding.text for finding in diagnosis.findings
    ]


def test_page_shows_counts_findings_and_verdicts(data: Path) -> None:
    spoil(data / "beta" / "gallery_005.png")
    diagnosis = examine(replace(open_domain("beta", data), notes=("odd [bold]name[/bold]",)))
    console = Console(width=100)
    with console.capture() as capture:
        console.print(show(diagnosis))
    lines = [" ".join(line.split()) for line in capture.get().splitlines()]
    assert "gallery 24 6 2 - -" in lines
    assert "error gallery: gallery_005.png: cannot be decoded (truncated): remove or replace it" in lines
    assert "note odd [bold]name[/bold]" in lines
    assert lines[-3:] == [
        "as a target fails: 1 unreadable image in gallery",
        "as a source works: 24 images of 6 identities",
        "scoring fails: 1 unreadable image in gallery",
    ]


def test_json_holds_everything(data: Path) -> None:
    diagnosis = examine(open_domain("beta", data))
    content = json.loads(to_json(diagnosis))
    assert content["name"] == "beta"
    assert content["root"] == str(data / "beta")
    assert content["counts"][0] == {
        "split": "train", "images": 24, "identities": 6, "cameras": 2, "distractors": 0, "junk": 0
    }  # fmt: skip
    assert content["findings"] == [
        {"level": "note", "text": "all images are 32 x 16 pixels (height x width)"},
    ]
    assert content["verdicts"]["scoring"] == {"works": True, "why": "protocol market, queries with a match: 6 of 6"}
    assert content["exit_code"] == 0


def test_json_names_every_damaged_image(data: Path) -> None:
    names = [f"train_{number:03d}.png" for number in range(12)]
    for name in names:
        spoil(data / "beta" / name)
    spoil(data / "beta" / "gallery_001.png")
    diagnosis = examine(open_domain("beta", data))
    damaged = json.loads(to_json(diagnosis))["unreadable"]
    assert [Path(each["path"]).name for each in damaged] == [*names, "gallery_001.png"]
    assert [each["split"] for each in damaged] == ["train"] * 12 + ["gallery"]
    assert damaged[0] == {
        "split": "train",
        "path": str(data / "beta" / "train_000.png"),
        "why": "cannot be decoded (truncated): remove or replace it",
    }
    assert sum("cannot be decoded" in finding.text for finding in diagnosis.findings) == 10


def items(data: Path, text: str) -> list[str]:
    """Return the whole list of the finding that holds a text."""
    content = json.loads(to_json(examine(open_domain("beta", data))))
    (found,) = [finding for finding in content["findings"] if text in finding["text"]]
    return list(found["items"])


def test_json_holds_every_list_whole_that_the_text_cuts(data: Path) -> None:
    def lonely(cells: list[str]) -> list[str]:
        split, _, number = cells[0].removesuffix(".png").partition("_")
        own = {"train": 30, "gallery": 60}.get(split)
        return [cells[0], str(own + int(number)), *cells[2:]] if own and 1 <= int(number) <= 12 else cells

    relabel(data / "beta", lonely)
    assert items(data, "with a single image")[-12:] == [str(row + 30) for row in range(1, 13)]
    assert items(data, "in the gallery without a query")[-12:] == [str(row + 60) for row in range(1, 13)]


def test_json_names_every_copy_and_every_image_that_is_wider_than_tall(data: Path) -> None:
    folder = data / "beta"
    for number in (2, 4):
        shutil.copy(folder / f"train_{number:03d}.png", folder / f"train_{number + 1:03d}.png")
    for number in (7, 8):
        Image.new("RGB", (40, 30 + number)).save(folder / f"gallery_{number:03d}.png")
    assert items(data, "within train") == ["train_002.png = train_003.png", "train_004.png = train_005.png"]
    assert items(data, "wider than tall") == ["gallery_007.png", "gallery_008.png"]


def test_json_names_all_unanswered_queries_and_cameras(data: Path) -> None:
    relabel(data / "beta", lambda cells: [cells[0], "99", *cells[2:]] if cells[0] == "query_001.png" else cells)
    relabel(data / "beta", lambda cells: [*cells[:2], "7", cells[3]] if cells[0] == "gallery_002.png" else cells)
    assert items(data, "queries without a valid match") == ["99: not in the gallery"]
    assert items(data, "cameras are numbered up to 7") == ["3", "4", "5", "6"]
    assert items(data, "learning and test differ") == ["7 in the test only"]


def test_page_says_where_cut_lists_are_whole(data: Path) -> None:
    def page() -> str:
        console = Console(width=100)
        with console.capture() as capture:
            console.print(show(examine(open_domain("beta", data), decode=False)))
        return capture.get()

    assert "--json" not in page()
    relabel(data / "beta", lambda cells: [cells[0], cells[0][6:9], *cells[2:]] if cells[3] == "train" else cells)
    assert "and 14 more" in page()
    assert "`--json` gives the lists whole" in page()


@pytest.mark.skipif(not MARKET.is_dir(), reason="the Market-1501 fixture is not at ../shared/data")
def test_real_photographs_are_examined() -> None:
    diagnosis = examine(open_domain(str(MARKET)))
    assert diagnosis.exit_code == 0
    assert not any(finding.level == "warning" and "published" in finding.text for finding in diagnosis.findings)
    assert diagnosis.scoring.why == "protocol market, queries with a match: 30 of 32"


@pytest.mark.skipif(not MARKET.is_dir(), reason="the Market-1501 fixture is not at ../shared/data")
def test_copy_that_differs_from_what_was_published_is_a_warning(tmp_path: Path) -> None:
    shutil.copytree(MARKET, tmp_path / "market")
    findings = examine(open_domain("market", tmp_path), decode=False).findings
    told = [finding.level for finding in findings if "Market-1501 was published with" in finding.text]
    assert told == ["warning"] * 3


def test_counts_of_a_numbered_division_that_differ_are_a_warning(tmp_path: Path) -> None:
    for name in [
        f"{view}/{person:03d}_{angle}.bmp" for person in range(4) for view, angle in (("cam_a", 0), ("cam_b", 90))
    ]:
        (tmp_path / "viper" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 8)).save(tmp_path / "viper" / name)
    for name in ("viper", "viper:3"):
        findings = examine(open_domain(name, tmp_path), decode=False).findings
        assert [finding.level for finding in findings if "VIPeR was published with" in finding.text] == ["warning"] * 3


def test_withdrawn_dataset_is_called_so_and_a_folder_of_its_name_is_not(data: Path, tmp_path: Path) -> None:
    image = data / "beta" / "train_001.png"
    names = ("bounding_box_train/0001_c1.png", "query/0002_c1.png", "bounding_box_test/0002_c2.png")
    for name in (
        *(f"DukeMTMC-reID/{name}" for name in names),
        *(f"duke/{who}/{n}.png" for who in "abcd" for n in "12"),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, tmp_path / name)
    told = "DukeMTMC-reID: its owners have withdrawn it, so there is no official download"
    for name, expected in (("duke", True), (str(tmp_path / "duke"), False)):
        findings = examine(open_domain(name, tmp_path), decode=False).findings
        assert (told in [finding.text for finding in findings]) == expected


def test_names_that_no_terminal_can_show_are_spelt_out(tmp_path: Path) -> None:
    domain = tiny_domain(tmp_path / "a\x1b[1m\nb", name="a\x1b[1m\nb")
    domain.train.paths[0].write_bytes(b"no image")
    shown = io.StringIO()
    Console(width=400, file=shown).print(show(examine(domain)))
    text = shown.getvalue()
    assert "\x1b" not in text and "a\\x1b[1m\\nb" in text
