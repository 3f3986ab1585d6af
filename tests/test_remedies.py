"""Every remedy that an error names is taken, on the input that made the error, as its reader would take it."""

from __future__ import annotations

import csv
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.commands import run
from tests.foreign.made import saved, searched
from uda_reid.doctor import FEWEST as FEWEST_OF_CHECK
from uda_reid.errors import DataError, RecipeError
from uda_reid.job import FEWEST, Job, Prepared
from uda_reid.recipe import load, to_yaml
from uda_reid.run import Silent

Try = Callable[[str], tuple[int, str]]


@pytest.fixture
def attempt(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Try:
    """Run a command line in a folder with data sets, features and a model; return its exit code and what it said."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UDA_REID_DATA", str(data))
    (tmp_path / "tiny.yaml").write_text((data / "tiny.yaml").read_text())
    saved(tmp_path, searched())

    def words(line: str) -> tuple[int, str]:
        code, out, err = run(monkeypatch, capsys, *shlex.split(line))
        return code, out + err

    return words


def left(folder: Path, images: int) -> None:
    """Leave so many training images in a tiny data set, and no others."""
    table = folder / "manifest.csv"
    with table.open(newline="") as file:
        head, *rows = list(csv.reader(file))
    split = head.index("split")
    few = [row for row in rows if row[split] == "train"][:images]
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([head, *few])


ADAPT = "adapt --recipe tiny.yaml --src alpha --tgt beta --profile paper"
SCORE = "evaluate --features q.npy g.npy"
CASES = {
    "clusters beyond the images, by hand": (
        f"{ADAPT} --set adapt.clusters=99",
        r"99 clusters are more than .*; set fewer \((--set adapt.clusters=\d+), say\)",
        ADAPT + " {0}",
    ),
    "half precision on a CPU": (f"{ADAPT} --precision fp16", "use fp32 or (bf16)", ADAPT + " --precision {0}"),
    "weights in a folder that is not there": (
        f"{ADAPT} --weights nowhere",
        "there is no such folder; give the one",
        ADAPT + " --weights .",
    ),
    "a misspelt recipe": (
        ADAPT.replace("tiny.yaml", "tinny.yaml"),
        "recipe file tinny.yaml does not exist; .*or give the path of a YAML file",
        ADAPT,
    ),
    "a misspelt profile": (
        ADAPT.replace("paper", "papers"),
        "'papers' is not one of 'paper'",
        ADAPT,
    ),
    "a misspelt option": (
        f"{ADAPT} --set adapt.clutsers=2",
        "did you mean 'clusters'",
        f"{ADAPT} --set adapt.clusters=2",
    ),
    "a setting without a section": (
        f"{ADAPT} --set clusters=2",
        "write, say, adapt.lr=1e-4",
        f"{ADAPT} --set adapt.lr=1e-4",
    ),
    "two targets": (ADAPT.replace("beta", "beta,alpha"), "run the command once for each", ADAPT),
    "a source twice": (ADAPT.replace("alpha", "alpha,alpha"), "name every source once", ADAPT),
    "a model without a data set": (
        "evaluate --checkpoint MODEL",
        "name a data set with (--tgt)",
        "evaluate --checkpoint MODEL {0} beta",
    ),
    "nothing to score": ("evaluate --tgt beta", "give (--checkpoint), a model", "evaluate --tgt beta {0} MODEL"),
    "features without identities": (SCORE, "give a table of identities with (--ids)", SCORE + " {0} ids.csv"),
    "options of re-ranking alone": (
        f"{SCORE} --ids ids.csv --k1 5",
        "without (--rerank)",
        f"{SCORE} --ids ids.csv --k1 5 {{0}}",
    ),
    "k-means without a number": (
        "cluster --features q.npy --method kmeans --out a.csv",
        "give it with (--clusters)",
        "cluster --features q.npy --method kmeans --out a.csv {0} 4",
    ),
    "a rule for eps that is none": (
        "cluster --features q.npy --eps nearly --out b.csv",
        "use (auto), knee, pairs",
        "cluster --features q.npy --eps {0} --out b.csv",
    ),
    "labels that are there": (
        "cluster --features q.npy --method kmeans --clusters 4 --out ids.csv",
        "choose another --out",
        "cluster --features q.npy --method kmeans --clusters 4 --out c.csv",
    ),
    "labels that may be replaced": (
        "cluster --features q.npy --method kmeans --clusters 4 --out old.csv",
        "replace it with (--overwrite)",
        "cluster --features q.npy --method kmeans --clusters 4 --out old.csv {0}",
    ),
    "embeddings that are there": (
        "embed beta --checkpoint MODEL --out full",
        "or replace it with (--overwrite)",
        "embed beta --checkpoint MODEL --out full {0}",
    ),
    "another folder for embeddings": (
        "embed beta --checkpoint MODEL --out full",
        "choose another (--out)",
        "embed beta --checkpoint MODEL {0} other",
    ),
    "a matrix of one domain": (
        "matrix --domains alpha --dry-run",
        "at least two names",
        "matrix --domains alpha,beta --recipes tiny.yaml --dry-run --profile paper",
    ),
    "a pair without a colon": (
        "matrix --pairs alpha-beta --dry-run",
        "write source:target",
        "matrix --pairs alpha:beta --recipes tiny.yaml --dry-run --profile paper",
    ),
    "seeds that are none": (
        "matrix --domains alpha,beta --recipes tiny.yaml --seeds x --dry-run --profile paper",
        "give whole numbers",
        "matrix --domains alpha,beta --recipes tiny.yaml --seeds 0,1 --dry-run --profile paper",
    ),
    "a run that is none": (
        "matrix --domains alpha,beta --recipes tiny.yaml --only x --dry-run --profile paper",
        "the first run is (\\S+)",
        "matrix --domains alpha,beta --recipes tiny.yaml --dry-run --profile paper --only {0}",
    ),
}
"""Situation -> what was typed, what it must say, and what is typed then: {0} is what the error named."""


@pytest.mark.parametrize("case", CASES)
def test_a_remedy_mends_what_it_is_named_for(attempt: Try, tmp_path: Path, case: str) -> None:
    typed, said, then = CASES[case]
    if "MODEL" in typed + then:
        code, text = attempt("pretrain --recipe tiny.yaml --src alpha --profile paper")
        assert code == 0, text
        model = re.findall("^model: (.*safetensors)$", text, flags=re.MULTILINE)[0]
        typed, then = typed.replace("MODEL", model), then.replace("MODEL", model)
    if "old.csv" in typed:
        (tmp_path / "old.csv").write_text("an older result\n")
    if "--out full" in typed:
        assert attempt(typed)[0] == 0
    code, text = attempt(typed)
    found = re.search(said, " ".join(text.split()))
    assert code == 2 and found, text
    code, text = attempt(then.format(*found.groups()))
    assert code == 0, text


@pytest.mark.parametrize("images", [2, 3, 5])
@pytest.mark.parametrize("place", ["by hand", "in the recipe", "in a resolved recipe"])
def test_a_few_images_take_every_remedy_for_too_many_clusters(
    attempt: Try, data: Path, tmp_path: Path, images: int, place: str
) -> None:
    left(data / "beta", images)
    text = (tmp_path / "tiny.yaml").read_text()
    many = text.replace("adapt: {", "adapt: {clusters: 9, ", 1) if "clusters" not in text else ""
    (tmp_path / "many.yaml").write_text(many or re.sub(r"clusters: \d+", "clusters: 9", text))
    line = ADAPT.replace("tiny.yaml", "many.yaml") if place != "by hand" else f"{ADAPT} --set adapt.clusters=9"
    if place == "in a resolved recipe":
        resolved = to_yaml(load(tmp_path / "many.yaml"))
        (tmp_path / "many.yaml").write_text(resolved)
    code, told = attempt(line)
    found = re.search(r"\((--set adapt.clusters=\d+), say\)( or take (--profile small))?$", told.strip())
    assert code == 2 and found, told
    code, told = attempt(f"{line} {found[1]} --set adapt.threshold=-1")
    assert code == 0, told
    assert bool(found[3]) == (place == "in the recipe"), "where the profile would not help it is not advised"
    if found[3]:
        assert load(tmp_path / "many.yaml", profile="small", target_images=images).profile == "small"


def test_one_image_is_refused_with_a_remedy_that_works(data: Path, tmp_path: Path) -> None:
    """Fewer clusters and another profile were advised, and neither helped."""
    assert FEWEST == FEWEST_OF_CHECK
    left(data / "beta", 1)
    few = {"source": "alpha", "target": "beta", "data": data, "out": tmp_path / "runs"}
    for recipe in (str(data / "tiny.yaml"), "adabn", "cluster"):
        with pytest.raises(DataError, match=r"^beta has 1 training image to adapt to, and 2 are the least; add images"):
            Prepared(Job(recipe=recipe, **few), Silent())  # type: ignore[arg-type]
    without = ("encoder.weights=none",)
    assert Prepared(Job(recipe="source_only", settings=without, **few), Silent()).recipe.name == "source_only"  # type: ignore[arg-type]


def test_a_target_with_two_images_is_adapted_to(attempt: Try, data: Path) -> None:
    left(data / "beta", 2)
    code, text = attempt(f"{ADAPT} --set adapt.clusters=2 --set adapt.threshold=-1")
    assert code == 0, text


def test_a_recipe_with_more_clusters_than_images_names_its_line(tmp_path: Path) -> None:
    path = tmp_path / "many.yaml"
    path.write_text("strategy: pul\nadapt: {clusters: 50}\n")
    with pytest.raises(RecipeError, match=r"many.yaml:2: adapt.clusters: 50 clusters .*--set adapt.clusters=2, say"):
        load(path, target_images=7)
    assert load(path, target_images=7, settings=["adapt.clusters=2"])
