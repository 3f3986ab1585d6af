"""What is known of a published data set: its names, places, layouts and counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from uda_reid.data.layouts.labels import count
from uda_reid.data.layouts.layout import Layout
from uda_reid.data.layouts.market import MARKET
from uda_reid.data.layouts.pytorch import PYTORCH
from uda_reid.types import JUNK, UNKNOWN, Domain, Split


class Published(NamedTuple):
    """The published size of one split: images without junk, identities without junk and distractors.

    There are 0 images where their number differs between the set's divisions.
    """

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
        variant: whether its folder holds other protocols too, which only its own layouts tell apart.
        editions: how names end that mean one of its editions, and those of its folders.
    """

    name: str
    title: str
    aliases: tuple[str, ...]
    places: tuple[str, ...]
    cameras: int
    published: Mapping[str, Published]
    home: str = ""
    remark: str = ""
    layouts: tuple[Layout, ...] = (MARKET, PYTORCH)
    splits: int = 1
    variant: bool = False
    editions: tuple[str, ...] = ()

    @property
    def told_by_table(self) -> bool:
        """Whether a table of its images can be this data set: a table knows of no protocols and no divisions."""
        return not self.variant and self.splits == 1

    @property
    def origin(self) -> str:
        """Where a copy comes from, as a clause."""
        return f"its owners publish it at {self.home}" if self.home else self.remark

    def surprises(self, domain: Domain) -> tuple[str, ...]:
        """Return one line for each way in which a copy on disk differs from what was published."""
        notes = []
        for split, (images, identities) in self.published.items():
            part: Split = getattr(domain, split)
            found = int((part.pids != JUNK).sum()), len(set(part.pids[part.pids > 0].tolist()))
            unlabelled = bool((part.pids == UNKNOWN).any())
            if found != (images or found[0], 0 if unlabelled else identities):
                published = f"{images:,} of {identities:,}" if images else f"{identities:,} identities"
                notes.append(
                    f"{split} has {count(found[0], 'image')} of {count(found[1], 'identity', 'identities')}, "
                    f"{self.title} was published with {published}"
                )
        seen: set[int] = set()
        for part in (domain.train, domain.query, domain.gallery):
            seen.update(part.cams.tolist() if part.cams is not None else ())
        strange = sorted(cam for cam in seen if not 1 <= cam <= self.cameras)
        if strange:
            numbers = ", ".join(map(str, strange))
            notes.append(f"has images of camera {numbers}, {self.title} was published with cameras 1 to {self.cameras}")
        return tuple(notes)
