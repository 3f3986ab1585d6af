"""Options that are set on the command line."""

from __future__ import annotations

import pytest

from tests.recipe.toys import HEAD, Written, load, refused
from uda_reid.errors import RecipeError
from uda_reid.strategies.pul import PUL


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("flip=false", False),
        ("rounds=5", 5),
        ("lr=1e-4", 1e-4),
        ("lr=1", 1.0),
        ("milestones=3,4", (3, 4)),
        ("milestones=[3]", (3,)),
        ("select=own", "own"),
        ("title=1e-4", "1e-4"),
        ("limit=4", 4),
        ("limit=null", None),
    ],
)
def test_settings_are_read_by_the_field_s_type(written: Written, setting: str, value: object) -> None:
    recipe = load(written(f"{HEAD}adapt: {{lr: 0.5, limit: 9}}"), settings=[f"adapt.{setting}"])
    found = getattr(recipe.strategy, setting.split("=")[0])
    assert found == value
    assert type(found) is type(value)


def test_settings_come_last_and_are_noted_where_they_change_something() -> None:
    settings = ["pretrain.epochs=5", "encoder.height=128", "adapt.lr=1e-4", "adapt.rounds=5", "adapt.lr=1e-5"]
    recipe = load("pul", profile="small", settings=settings)
    assert isinstance(recipe.strategy, PUL)
    assert (recipe.pretrain.epochs, recipe.encoder.height, recipe.strategy.lr) == (5, 128, 1e-5)
    assert recipe.notes[-2:] == (
        "pretrain.epochs 10 -> 5: set on the command line",
        "adapt.lr 0.001 -> 1e-05: set on the command line",
    )


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("adapt.cluster=5", "--set adapt.cluster=5: unknown option; did you mean 'clusters'?"),
        ("adapt.lr=fast", "--set adapt.lr=fast: 'fast' is not a number; the default is 0.001"),
        ("adapt.lr=-1", "--set adapt.lr=-1: -1.0 must be greater than 0; the default is 0.001"),
        ("adapt.flip=no", "--set adapt.flip=no: 'no' is not true or false; the default is true"),
        ("small.lr=1", "--set small.lr=1: unknown section 'small'; known are encoder, pretrain, adapt"),
        ("adapt.lr", "--set adapt.lr: is not of the form section.option=value; write, say, adapt.lr=1e-4"),
        (
            "encoder.backbone=resnet5",
            "--set encoder.backbone=resnet5: backbone 'resnet5' is unknown; did you mean 'resnet50'?",
        ),
    ],
)
def test_a_mistake_in_a_setting_is_one_line(written: Written, setting: str, message: str) -> None:
    written(HEAD)
    with refused(message):
        load("toy.yaml", settings=[setting])


def test_options_that_do_not_fit_together_are_told_at_the_setting_that_broke_them() -> None:
    message = r"^--set encoder\.backbone=resnet_tiny: [^\n]*weights: none$"
    with pytest.raises(RecipeError, match=message):
        load("source_only", settings=["encoder.backbone=resnet_tiny"])
    fitting = ["encoder.backbone=resnet_tiny", "encoder.weights=none"]
    assert load("source_only", settings=fitting).encoder.backbone == "resnet_tiny"
