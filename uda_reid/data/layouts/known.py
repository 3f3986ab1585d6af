"""The published data sets, one `KnownDataset` each; one more in a layout that is known is one more entry."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from uda_reid.data.layouts.cuhk03 import CLASSIC_DETECTED, CLASSIC_LABELLED, DETECTED, LABELLED, TEST_SETS
from uda_reid.data.layouts.dataset import KnownDataset, Published
from uda_reid.data.layouts.mars import MARS
from uda_reid.data.layouts.msmt17 import MSMT17, MSMT17_TRAIN
from uda_reid.data.layouts.personx import PERSONX
from uda_reid.data.layouts.randperson import RANDPERSON
from uda_reid.data.layouts.tracklets import TRACKLETS
from uda_reid.data.layouts.two_cameras import CUHK01, HALVES, PKU, VIPER

_CUHK = "http://www.ee.cuhk.edu.hk/~xgwang/CUHK_identification.html"
_CUHK03 = ("cuhk03-np", "cuhk03_np", "cuhk03/cuhk03-np", "cuhk03", "cuhk03_release")

_MSMT17 = (
    "msmt17/MSMT17_V1",
    "msmt17/MSMT17_V2",
    "msmt17v1/MSMT17_V1",
    "msmt17v2/MSMT17_V2",
    "MSMT17_V1",
    "MSMT17_V2",
    "msmt17",
)
_EDITIONS = ("V1", "V2")

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
    KnownDataset(
        name="msmt17",
        title="MSMT17",
        aliases=("msmt17_v1", "msmt17_v2", "msmt17v1", "msmt17v2"),
        places=_MSMT17,
        cameras=15,
        published={
            "train": Published(32_621, 1_041),
            "query": Published(11_659, 3_060),
            "gallery": Published(82_161, 3_060),
        },
        home="http://www.pkuvmc.com/publications/msmt17.html",
        layouts=MSMT17,
        editions=_EDITIONS,
    ),
    KnownDataset(
        name="msmt17-train",
        title="MSMT17 list_train",
        aliases=("msmt17_train",),
        places=_MSMT17,
        cameras=15,
        published={
            "train": Published(30_248, 1_041),
            "query": Published(11_659, 3_060),
            "gallery": Published(82_161, 3_060),
        },
        home="http://www.pkuvmc.com/publications/msmt17.html",
        layouts=MSMT17_TRAIN,
        variant=True,
        editions=_EDITIONS,
    ),
    KnownDataset(
        name="occluded-duke",
        title="Occluded-DukeMTMC",
        aliases=("occluded_duke", "occludedduke", "occluded-dukemtmc-reid", "occ-duke"),
        places=(
            "occluded_duke/Occluded_Duke",
            "occluded-duke/Occluded_Duke",
            "dukemtmcreid/Occluded_Duke",
            "Occluded_Duke",
            "occluded-duke",
        ),
        cameras=8,
        published={
            "train": Published(15_618, 702),
            "query": Published(2_210, 519),
            "gallery": Published(17_661, 1_110),
        },
        remark="its owners publish file names only, its images are those of DukeMTMC-reID, which is withdrawn",
    ),
    KnownDataset(
        name="personx",
        title="PersonX",
        aliases=("personx-subset1", "personx_subset1"),
        places=("personx/PersonX", "personx/subset1", "personx"),
        cameras=6,
        published={
            "train": Published(9_840, 410),
            "query": Published(5_136, 856),
            "gallery": Published(30_816, 856),
        },
        home="https://github.com/sxzrt/Instructions-of-the-PersonX-dataset",
        layouts=(PERSONX,),
    ),
    KnownDataset(
        name="randperson",
        title="RandPerson",
        aliases=("randperson_subset", "randperson-subset"),
        places=(
            "randperson_subset/randperson_subset",
            "randperson/randperson_subset",
            "randperson/images/subset",
            "randperson/subset",
            "randperson_subset",
            "randperson",
        ),
        cameras=19,
        published={"train": Published(132_145, 8_000)},
        home="https://github.com/VideoObjectSearch/RandPerson",
        layouts=(RANDPERSON,),
    ),
    KnownDataset(
        name="mars",
        title="MARS",
        aliases=("mars-v160809",),
        places=("mars/MARS-v160809", "mars", "MARS-v160809"),
        cameras=6,
        published={
            "train": Published(509_914, 625),
            "query": Published(1_980, 626),
            "gallery": Published(9_330, 620),
        },
        home="https://zheng-lab.cecs.anu.edu.au/Project/project_mars.html",
        layouts=(MARS,),
    ),
    KnownDataset(
        name="duke-video",
        title="DukeMTMC-VideoReID",
        aliases=("dukemtmc-vidreid", "dukemtmcvidreid", "dukevideo"),
        places=(
            "dukemtmc-vidreid/DukeMTMC-VideoReID",
            "duke-video/DukeMTMC-VideoReID",
            "DukeMTMC-VideoReID",
            "dukemtmc-vidreid",
            "duke-video",
        ),
        cameras=8,
        published={
            "train": Published(369_656, 702),
            "query": Published(702, 702),
            "gallery": Published(2_636, 1_110),
        },
        remark="its owners have withdrawn it, so there is no official download",
        layouts=(TRACKLETS,),
    ),
    KnownDataset(
        name="cuhk03",
        title="CUHK03-NP detected",
        aliases=("cuhk03-np", "cuhk03_np", "cuhk03_release", "cuhk03-detected", "cuhk03-np-detected"),
        places=_CUHK03,
        cameras=10,
        published={
            "train": Published(7_365, 767),
            "query": Published(1_400, 700),
            "gallery": Published(5_332, 700),
        },
        home=_CUHK,
        layouts=DETECTED,
    ),
    KnownDataset(
        name="cuhk03-labelled",
        title="CUHK03-NP labelled",
        aliases=("cuhk03-labeled", "cuhk03-np-labelled", "cuhk03-np-labeled"),
        places=_CUHK03,
        cameras=10,
        published={
            "train": Published(7_368, 767),
            "query": Published(1_400, 700),
            "gallery": Published(5_328, 700),
        },
        home=_CUHK,
        layouts=LABELLED,
        variant=True,
    ),
    KnownDataset(
        name="cuhk03-classic",
        title="CUHK03 detected",
        aliases=("cuhk03-classic-detected", "cuhk03-detected-classic"),
        places=_CUHK03,
        cameras=10,
        published={"train": Published(0, 1_367), "query": Published(0, 100), "gallery": Published(0, 100)},
        home=_CUHK,
        remark="its classic protocol is scored by single-gallery-shot CMC",
        layouts=CLASSIC_DETECTED,
        splits=TEST_SETS,
    ),
    KnownDataset(
        name="cuhk03-labelled-classic",
        title="CUHK03 labelled",
        aliases=("cuhk03-labeled-classic", "cuhk03-classic-labelled", "cuhk03-classic-labeled"),
        places=_CUHK03,
        cameras=10,
        published={"train": Published(0, 1_367), "query": Published(0, 100), "gallery": Published(0, 100)},
        home=_CUHK,
        remark="its classic protocol is scored by single-gallery-shot CMC",
        layouts=CLASSIC_LABELLED,
        splits=TEST_SETS,
    ),
    KnownDataset(
        name="cuhk01",
        title="CUHK01",
        aliases=("cuhk-01",),
        places=("cuhk01/campus", "cuhk01"),
        cameras=2,
        published={"train": Published(1_940, 485), "query": Published(972, 486), "gallery": Published(972, 486)},
        home=_CUHK,
        layouts=(CUHK01,),
        splits=2 * HALVES,
    ),
    KnownDataset(
        name="viper",
        title="VIPeR",
        aliases=("viper.v1.0",),
        places=("viper/VIPeR", "VIPeR.v1.0/VIPeR", "viper", "VIPeR.v1.0"),
        cameras=2,
        published={"train": Published(632, 316), "query": Published(316, 316), "gallery": Published(316, 316)},
        home="https://vision.soe.ucsc.edu/node/178",
        layouts=(VIPER,),
        splits=2 * HALVES,
    ),
    KnownDataset(
        name="pku",
        title="PKU-Reid",
        aliases=("pku-reid", "pku_reid", "pku-reid-dataset", "pkuv1a_128x48"),
        places=(
            "PKU-Reid-Dataset/PKUv1a_128x48",
            "PKU-Reid/PKUv1a_128x48",
            "pku/PKUv1a_128x48",
            "PKUv1a_128x48",
            "PKU-Reid-Dataset",
            "pku",
        ),
        cameras=2,
        published={"train": Published(912, 57), "query": Published(0, 57), "gallery": Published(0, 57)},
        home="https://github.com/charliememory/PKU-Reid-Dataset",
        layouts=(PKU,),
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


def known_at(folder: Path) -> KnownDataset | None:
    """Return the data set that is published in folders like the last ones of a path, as `cuhk01/campus`."""
    parts = [part.casefold() for part in folder.parts]
    for known in _ALL:
        for place in known.places:
            tail = place.casefold().split("/")
            if len(tail) > 1 and parts[-len(tail) :] == tail:
                return known
    return None
