from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Iterable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import pytest

from uda_reid.data.layouts import listing
from uda_reid.errors import DataError, RecipeError
from uda_reid.job import Job, Prepared, check_groups, code_of, is_scene, names_of
from uda_reid.run import Silent

T = TypeVar("T")


class Listener:
    """A reporter that keeps what it was told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def log(self, message: str) -> None:
        self.lines.append(message)

    def progress(self, items: Iterable[T], description: str, total: int | None) -> Iterable[T]:
        return items


@pytest.fixture
def job(three: Path, tmp_path: Path) -> Job:
    return Job(
        recipe=str(three / "tiny.yaml"), source="alpha,gamma", target="beta", data=three, out=tmp_path / "runs",
        profile="paper",
    )  # fmt: skip


def change(folder: Path, column: str, value: str, splits: tuple[str, ...] = ("train", "query", "gallery")) -> None:
    """Write a value into a column of every line of some splits of a folder's manifest."""
    with (folder / "manifest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    with (folder / "manifest.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows({**row, column: value} if row["split"] in splits else row for row in rows)


def test_names_are_what_commas_separate(tmp_path: Path) -> None:
    assert names_of("plaza", tmp_path) == ("plaza",)
    assert names_of("plaza,station", tmp_path) == ("plaza", "station")
    assert names_of(" plaza , a folder/b,~nobody/c", tmp_path) == ("plaza", "a folder/b", "~nobody/c")
    assert names_of(" plaza ", tmp_path) == (" plaza ",)  # one name is taken as it is typed
    long = ["x" * 200 + str(number) for number in range(3)]
    assert names_of(",".join(long), tmp_path) == tuple(long)


@pytest.mark.parametrize("source", ["plaza,", ",plaza", ",", "plaza,,station", "plaza, ,station"])
def test_missing_name_is_refused(source: str, tmp_path: Path) -> None:
    message = rf"^--src {source}: a name is missing beside a comma; write two sources as plaza,station$"
    with pytest.raises(RecipeError, match=message):
        names_of(source, tmp_path)


def test_name_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"^--src a,b, a: a is there twice; name every source once$"):
        names_of("a,b, a", tmp_path)


