"""RandPerson: drawn people to train on, in one folder, identity, scene and camera in the file names."""

from __future__ import annotations

import re
from pathlib import Path

from uda_reid.data.layouts.files import first_image, images_in
from uda_reid.data.layouts.labels import Parts, Row, arrange
from uda_reid.data.layouts.layout import Layout
from uda_reid.data.layouts.market import left_out

_NAME = re.compile(r"(?:id)?(\d+)_s(\d+)_c(\d+)_f\d+\.", re.ASCII)
"""`000006_s02_c02_f000264.jpg`; some copies are described as `id6_s2_c2_f6.jpg`."""


def is_randperson(folder: Path) -> bool:
    """Return whether the first image that lies in `folder` is named like RandPerson's."""
    first = first_image(folder)
    return first is not None and _NAME.match(first.name) is not None


def read_randperson(folder: Path) -> Parts:
    """Read RandPerson; all images train. A scene's camera is one camera, numbered from 1 in the order of scenes.

    Raises:
        DataError: no image has an identity.
    """
    rows: list[Row] = []
    strange: list[Path] = []
    for path in images_in(folder):
        match = _NAME.match(path.name)
        if match:
            pid, scene, camera = match.groups()
            rows.append(Row(path, pid, f"s{scene:0>4}c{camera:0>4}", "train", str(path)))
        else:
            strange.append(path)
    parts = arrange(rows, folder=folder)
    return parts._replace(notes=(*left_out(strange, len(rows) + len(strange)), *parts.notes))


RANDPERSON = Layout(
    "RandPerson's subset",
    "images called 000006_s02_c02_f000264.jpg and so on (identity, scene, camera, frame)",
    recognises=is_randperson,
    read=lambda folder, split: read_randperson(folder),
)
