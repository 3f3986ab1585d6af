"""A small software renderer: triangles to supersampled pixels, cloth and light to colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce

import numpy as np
from PIL import Image

from uda_reid.data.scenes.body import Bools, Floats, Ints
from uda_reid.data.scenes.shapes import Mesh
from uda_reid.data.scenes.wardrobe import Cloth

_FAR = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Light:
    """How a person is lit.

    Args:
        direction: unit vector towards the lamp or the sun, in the person's coordinates.
        sun: colour and strength of the direct light.
        sky: colour and strength of the light from above and around.
        ground: colour and strength of the light from below.
    """

    direction: Floats
    sun: Floats
    sky: Floats
    ground: Floats


@dataclass(frozen=True)
class View:
    """A pinhole camera that looks at a person.

    Args:
        azimuth: degrees around the person; 0 sees the face, 90 the left side, 180 the back.
        elevation: degrees above the horizon.
        distance: metres from the person.
        scale: pixels per metre at the person's distance.
        centre: picture column and row of the person's middle, pixels.
    """

    azimuth: float
    elevation: float
    distance: float
    scale: float
    centre: tuple[float, float]

    def project(self, points: Floats, middle: float) -> Floats:
        """Return (V, 3) float32: column, row and depth of points whose middle is `middle` metres above the floor."""
        azimuth, elevation = np.deg2rad(self.azimuth), np.deg2rad(self.elevation)
        towards = np.array(
            [np.sin(azimuth) * np.cos(elevation), -np.cos(azimuth) * np.cos(elevation), np.sin(elevation)]
        )
        right = np.array([np.cos(azimuth), np.sin(azimuth), 0.0])
        up = np.cross(towards, right)
        local = (points - np.array([0, 0, middle])) @ np.stack([right, up, towards], 1)
        depth = self.distance - local[:, 2]
        zoom = self.scale * self.distance / depth
        column = self.centre[0] + zoom * local[:, 0]
        return np.stack([column, self.centre[1] - zoom * local[:, 1], depth], 1).astype(np.float32)


def vertex_normals(vertices: Floats, faces: Ints) -> Floats:
    """Return (V, 3) float32 unit normals, the area-weighted mean over the faces around each vertex."""
    corner = vertices[faces]
    normal = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
    summed = np.zeros((len(vertices), 3), np.float32)
    flat = faces.T.ravel()
    for axis in range(3):
        summed[:, axis] = np.bincount(flat, np.tile(normal[:, axis], 3), len(vertices))
    unit: Floats = summed / np.maximum(np.linalg.norm(summed, axis=1, keepdims=True), 1e-9)
    return unit


@dataclass(frozen=True, eq=False)
class Hits:
    """The visible surface: for each covered pixel its number, its face, and where in the face it lies."""

    pixel: Ints
    face: Ints
    corner: Floats


def _candidates(corner: Floats, height: int, width: int) -> tuple[Ints, Ints, Ints]:
    """Return face, column and row of every pixel in the bounding box of a face that is seen from the front."""
    flat = corner[:, :, :2]
    one, two = flat[:, 1] - flat[:, 0], flat[:, 2] - flat[:, 0]
    area = one[:, 0] * two[:, 1] - two[:, 0] * one[:, 1]
    least, most = (reduce(choose, (flat[:, 0], flat[:, 1], flat[:, 2])) for choose in (np.minimum, np.maximum))
    low = np.maximum(np.ceil(least - 0.5), 0).astype(np.int64)
    high = np.minimum(np.floor(most - 0.5), (width - 1, height - 1)).astype(np.int64)
    size = np.maximum(high - low + 1, 0)
    room = size[:, 0] * size[:, 1]
    seen = np.flatnonzero((area < -1e-6) & (room > 0))
    face = np.repeat(seen, room[seen])
    place = np.arange(len(face)) - np.repeat(np.cumsum(room[seen]) - room[seen], room[seen])
    down = place // size[face, 0]
    return face, low[face, 0] + place - down * size[face, 0], low[face, 1] + down


def rasterise(points: Floats, faces: Ints, height: int, width: int) -> Hits:
    """Return what is nearest to the camera at every pixel centre.

    Args:
        points: (V, 3) float32 column, row, depth.
        faces: (F, 3) int64; faces seen from behind are dropped.
        height: rows of the picture.
        width: columns of the picture.
    """
    corner = points[faces]
    face, column, row = _candidates(corner, height, width)
    # Barycentric coordinates are affine in column and row; the gradients belong to the face.
    x, y = corner[:, :, 0], corner[:, :, 1]
    area = (x[:, 1] - x[:, 0]) * (y[:, 2] - y[:, 0]) - (x[:, 2] - x[:, 0]) * (y[:, 1] - y[:, 0])
    area[area == 0] = 1
    first = np.stack([y[:, 2] - y[:, 0], x[:, 0] - x[:, 2]], 1) / area[:, None]
    second = np.stack([y[:, 0] - y[:, 1], x[:, 1] - x[:, 0]], 1) / area[:, None]
    px = (column + 0.5).astype(np.float32) - x[face, 0]
    py = (row + 0.5).astype(np.float32) - y[face, 0]
    b1 = first[face, 0] * px + first[face, 1] * py
    b2 = second[face, 0] * px + second[face, 1] * py
    inside = np.flatnonzero((b1 >= -1e-4) & (b2 >= -1e-4) & (b1 + b2 <= 1 + 1e-4))
    b1, b2, face = b1[inside], b2[inside], face[inside]
    z = corner[:, :, 2]
    depth = z[face, 0] + b1 * (z[face, 1] - z[face, 0]) + b2 * (z[face, 2] - z[face, 0])
    nearest = np.full(height * width, _FAR)
    pixel = (row[inside] * width + column[inside]).astype(np.int64)
    np.minimum.at(nearest, pixel, ((depth * 1e5).astype(np.int64) << 24) | np.arange(len(inside)))
    pixel = np.flatnonzero(nearest != _FAR)
    winner = nearest[pixel] & 0xFFFFFF
    b1, b2 = b1[winner], b2[winner]
    return Hits(pixel, face[winner], np.stack([1 - b1 - b2, b1, b2], 1))


@lru_cache(maxsize=1)
def _folds() -> Floats:
    """Return a (256, 256) float32 tile of smooth bumps in [-1, 1], one pixel per 4 mm of cloth."""
    rng = np.random.default_rng(7)
    total = np.zeros((256, 256), np.float32)
    for cells, share in ((8, 0.6), (18, 0.3)):
        grid = rng.random((cells, cells // 2)).astype(np.float32)  # wider than high: folds run across the limbs
        mirrored = np.concatenate([grid, grid[:, ::-1]], 1)  # mirrored, so that the tile has no seam
        grid = np.concatenate([mirrored, mirrored[::-1]])
        total += share * np.asarray(Image.fromarray(grid).resize((256, 256), Image.Resampling.BICUBIC))
    total -= total.mean()
    tile: Floats = total / np.abs(total).max()
    return tile


def _pattern(cloth: Cloth, place: Floats) -> Bools:
    """Return where the pattern's second colour shows, (n,) bool."""
    across, depth, height = place.T
    front = depth < 0
    shown: Bools = np.zeros(len(place), bool)
    match cloth.pattern:
        case "hoops":
            shown = np.sin(height * cloth.scale) > 0.1
        case "stripes":
            shown = np.sin(across * 1.6 * cloth.scale) > 0.3
        case "check":
            shown = (np.sin(height * cloth.scale) > 0.35) ^ (np.sin(across * cloth.scale) > 0.35)
        case "block":
            shown = height < -0.28
        case "print":
            shown = front & (np.abs(across) < 0.085) & (np.abs(height + 0.17) < 0.075)
        case "open":
            shown = front & (np.abs(across) < 0.03 + 0.12 * np.clip(-height, 0, 0.5))
        case "speckle":
            first = np.sin(95 * across + 3 * np.sin(40 * height) + 60 * depth)
            shown = first * np.sin(100 * height + 3 * np.sin(37 * across)) > 0.2
        case "strands":
            shown = np.sin(across * 220 + 9 * depth * 40) > 0.75
    return shown


