"""Cameras in the names of files and folders of nobody's published layout."""

from __future__ import annotations

import re
from collections.abc import Sequence

from uda_reid.data.layouts.labels import Row

_IN_NAME = re.compile(r"(?<![a-z0-9])(?:(?<=_)c(\d+)|c(\d+)_|cam(?:era)?[-_]?(\d+))", re.ASCII | re.IGNORECASE)
_FOLDER = re.compile(r"c(?:am(?:era)?)?[-_ ]?(\d+)|cam(?:era)?[-_ ]([a-z])", re.ASCII | re.IGNORECASE)


def camera_in(name: str) -> str:
    """Return the digits of the camera in a file's name, or nothing.

    A camera is written `_c2`, `c2_`, `cam2` or `camera_2`, not inside a longer word.

    >>> [camera_in(name) for name in ("0002_c1s1_000451_03.jpg", "cam04-17.png", "c3_12.jpg", "abc3_1.jpg")]
    ['1', '04', '3', '']
    """
    return _first(_IN_NAME.search(name))


def camera_of(folder: str) -> str:
    """Return the number or letter of the camera that a folder is called after, or nothing.

    >>> [camera_of(name) for name in ("cam1", "Camera_02", "c3", "cam_b", "camilla", "0003")]
    ['1', '02', '3', 'b', '', '']
    """
    return _first(_FOLDER.fullmatch(folder)).lower()


def settled(rows: Sequence[Row]) -> tuple[list[Row], str]:
    """Return the rows, without cameras unless all of them have one, and a note on what the file names say."""
    named = [row for row in rows if row.camera]
    if not named:
        return list(rows), "no file name holds a camera, so cameras are unknown; give a manifest.csv if you know them"
    example = f"as in {named[0].path.name}; give a manifest.csv if that is wrong"
    if len(named) < len(rows):
        note = f"only {len(named)} of {len(rows)} file names hold a camera, so cameras count as unknown, {example}"
        return [row._replace(camera="") for row in rows], note
    cameras = len({int(row.camera) for row in rows})
    return list(rows), f"{cameras} camera{'s' if cameras > 1 else ''} read from the file names, {example}"


def _first(match: re.Match[str] | None) -> str:
    return next((group for group in match.groups() if group), "") if match else ""
