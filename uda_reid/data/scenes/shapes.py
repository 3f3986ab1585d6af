"""Meshes and the few primitives that clothes, hair and bags are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from uda_reid.data.scenes.body import CARRIED, Floats, Ints

SKIN, UPPER, SLEEVES, LOWER, SHOES, HAIR, HAT, BAG = range(8)
"""Rows of the material table."""


@dataclass(frozen=True, eq=False)
class Mesh:
    """Triangles in the rest pose that know their bones and their cloth.

    Args:
        vertices: (V, 3) float32 rest positions, metres.
        faces: (F, 3) int64, anticlockwise seen from outside.
        weights: (V, 37) float32 skin weights.
        texture: (V, 3) float32 place in the cloth, metres: across, depth (negative in front), height.
        tone: (V,) float32 factor on the brightness (hollows, soles, eyes).
        material: (F,) int64 row of the material table.
    """

    vertices: Floats
    faces: Ints
    weights: Floats
    texture: Floats
    tone: Floats
    material: Ints


def triple(*values: float) -> Floats:
    """Return a few numbers as a float32 vector."""
    return np.array(values, np.float32)


def smoothstep(value: Floats) -> Floats:
    """Return a soft step from 0 (at 0 and below) to 1 (at 1 and above)."""
    value = np.clip(value, 0, 1)
    return value * value * (3 - 2 * value)


def solid(
    vertices: Floats,
    faces: Ints,
    weights: Floats,
    material: int,
    *,
    texture: Floats | None = None,
    tone: Floats | float = 1.0,
) -> Mesh:
    """Return a mesh of one material; without a texture, the vertices' own places are it."""
    return Mesh(
        vertices=vertices.astype(np.float32),
        faces=faces,
        weights=weights,
        texture=(vertices if texture is None else texture).astype(np.float32),
        tone=np.broadcast_to(np.asarray(tone, np.float32), len(vertices)),
        material=np.full(len(faces), material),
    )


def join(meshes: Sequence[Mesh]) -> Mesh:
    """Return one mesh made of several."""
    starts = np.cumsum([0, *(len(mesh.vertices) for mesh in meshes)])
    return Mesh(
        vertices=np.concatenate([mesh.vertices for mesh in meshes]),
        faces=np.concatenate([mesh.faces + start for mesh, start in zip(meshes, starts, strict=False)]),
        weights=np.concatenate([mesh.weights for mesh in meshes]),
        texture=np.concatenate([mesh.texture for mesh in meshes]),
        tone=np.concatenate([mesh.tone for mesh in meshes]),
        material=np.concatenate([mesh.material for mesh in meshes]),
    )


def bound(count: int, shares: Mapping[int, Floats | float]) -> Floats:
    """Return (count, 37) float32 skin weights from each bone's share per vertex; rows are scaled to sum to 1."""
    weights = np.zeros((count, CARRIED + 1), np.float32)
    for bone, share in shares.items():
        weights[:, bone] += share
    weights /= weights.sum(1, keepdims=True)
    return weights


def grid_faces(rings: int, around: int, outward: bool) -> Ints:
    """Return the faces of rings of vertices, each ring joined to the next."""
    corner = np.arange(rings * around).reshape(rings, around)
    here, above = corner[:-1], corner[1:]
    right, right_above = np.roll(here, -1, 1), np.roll(above, -1, 1)
    first = np.stack([here, right, right_above], -1).reshape(-1, 3)
    second = np.stack([here, right_above, above], -1).reshape(-1, 3)
    faces = np.concatenate([first, second])
    return faces if outward else faces[:, ::-1].copy()


def loft(
    centres: Floats, across: Floats, depth: Floats, radii: Floats, *, around: int = 16, roundness: float = 2.0
) -> tuple[Floats, Ints]:
    """Return a tube through rings of superellipses.

    Args:
        centres: (n, 3) ring centres.
        across: (3,) or (n, 3) unit vectors, the first axis of each ring.
        depth: (3,) or (n, 3) unit vectors, the second axis.
        radii: (n, 3): along `across`, along `-depth` (front), along `depth` (back). A tiny last ring closes the tube.
        around: vertices per ring.
        roundness: exponent of the superellipse; 2 is an ellipse, more is boxier.

    Returns:
        (n * around, 3) float32 vertices and their faces, facing outwards.
    """
    rings = len(centres)
    across, depth = np.broadcast_to(across, (rings, 3)), np.broadcast_to(depth, (rings, 3))
    angle = np.linspace(0, 2 * np.pi, around, endpoint=False)
    first = np.sign(np.cos(angle)) * np.abs(np.cos(angle)) ** (2 / roundness)
    second = np.sign(np.sin(angle)) * np.abs(np.sin(angle)) ** (2 / roundness)
    reach = np.where(second < 0, radii[:, 1:2], radii[:, 2:3]) * second
    vertices = centres[:, None] + (radii[:, :1] * first)[..., None] * across[:, None]
    vertices = vertices + reach[..., None] * depth[:, None]
    middle = rings // 2
    outward = float(np.cross(across[middle], depth[middle]) @ (centres[-1] - centres[0])) > 0
    return vertices.reshape(-1, 3).astype(np.float32), grid_faces(rings, around, outward)


def ball(centre: Floats, radii: Floats, *, rings: int = 10, around: int = 16) -> tuple[Floats, Ints, Floats]:
    """Return an ellipsoid: vertices, faces, and the unit direction of every vertex."""
    polar = np.linspace(0.02, np.pi - 0.02, rings)
    turn = np.linspace(0, 2 * np.pi, around, endpoint=False)
    flat = np.sin(polar)[:, None]
    height = np.broadcast_to(-np.cos(polar)[:, None], (rings, around))
    directions = np.stack([flat * np.cos(turn), flat * np.sin(turn), height], -1)
    directions = directions.reshape(-1, 3).astype(np.float32)
    return centre + directions * radii, grid_faces(rings, around, True), directions


def rounded_box(centre: Floats, radii: Floats, *, sharpness: float = 5.0) -> tuple[Floats, Ints, Floats]:
    """Return a box with soft edges: vertices, faces, and every vertex's place in the cube [-1, 1]^3."""
    _, faces, directions = ball(np.zeros(3, np.float32), np.ones(3, np.float32), rings=10, around=20)
    stretch = (np.abs(directions) ** sharpness).sum(1, keepdims=True) ** (1 / sharpness)
    cube = (directions / stretch).astype(np.float32)
    return (centre + cube * radii).astype(np.float32), faces, cube