def _strap(cloth: Cloth, place: Floats) -> Bools:
    across, depth, height = place.T
    if cloth.strap == "both":
        both: Bools = (depth < 0.03) & (np.abs(np.abs(across) - 0.105) < 0.022) & (height > -0.27)
        return both
    sign = 1 if cloth.strap == "left" else -1
    line = sign * across * 0.8 + (height + 0.27) * 0.6
    one: Bools = (np.abs(line) < 0.022) & (height > -0.5)
    return one


def paint(cloths: Sequence[Cloth], material: Ints, place: Floats) -> Floats:
    """Return the unlit colour of surface points.

    Args:
        cloths: the material table.
        material: (n,) int64 row of the table.
        place: (n, 3) float32 place in the cloth, metres.

    Returns:
        (n, 3) float32 colours.
    """
    colour = np.array([cloth.colour for cloth in cloths], np.float32)[material]
    for number, cloth in enumerate(cloths):
        if cloth.pattern == "plain" and cloth.strap == "none":
            continue
        rows = np.flatnonzero(material == number)
        if cloth.pattern == "strands":
            colour[rows[_pattern(cloth, place[rows])]] *= 1.5
        else:
            colour[rows[_pattern(cloth, place[rows])]] = cloth.second
        if cloth.strap != "none":
            colour[rows[_strap(cloth, place[rows])]] = cloth.strap_colour
    return colour


