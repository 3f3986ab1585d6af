"""A file imports only strictly lower floors, and third-party packages come in through their doors."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "uda_reid"

FLOORS = {
    "errors": 0,
    "shipped": 0,
    "launch": 0,
    "reading": 0,
    "cells": 0,
    "options": 1,
    "writing": 1,
    "updates": 0.9,
    "sharing": 0.9,
    "unreadable": 0.9,
    "run": 1,
    "terminal": 1.1,
    "types": 2,
    "ops.distance": 3.0,
    "ops.noise": 2.9,
    "ops.transfer": 2.9,
    "ops.bootstrap": 3.0,
    "ops.impact": 3.0,
    "ops.losses": 3.0,
    "ops.gap": 3.05,
    "ops.kernels": 3.05,
    "ops.neighbours": 3.1,
    "ops.protocols": 3.1,
    "ops.ranking": 3.2,
    "ops.jaccard": 3.2,
    "ops.single_shot": 3.2,
    "ops.clustering": 3.3,
    "ops.quality": 3.3,
    "data.contents": 3.9,
    "data": 4,
    "models.weights": 3.9,
    "models.attention": 3.9,
    "models.batch_norm": 3.9,
    "models": 4,
    "models.branches": 4.1,
    "training.batches": 4.9,
    "training.faults": 4.9,
    "training": 5,
    "training.encoders": 5.1,
    "training.processes": 5.1,
    "training.meeting": 5.2,
    "training.mixed": 5.5,
    "training.pseudo_labels": 5.5,
    "training.units": 5.5,
    "evaluation": 6,
    "pretraining": 6.5,
    "strategies": 7,
    "recipe.files": 7.9,
    "recipe": 8,
    "report.figures": 8,
    "report.pictures": 8,
    "report.records": 8,
    "report.lists": 8.1,
    "report.attention": 8.1,
    "report.embedding_map": 8.1,
    "report.tables": 8.1,
    "report.sections": 8.2,
    "report.page": 8.3,
    "report": 8.4,
    "testing": 8,
    "gap": 7,
    "selection": 7,
    "auditor": 8,
    "doctor.findings": 8.3,
    "doctor.people": 8.4,
    "doctor.pictures": 8.4,
    "doctor": 8.5,
    "job": 8.5,
    "embedding": 9,
    "foreign.files": 8.6,
    "foreign.ids": 8.65,
    "foreign.search": 8.7,
    "foreign.clustering": 8.75,
    "foreign.scoring": 8.75,
    "foreign.jobs": 8.8,
    "foreign.tables": 8.8,
    "foreign": 9,
    "pipeline.folders": 8.6,
    "pipeline.sources": 8.7,
    "pipeline.parts": 8.8,
    "pipeline.runs": 8.9,
    "pipeline": 9,
    "matrix.plan": 9.1,
    "matrix.left": 9.12,
    "matrix.workers": 9.2,
    "matrix.published": 9.1,
    "matrix.gaps": 9.15,
    "matrix.selected": 9.15,
    "matrix.results": 9.18,
    "matrix.summary": 9.2,
    "matrix.ray_pool": 9.3,
    "matrix.slurm": 9.3,
    "matrix.board": 9.3,
    "matrix.sheets": 9.25,
    "matrix.tables": 9.3,
    "matrix.drills": 9.3,
    "matrix.page": 9.35,
    "matrix.folder": 9.4,
    "matrix": 9.5,
    "cli.arguments": 10,
    "cli.ending": 10.1,
    "cli.runs": 10.1,
    "cli.matrix": 10.1,
    "cli.data": 10.1,
    "cli.features": 10.1,
    "cli.names": 10.1,
    "cli": 10.2,
    "__main__": 11,
    "": 11,
}

DOORS = {
    "torchvision": {"data.images", "models.encoder"},
    "sklearn": {"ops.clustering", "ops.quality", "report.embedding_map"},
    "numba": {"ops.kernels"},
    "infomap": {"ops.clustering"},
    "faiss": {"ops.clustering", "ops.neighbours"},
    "yaml": {"recipe", "matrix.published"},
    "typer": {"cli"},
    "ray": {"matrix.ray_pool"},
    "submitit": {"matrix.slurm"},
    "jinja2": {"report.page"},
    "accelerate": {"training.processes", "training.meeting"},
    "h5py": {"data.layouts.cuhk03_mat"},
}


def module_name(path: Path) -> str:
    parts = list(path.relative_to(PACKAGE).with_suffix("").parts)
    if parts[-1] == "__init__":
        parts.pop()
    return ".".join(parts)


def floor(name: str) -> float:
    while name not in FLOORS:
        if "." not in name:
            raise AssertionError(f"{name} has no floor: give it one in FLOORS")
        name = name.rpartition(".")[0]
    return FLOORS[name]


def imports(path: Path) -> list[str]:
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            submodules = [f"{module}.{alias.name}" for alias in node.names]
            is_file = [(PACKAGE.parent / Path(*name.split("."))).with_suffix(".py").is_file() for name in submodules]
            found += [name if exists else module for name, exists in zip(submodules, is_file, strict=True)]
    return found


FILES = sorted(PACKAGE.rglob("*.py"))


def room(name: str) -> tuple[str, str]:
    first, _, rest = name.partition(".")
    return first, rest.partition(".")[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: module_name(path) or "uda_reid")
def test_file_imports_only_lower_floors(path: Path) -> None:
    own = module_name(path)
    for imported in imports(path):
        if not imported.startswith("uda_reid."):
            continue  # the root (`from uda_reid import __version__`) imports nothing, so it makes no cycle
        other = imported.removeprefix("uda_reid.")
        if room(own) == room(other) and room(own)[1]:
            continue  # one meaning that has become a folder
        same_room = room(own)[0] == room(other)[0]
        assert floor(other) < floor(own) or (room(own)[0] == "strategies" and not room(own)[1]), (
            f"{own} (floor {floor(own)}) imports {other} (floor {floor(other)})"
            + (": siblings do not import each other" if same_room else "")
        )


@pytest.mark.parametrize("path", FILES, ids=lambda path: module_name(path) or "uda_reid")
def test_file_imports_third_parties_through_their_doors(path: Path) -> None:
    own = module_name(path)
    for imported in imports(path):
        package = imported.partition(".")[0]
        allowed = DOORS.get(package)
        assert allowed is None or any(own == door or own.startswith(f"{door}.") for door in allowed), (
            f"{own} imports {package}, whose door is {allowed}"
        )


def test_every_floor_is_lived_on() -> None:
    names = {module_name(path) for path in FILES}
    for name in FLOORS:
        assert any(module == name or module.startswith(f"{name}.") for module in names), f"no file on {name!r}"


def test_every_test_file_mirrors_a_module() -> None:
    here = Path(__file__).parent
    unmirrored = {"test_floors.py", "test_find.py", "test_copies.py", "test_docs.py", "test_reading_cost.py"}
    unmirrored |= {"test_remedies.py"}
    unmirrored |= {"test_guided_dropout_replay.py", "test_tampering.py"}
    unmirrored |= {"test_measures.py", "test_properties.py", "test_from_features.py", "test_disagreements.py"}
    unmirrored |= {"test_approximate.py", "test_seeds.py"}  # those above and these: of ops
    unmirrored |= {"test_builders.py", "test_ensure.py"}  # of data
    unmirrored |= {"test_settings.py", "test_profiles.py", "test_resolved.py"}  # of recipe
    unmirrored |= {"test_stopping.py", "test_rollbacks.py", "test_checkpoint_folder.py"}  # of training
    unmirrored |= {"test_cuda.py", "test_compile.py"}  # of training and models
    unmirrored |= {"test_bad_losses.py", "test_scale.py"}  # of updates
    unmirrored |= {"test_ending.py", "test_launched.py"}  # of cli
    for path in here.rglob("test_*.py"):
        if path.name in unmirrored:
            continue
        own = path.parent.relative_to(here) / path.name.removeprefix("test_")
        modules = [root / own for root in (PACKAGE, PACKAGE.parent)]  # of the package, or tests/benchmarks/
        found = any(module.is_file() or module.with_suffix("").is_dir() for module in modules)
        assert found, f"{path} tests no module of that name"
