"""A strategy that turns out every pocket of what it is handed finds no identity and no file name of the target."""

from __future__ import annotations

import functools
import gc
import pickle
import types
import weakref
from collections import deque
from collections.abc import Iterator, Mapping
from copy import copy, deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from uda_reid.data.images import images_of, target_order, unlabelled
from uda_reid.data.images.sealed import _FILES
from uda_reid.errors import DataError
from uda_reid.job import Job, open_domain
from uda_reid.pipeline import one
from uda_reid.run import QUIET, Run
from uda_reid.types import AdaptationResult, Domain, Source, Target

PLAIN = (str, bytes, int, float, complex, bool, type(None), torch.dtype, torch.device, np.dtype)


def inside(thing: Any) -> Iterator[Any]:
    """Yield everything that an object leads to: attributes, slots, items, closures, defaults, owners of methods."""
    if isinstance(thing, Mapping):
        yield from thing.keys()
        yield from thing.values()
    elif isinstance(thing, list | tuple | set | frozenset | deque):
        yield from thing
    elif isinstance(thing, np.ndarray) and thing.dtype == object:
        yield from thing.ravel().tolist()
    if isinstance(thing, types.FunctionType):
        yield from (cell.cell_contents for cell in thing.__closure__ or () if cell != types.CellType())
        yield thing.__defaults__
        yield thing.__kwdefaults__
    elif isinstance(thing, types.MethodType):
        yield thing.__self__
        yield thing.__func__
    elif isinstance(thing, types.BuiltinMethodType):
        yield thing.__self__ if not isinstance(thing.__self__, types.ModuleType) else None
    elif isinstance(thing, functools.partial):
        yield from (thing.func, thing.args, thing.keywords)
    elif isinstance(thing, types.GeneratorType) and thing.gi_frame is not None:
        yield thing.gi_frame.f_locals
    elif isinstance(thing, types.TracebackType):
        yield thing.tb_frame.f_locals
        yield thing.tb_next
    elif isinstance(thing, BaseException):
        yield from (thing.args, thing.__traceback__, thing.__context__, thing.__cause__)
    elif isinstance(thing, weakref.ref):
        yield thing()
        yield getattr(thing, "__callback__", None)
    elif isinstance(thing, property):
        yield from (thing.fget, thing.fset)
    elif isinstance(thing, type):
        yield from (value for name, value in vars(thing).items() if name not in ("__doc__", "__module__"))
        return
    yield getattr(thing, "__dict__", None)
    for kind in type(thing).__mro__:
        for slot in (names,) if isinstance(names := vars(kind).get("__slots__", ()), str) else names:
            yield getattr(thing, slot, None)
    if type(thing).__module__.startswith(("uda_reid", "tests")):
        yield type(thing)
        yield getattr(thing, "__weakref__", None)


def everything(*things: Any) -> Iterator[Any]:
    """Yield what objects lead to over any number of steps; modules, and what only they lead to, stay out."""
    seen: set[int] = set()
    kept, queue = [], deque(things)
    while queue:
        thing = queue.popleft()
        if id(thing) in seen or isinstance(thing, types.ModuleType):
            continue
        seen.add(id(thing))
        kept.append(thing)  # so that no id is given away twice
        yield thing
        if not isinstance(thing, PLAIN):
            queue.extend(inside(thing))


def groups(labels: Any) -> frozenset[frozenset[int]]:
    """Return which rows have one label, whatever the labels are called."""
    rows: dict[int, set[int]] = {}
    for row, label in enumerate(np.asarray(labels).tolist()):
        rows.setdefault(label, set()).add(row)
    return frozenset(map(frozenset, rows.values()))


def secrets(domain: Domain, *things: Any) -> list[str]:
    """Return which file names and identities of a domain's training images the things lead to."""
    names = {path.name for path in domain.train.paths}
    order = target_order(len(domain.train)).numpy()
    people = {groups(domain.train.pids), groups(domain.train.pids[order])}
    found = []
    for thing in everything(*things):
        text = thing.decode(errors="replace") if isinstance(thing, bytes) else str(thing)
        if isinstance(thing, str | bytes | Path) and any(name in text for name in names):
            found.append(f"a file name: {text[:80]}")
        numbers = thing.numpy() if isinstance(thing, torch.Tensor) and thing.device.type == "cpu" else thing
        if isinstance(thing, list | tuple) and thing and all(isinstance(each, int) for each in thing):
            numbers = np.array(thing)
        if isinstance(numbers, np.ndarray) and numbers.shape == (len(domain.train),) and groups(numbers) in people:
            found.append("identities")
    return found