def shade(hits: Hits, mesh: Mesh, posed: Floats, cloths: Sequence[Cloth], light: Light) -> Floats:
    """Return the lit colours of the visible pixels, (n, 3) float32."""
    normals = vertex_normals(posed, mesh.faces)
    corners = mesh.faces[hits.face]
    table = np.concatenate([normals, mesh.texture, mesh.tone[:, None]], 1)
    values = np.einsum("nk,nkc->nc", hits.corner, table[corners])
    normal, place, tone = values[:, :3], values[:, 3:6], values[:, 6]
    material = mesh.material[hits.face]
    column = ((place[:, 0] + 0.6 * place[:, 1]) * 250).astype(np.int64) % 256
    row = (place[:, 2] * 250).astype(np.int64) % 256
    bumps = _folds()[row, column]
    wrinkle = np.array([cloth.wrinkle for cloth in cloths], np.float32)[material]
    normal[:, 2] += 0.2 * wrinkle * bumps
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-6)
    direct = np.clip(0.12 + 0.88 * (normal @ light.direction), 0, None)[:, None] * light.sun
    above = (0.5 + 0.5 * normal[:, 2:3]) * light.sky + (0.5 - 0.5 * normal[:, 2:3]) * light.ground
    fold = 1 + 0.07 * wrinkle * bumps
    lit: Floats = paint(cloths, material, place) * (direct + above) * (tone * fold)[:, None]
    return lit


def cover(hits: Hits, colours: Floats, height: int, width: int, oversampling: int) -> Floats:
    """Return the supersampled pixels averaged into (height, width, 4) float32: colours times coverage, and coverage."""
    buffer = np.zeros((height * oversampling * width * oversampling, 4), np.float32)
    buffer[hits.pixel, :3] = colours
    buffer[hits.pixel, 3] = 1
    cells = buffer.reshape(height, oversampling, width, oversampling, 4)
    summed = sum(cells[:, row, :, column] for row in range(oversampling) for column in range(oversampling))
    return np.asarray(summed / oversampling**2, np.float32)
