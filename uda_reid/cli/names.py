"""The command that lists what can be named."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer
from rich.table import Table

from uda_reid.cli.arguments import output
from uda_reid.terminal import words

app = typer.Typer()


class Kind(StrEnum):
    """What can be listed."""

    datasets = "datasets"
    recipes = "recipes"
    strategies = "strategies"
    encoders = "encoders"


@app.command("list", epilog="Example: `uda-reid list recipes`")
def list_(
    kind: Annotated[Kind | None, typer.Argument(help="What to list (default: everything).")] = None,
) -> None:
    """List the data sets, recipes, strategies and encoders that can be named."""
    table_output = output()
    for what in [kind] if kind else list(Kind):
        table = Table(title=words(what.value, "bold"), title_justify="left", show_header=False)
        table.add_column(no_wrap=True)
        table.add_column()
        for name, meaning in _known(what).items():
            table.add_row(words(name), words(meaning))
        table_output.print(table)


def _known(kind: Kind) -> dict[str, str]:
    if kind is Kind.recipes:
        from uda_reid.recipe import recipes

        return recipes()
    if kind is Kind.strategies:
        from uda_reid.strategies import known

        return known()
    if kind is Kind.encoders:
        from uda_reid.models.encoder import BACKBONES

        return {name: str(meaning) for name, meaning in BACKBONES.items()}
    from uda_reid.data.layouts import DATASETS
    from uda_reid.data.scenes import SCENES

    scenes = dict.fromkeys(SCENES, "built-in scene, drawn on first use")
    return {**scenes, **{name: f"{known.title}; {known.origin}" for name, known in DATASETS.items()}}
