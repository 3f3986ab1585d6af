"""The adaptation strategies, one file each, and how one is found by its name."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from uda_reid.errors import RecipeError
from uda_reid.options import closest

BUILT_IN: Mapping[str, str] = {
    "adabn": "uda_reid.strategies.adabn:AdaBN",
    "adda": "uda_reid.strategies.adda:ADDA",
    "cluster": "uda_reid.strategies.cluster:Cluster",
    "daam": "uda_reid.strategies.daam:DAAM",
    "guided_dropout": "uda_reid.strategies.guided_dropout:GuidedDropout",
    "pul": "uda_reid.strategies.pul:PUL",
    "source_only": "uda_reid.strategies.source_only:SourceOnly",
}
"""Name -> "module:Class" of the strategies that come with the package."""

GROUP = "uda_reid.strategies"
"""The entry-point group in which other packages offer strategies."""


def known() -> dict[str, str]:
    """Return name -> "module:Class" of every named strategy, built in or offered by an installed package.

    >>> known()["pul"]
    'uda_reid.strategies.pul:PUL'
    """
    # Sorted: which of two packages that offer one name is taken must not depend on the order of sys.path.
    offered = sorted((point.name, point.value) for point in entry_points(group=GROUP))
    return {**dict(offered), **BUILT_IN}


def find(name: str, *, allow_code: bool = False) -> type[Any]:
    """Return the class of a strategy; its module is imported, which runs it.

    Args:
        name: a built-in name, the name of an entry point in the group `uda_reid.strategies`, or the class
            itself as `package.module:Class` or `package.module.Class`.
        allow_code: whether a class that no installed package offers by name may be imported.

    Raises:
        RecipeError: the name is unknown, its module may not or cannot be imported, or what it names is not a strategy.

    >>> find("source_only").__name__
    'SourceOnly'
    """
    names = known()
    if name not in names and not ("." in name or ":" in name):
        close = closest(name, names)
        hint = f"did you mean {close!r}? Known are" if close else "known are"
        others = f"{', '.join(sorted(names))}; or write package.module:Class"
        raise RecipeError(f"strategy {name!r} is unknown; {hint} {others}")
    location = names.get(name, name)
    module, _, attribute = location.rpartition(":" if ":" in location else ".")
    if not module or not attribute:
        raise RecipeError(f"strategy {name!r} names no class; write package.module:Class")
    if not allow_code and f"{module}:{attribute}" not in names.values():
        what = "is code that no installed package offers under a name, and importing it runs it"
        raise RecipeError(f"strategy {name!r} {what}; give --allow-code if you trust it")
    try:
        found = getattr(import_module(module), attribute, None)
    except Exception as error:
        if name in BUILT_IN:
            raise  # our own fault: the traceback is worth more than a line
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        remedy = "install or mend the package that holds it, or put its folder into PYTHONPATH"
        raise RecipeError(f"strategy {name!r}: importing {module} failed ({reason}); {remedy}") from error
    if not isinstance(found, type) or not callable(getattr(found, "adapt", None)):
        what = f"has no {attribute}" if found is None else f"has a {attribute} without adapt(source, target)"
        raise RecipeError(f"strategy {name!r}: {module} {what}; write package.module:Class")
    return found
