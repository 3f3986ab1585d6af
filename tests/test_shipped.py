from __future__ import annotations

import subprocess
import sys

import pytest

import uda_reid
from uda_reid.shipped import shipped


def test_every_public_name_is_found() -> None:
    assert len(uda_reid.__all__) <= 30
    for name in uda_reid.__all__:
        assert getattr(uda_reid, name) is not None


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        uda_reid.nothing  # noqa: B018


def test_importing_the_package_and_asking_for_help_does_not_import_torch() -> None:
    code = "import sys, uda_reid, uda_reid.cli; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_recipes_and_assets_are_found() -> None:
    assert (shipped("recipes") / "pul.yaml").is_file()
    assert (shipped("assets") / "body_pack.npz").is_file()