@pytest.fixture
def domain(data: Path) -> Domain:
    return open_domain("beta", data)


@dataclass(frozen=True)
class Spy:
    """Searches what it is handed, before and after it has read images, and adapts nothing."""

    def adapt(self, source: Source, target: Target, *, run: Run = QUIET) -> AdaptationResult:
        encoder = deepcopy(source.encoder)
        target.images.read(torch.arange(len(target.images)), 32, 16)
        run.save("spied", {"done": True})
        run.probe(encoder, 1)
        list(run.progress([1, 2], "spying", 2))
        domain = open_domain("beta", FOLDERS[-1])
        FOUND.append(secrets(domain, target, run, *map(dir, (target, run))))
        return AdaptationResult(encoder, (), {})


FOUND: list[list[str]] = []
FOLDERS: list[Path] = []


def test_strategy_of_others_finds_nothing_in_a_run(data: Path, tmp_path: Path) -> None:
    recipe = (data / "tiny.yaml").read_text().replace("strategy: pul", "strategy: tests.test_tampering:Spy")
    (data / "spy.yaml").write_text(recipe.split("adapt:")[0])
    FOLDERS.append(data)
    job = Job(
        recipe=str(data / "spy.yaml"),
        source="alpha",
        target="beta",
        data=data,
        out=tmp_path / "out",
        profile="paper",
        allow_code=True,
    )
    one(job)
    assert FOUND.pop() == []


@pytest.mark.parametrize("cache", [0, 1 << 30], ids=["decoded anew", "kept"])
def test_images_lead_to_no_file_and_no_identity(domain: Domain, cache: int) -> None:
    target = unlabelled(domain, cache_bytes=cache)
    rows = torch.arange(len(domain.train))
    read = target.images.read(rows, 32, 16)
    assert torch.equal(read, images_of(domain.train).read(target_order(len(rows)), 32, 16))
    assert secrets(domain, target, target.images.read) == []


def error_of(images: Any, rows: Any, height: Any = 32) -> DataError:
    try:
        images.read(torch.tensor([rows]) if isinstance(rows, int) else rows, height, 16)
    except DataError as error:
        error.__traceback__ = error.__traceback__.tb_next if error.__traceback__ else None  # but for this frame
        return error
    raise AssertionError("no error")


def test_errors_lead_to_no_file(domain: Domain) -> None:
    target = unlabelled(domain, cache_bytes=0)
    errors = [error_of(target.images, 999), error_of(target.images, [0, 1])]
    errors += [error_of(target.images, 0, height) for height in (32.5, "32")]
    for path in domain.train.paths:
        path.unlink()
    errors.append(error_of(target.images, 0))
    assert secrets(domain, errors) == []
    assert secrets(domain, error_of(images_of(domain.train), 0))  # where nothing is sealed


def test_the_search_finds_what_is_hidden_badly(domain: Domain) -> None:
    photographs, pids = images_of(domain.train), torch.from_numpy(domain.train.pids)

    def closed() -> int:
        return len(photographs)

    def given(them: Any = None) -> Any:
        return them

    given.__defaults__ = (weakref.ref(photographs),)

    class Slotted:
        __slots__ = ("inner",)

        def __init__(self, inner: Any) -> None:
            self.inner = inner

    def paused() -> Iterator[int]:
        paths = domain.train.paths
        yield len(paths)

    waiting = paused()
    next(waiting)
    deep = Slotted({"deep": [functools.partial(print, pids[target_order(len(pids))] + 7)]})
    surroundings = Run(prober=closed)  # type: ignore[arg-type]
    for pocket in (closed, given, deep, photographs.read, waiting, surroundings, {"pids": domain.train.pids.tolist()}):
        assert secrets(domain, pocket), pocket


def test_copies_read_and_leave_nothing_behind_and_pickles_are_refused(domain: Domain) -> None:
    gc.collect()
    before = set(_FILES)
    target = unlabelled(domain)
    images = target.images
    rows = torch.tensor([3, 0])
    for again in (copy(images), deepcopy(images), deepcopy(target).images):
        assert torch.equal(again.read(rows, 8, 4), images.read(rows, 8, 4))
    with pytest.raises(TypeError, match="stay in their process"):
        pickle.dumps(images)
    assert len(set(_FILES) - before) == 1
    del target, images, again
    gc.collect()
    assert not set(_FILES) - before