def test_folder_with_a_comma_is_refused_wherever_it_lies(
    three: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (three / "alpha,gamma").mkdir()
    message = (
        "^--src alpha,gamma: a comma separates sources, and .*alpha,gamma is a folder with commas in its path; give"
    )
    with pytest.raises(RecipeError, match=message):
        names_of("alpha,gamma", three)
    inside = three / "alpha,gamma" / "site"
    inside.mkdir()
    with pytest.raises(RecipeError, match="site is a folder with commas in its path"):
        names_of(str(inside), tmp_path)
    monkeypatch.setenv("HOME", str(three))
    with pytest.raises(RecipeError, match="is a folder with commas in its path"):
        names_of("~/alpha,gamma", tmp_path)
    monkeypatch.chdir(three)
    with pytest.raises(RecipeError, match="is a folder with commas in its path"):
        names_of("alpha,gamma", tmp_path)


def test_several_sources_are_one_joined_source(job: Job) -> None:
    prepared = Prepared(job, Silent())
    assert [domain.name for domain in prepared.sources] == ["alpha", "gamma"]
    assert prepared.source.name == "alpha+gamma"
    assert len(prepared.source.train) == 48
    assert prepared.labels_of(prepared.source) == "alpha, gamma"
    assert prepared.labels_of(prepared.target) == "beta"
    folder = prepared.run_folder().name
    assert folder.startswith("tiny-alpha+gamma-beta-s0-")
    assert prepared.source_folder(prepared.source).name.startswith("alpha+gamma-s0-")
    assert not set('<>:"/\\|?*') & set(folder)  # what Windows has in no name


def test_digest_holds_the_listing_of_one_source_as_it_is_and_of_several_in_their_order(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    digested: list[Any] = []

    def digest(content: Any) -> str:
        digested.append(content)
        return f"digest-{len(digested)}"

    monkeypatch.setattr("uda_reid.job.digest_of", digest)
    several, single = Prepared(job, Silent()), Prepared(replace(job, source="alpha"), Silent())
    alpha, gamma = map(listing, several.sources)
    assert single.run_folder().name == "tiny-alpha-beta-s0-digest-1"
    assert (digested[0]["source"], digested[0]["target"]) == (alpha, listing(single.target))
    assert several.run_folder().name == "tiny-alpha+gamma-beta-s0-digest-3"
    assert digested[1] == [alpha, gamma]
    assert digested[2] == {**digested[0], "source": "digest-2"}


def folders(job: Job) -> tuple[str, str]:
    prepared = Prepared(job, Silent())
    return prepared.run_folder().name, prepared.source_folder(prepared.source).name


def test_folders_depend_on_the_images_of_every_source_and_on_their_order(job: Job) -> None:
    first = folders(job)
    assert folders(job) == first
    assert not set(folders(replace(job, source="gamma,alpha"))) & set(first)
    digest = folders(replace(job, source="gamma,alpha"))[1].rpartition("-")[2]
    assert digest != first[1].rpartition("-")[2]
    for name in ("alpha", "gamma"):
        image = job.data / name / "train_003.png"
        before = image.read_bytes()
        image.write_bytes(before + b" ")
        assert not set(folders(job)) & set(first)
        image.write_bytes(before)
    assert folders(job) == first


def test_folders_follow_what_the_images_show_and_not_their_sizes_and_times(job: Job) -> None:
    job = replace(job, source="alpha")
    names = folders(job)
    one, other = (job.data / "alpha" / f"train_{number:03d}.png" for number in (3, 20))
    pixels, times = one.read_bytes(), one.stat().st_mtime_ns
    changed = bytearray(pixels)
    changed[-1] ^= 1  # of the same size
    one.write_bytes(changed)
    os.utime(one, ns=(times, times))
    assert not set(folders(job)) & set(names)
    one.write_bytes(pixels)
    assert folders(job) == names
    one.rename(one.with_suffix(".held"))
    other.rename(one)
    one.with_suffix(".held").rename(other)
    assert not set(folders(job)) & set(names)


def test_strategy_of_ones_own_is_known_by_its_code(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    text = "class Mine:\n    rate = {rate}\n"
    (tmp_path / "alone_here.py").write_text(text.format(rate=1))
    (tmp_path / "packed_here").mkdir()
    for name in ("__init__", "inner", "other"):
        (tmp_path / "packed_here" / f"{name}.py").write_text(text.format(rate=1))
    for module, file in (("alone_here", "alone_here.py"), ("packed_here.inner", "packed_here/other.py")):
        strategy = import_module(module).Mine()
        before = code_of(strategy)
        assert len(before) == 64 and code_of(strategy) == before
        (tmp_path / file).write_text(text.format(rate=2))
        assert code_of(strategy) != before
    assert code_of(Prepared(job, Silent()).recipe.strategy) == ""  # the version of the package stands for it
    first = folders(job)
    monkeypatch.setattr("uda_reid.job.code_of", lambda _: "a digest")
    assert folders(job)[0] != first[0]
    assert folders(job)[1] == first[1]  # the source model knows no strategy


def test_copy_of_a_source_under_another_name_is_known_as_the_same_data(job: Job) -> None:
    shutil.copytree(job.data / "alpha", job.data / "delta")
    listener = Listener()
    prepared = Prepared(replace(job, source="alpha", target="delta"), listener)
    line = "source and target are the same data set (alpha): nothing is carried anywhere"
    assert f"warning: {line}" in listener.lines
    assert prepared.labels_known == {"target images used": "with labels: it is the source"}
    assert f"delta is a copy of alpha: {line}" in prepared.notes()
    assert not Prepared(replace(job, source="alpha"), Silent()).labels_known


def test_two_data_sets_of_one_name_are_not_taken_for_one(job: Job) -> None:
    shutil.copytree(job.data / "beta", job.data / "elsewhere" / "alpha")
    listener = Listener()
    both = replace(job, source="alpha", target=str(job.data / "elsewhere" / "alpha"))
    prepared = Prepared(both, listener)
    assert prepared.source.name == "alpha"
    assert prepared.target.name == f"alpha-{listing(prepared.target)[:6]}"
    assert not prepared.labels_known
    (line,) = [line for line in listener.lines if "called alpha" in line]
    assert line == f"source and target are different data sets called alpha: the target is {prepared.target.name} here"
    assert not any("same data set" in line for line in listener.lines)
    assert Prepared(replace(job, source="alpha", target="alpha"), Silent()).labels_known


def test_run_without_damaged_images_is_another_than_that_of_the_data_without_them(job: Job) -> None:
    job = replace(job, source="alpha")
    sound = folders(job)
    skipping = replace(job, skip_damaged=True)
    assert folders(skipping) == sound
    image = job.data / "alpha" / "train_003.png"
    image.write_bytes(b"no image")
    prepared, left = Prepared(skipping, Silent()), folders(skipping)
    assert prepared.left_out(prepared.source, prepared.target) == {"images left out, damaged": "alpha: 1 in train"}
    assert len(prepared.source.train) == 23
    lines = (job.data / "alpha" / "manifest.csv").read_text().splitlines(keepends=True)
    (job.data / "alpha" / "manifest.csv").write_text("".join(line for line in lines if "train_003" not in line))
    assert not set(folders(skipping)) & {*left, *sound}  # whose ledger counts no image


def test_folders_stay_when_the_data_move(job: Job, tmp_path: Path) -> None:
    first = folders(job)
    shutil.copytree(job.data, tmp_path / "elsewhere")
    assert folders(replace(job, data=tmp_path / "elsewhere")) == first


def test_bound_model_of_a_target_is_that_of_a_single_source(job: Job) -> None:
    prepared, single = Prepared(job, Silent()), Prepared(replace(job, source="beta", target=None), Silent())
    assert prepared.source_folder(prepared.target) == single.source_folder(single.source)
    joined = Prepared(replace(job, target=None), Silent())
    assert joined.target is joined.source
    assert joined.source_folder(joined.source) == prepared.source_folder(prepared.source)


def test_notes_are_those_of_every_domain_and_of_the_union(job: Job) -> None:
    change(job.data / "gamma", "camera", "")
    for name in ("alpha", "beta"):
        change(job.data / name, "identity", "9", splits=("query", "gallery"))
    listener = Listener()
    prepared = Prepared(job, listener)
    one = "the gallery shows one identity, so every answer is right and scores say nothing"
    blind = "alpha+gamma: the cameras of gamma are unknown: each of their images counts as a camera of its own"
    assert prepared.notes() == (f"alpha: {one}", blind, f"beta: {one}")
    assert set(prepared.notes()) <= set(listener.lines)
    assert listener.lines.count(f"alpha: {one}") == 1
    single = Prepared(replace(job, source="alpha"), Silent())
    assert single.notes() == (f"alpha: {one}", f"beta: {one}")


def test_profile_is_scenes_only_where_every_domain_is_built_in(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def built_in(*names: str) -> list[str]:
        monkeypatch.setattr("uda_reid.job.is_scene", lambda domain: domain.name in names)
        monkeypatch.setattr("uda_reid.job.find_weights", lambda *_: None)
        jobs = (replace(job, profile=None), replace(job, profile=None, target=None))
        return [Prepared(each, Silent()).recipe.profile for each in jobs]

    assert built_in("alpha", "gamma", "beta") == ["scenes", "scenes"]
    assert built_in("alpha", "gamma") == ["small", "scenes"]
    assert built_in("alpha", "beta") == built_in("gamma", "beta") == ["small", "small"]
    monkeypatch.undo()
    assert not any(map(is_scene, Prepared(job, Silent()).sources))


def test_every_source_needs_identities(job: Job) -> None:
    change(job.data / "gamma", "identity", "", splits=("train",))
    with pytest.raises(DataError, match="gamma: its training images have no identities, so no source model can be"):
        Prepared(job, Silent())


def test_two_targets_are_refused(job: Job) -> None:
    with pytest.raises(RecipeError, match=r"^--tgt beta,alpha: there is one target at a time; run the command once"):
        Prepared(replace(job, target="beta,alpha"), Silent())


def test_misspelt_source_is_named(job: Job) -> None:
    with pytest.raises(DataError, match=r"^'gama' is no known data set .*; did you mean 'gamma'\?"):
        Prepared(replace(job, source="alpha,gama"), Silent())


def test_one_folder_under_two_names_is_refused(job: Job) -> None:
    with pytest.raises(
        DataError, match=r"^alpha and alpha are both read from .*alpha, and the same people would be two"
    ):
        Prepared(replace(job, source=f"alpha,{job.data / 'alpha'}"), Silent())


@pytest.mark.parametrize(
    ("processes", "group", "said"),
    [
        (1, 5, "5 does not divide pretrain.batch 16; use 2, 4, 8 or 0, the whole batch"),
        (1, 16, "16 does not divide adapt.batch 24; use 2, 4, 8 or 0, the whole batch"),
        (2, 8, "8 does not divide adapt.batch 24 on 2 processes; use 2, 4 or 0, the whole batch"),
        (2, 4, ""),
        (3, 8, "8 does not divide pretrain.batch 16 on 3 processes; use 0, the whole batch, or other batches"),
    ],
)
def test_group_of_batch_norm_divides_what_a_process_holds(processes: int, group: int, said: str, job: Job) -> None:
    settings = ("encoder.bn_group=" + str(group), "pretrain.batch=16", "adapt.batch=24")
    recipe = Prepared(replace(job, settings=(*job.settings, *settings[1:])), Silent()).recipe
    grouped = replace(recipe, encoder=replace(recipe.encoder, bn_group=group))
    if not said:
        check_groups(grouped, processes)
        return
    with pytest.raises(RecipeError, match=f"^encoder.bn_group {said}$"):
        check_groups(grouped, processes)
    if processes == 1:
        with pytest.raises(RecipeError, match=f"^encoder.bn_group {said}$"):
            Prepared(replace(job, settings=(*job.settings, *settings)), Silent())


def test_options_that_no_recipe_holds_are_noted_where_they_are_not_the_usual_ones(job: Job) -> None:
    usual = Prepared(job, Silent()).notes()
    other = replace(job, precision="bf16", accumulate=2, rollbacks=3, compiled=True)
    added = ("precision bf16", "accumulate 2", "rollbacks 3", "compiled True")
    assert Prepared(other, Silent()).notes() == (*added, *usual)
