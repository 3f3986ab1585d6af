"""The published data sets, one `KnownDataset` each; one more in a layout that is known is one more entry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from uda_reid.data.layouts.layout import Layout
from uda_reid.data.layouts.market import MARKET
from uda_reid.types import Domain, Split


class Published(NamedTuple):
    """The published size of one split: images without junk, identities without junk and distractors."""

    images: int
    identities: int


@dataclass(frozen=True)
class KnownDataset:
    """A published data set, or one protocol of it.

    Args:
        name: the short name used everywhere.
        title: the name its owners gave it.
        aliases: other names it goes by, in lower case, and those that its archives unpack to.
        places: folders it is looked for in, below the data folder, in this order.
        cameras: the number of cameras, counted from 1 in the file names.
        published: split name (`train`, `query`, `gallery`) -> published counts.
        home: where its owners publish it; empty where they no longer do.
        remark: what a user has to know before choosing it.
        layouts: the ways it lies on disk, in the order they are tried; a `manifest.csv` goes before all.
        splits: how many divisions into training and test its protocol has; one is chosen as `name:number`.
    """

    name: str
    title: str
    aliases: tuple[str, ...]
    places: tuple[str, ...]
    cameras: int
    published: Mapping[str, Published]
    home: str = ""
    remark: str = ""
    layouts: tuple[Layout, ...] = (MARKET,)
    splits: int = 1

    @property
    def origin(self) -> str:
        """Where a copy comes from, as a clause."""
        return f"its owners publish it at {self.home}" if self.home else self.remark

    def surprises(self, domain: Domain) -> tuple[str, ...]:
        """Return one line for each way in which a copy on disk differs from what was published."""
        notes = []
        for split, (images, identities) in self.published.items():
            part: Split = getattr(domain, split)
            found = int((part.pids >= 0).sum()), len(set(part.pids[part.pids > 0].tolist()))
            if found != (images, identities):
                notes.append(
                    f"{split} has {found[0]:,} images of {found[1]:,} identities, "
                    f"{self.title} was published with {images:,} of {identities:,}"
                )
        seen: set[int] = set()
        for part in (domain.train, domain.query, domain.gallery):
            seen.update(part.cams.tolist() if part.cams is not None else ())
        strange = sorted(cam for cam in seen if not 1 <= cam <= self.cameras)
        if strange:
            numbers = ", ".join(map(str, strange))
            notes.append(f"has images of camera {numbers}, {self.title} was published with cameras 1 to {self.cameras}")
        return tuple(notes)


_ALL = (
    KnownDataset(
        name="market",
        title="Market-1501",
        aliases=("market1501", "market-1501", "market-1501-v15.09.15"),
        places=("market1501/Market-1501-v15.09.15", "Market-1501-v15.09.15", "market1501", "market"),
        cameras=6,
        published={
            "train": Published(12_936, 751),
            "query": Published(3_368, 750),
            "gallery": Published(15_913, 750),
        },
        home="https://zheng-lab.cecs.anu.edu.au/Project/project_reid.html",
    ),
    KnownDataset(
        name="duke",
        title="DukeMTMC-reID",
        aliases=("dukemtmc", "dukemtmcreid", "dukemtmc-reid"),
        places=(
            "dukemtmcreid/DukeMTMC-reID",
            "dukemtmc-reid/DukeMTMC-reID",
            "dukemtmc/DukeMTMC-reID",
            "duke/DukeMTMC-reID",
            "DukeMTMC-reID",
            "dukemtmcreid",
            "dukemtmc-reid",
            "dukemtmc",
            "duke",
        ),
        cameras=8,
        published={
            "train": Published(16_522, 702),
            "query": Published(2_228, 702),
            "gallery": Published(17_661, 1_110),
        },
        remark="its owners have withdrawn it, so there is no official download",
    ),
)

DATASETS: Mapping[str, KnownDataset] = {known.name: known for known in _ALL}
"""Short name -> data set."""


def find_known(name: str) -> KnownDataset | None:
    """Return the data set called `name`, by its short name, its title or an alias; in whatever case.

    >>> find_known("DukeMTMC-reID").name
    'duke'
    >>> find_known("exp-1_c2") is None
    True
    """
    wanted = name.casefold()
    return next((known for known in _ALL if wanted in {known.name, known.title.casefold(), *known.aliases}), None)
