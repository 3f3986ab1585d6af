"""The people's bodies: sixteen shapes, their measures, and how a walking pose moves every vertex."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from uda_reid.shipped import shipped

Floats = npt.NDArray[np.floating[Any]]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

HEAD, TORSO, UPPER_ARM, FOREARM, HAND, THIGH, SHIN, FOOT = 0, 2, 3, 4, 5, 6, 7, 8
"""The pack's region labels."""
MALE_SHAPES = 8
"""Shapes below this number are male, the others female."""
CARRIED = 36
"""A bone of our own after the pack's 36: it hangs upright from a hand, so that carried bags do not swing like clubs."""


@dataclass(frozen=True, eq=False)
class BodyPack:
    """The shipped bodies.

    Args:
        rest: (16, V, 3) float32, metres, z up, facing -y, arms lowered and apart.
        faces: (F, 3) int64 vertex numbers, anticlockwise seen from outside.
        weights: (V, 37) float32 skin weights; the last column is `CARRIED` and is zero here.
        bone: bone name -> number.
        parents: (36,) int64 parent of each bone, always a smaller number; -1 for the root.
        heads: (16, 36, 3) float32 joint positions.
        region: (V,) int64 region label.
    """

    rest: Floats
    faces: Ints
    weights: Floats
    bone: dict[str, int]
    parents: Ints
    heads: Floats
    region: Ints


@lru_cache(maxsize=1)
def body_pack() -> BodyPack:
    """Return the shipped bodies, read once per process."""
    with np.load(shipped("assets") / "body_pack.npz", allow_pickle=False) as pack:
        index = pack["bone_index"].astype(np.int64)
        share = pack["bone_weight"].astype(np.float32)
        weights = np.zeros((len(index), CARRIED + 1), np.float32)
        np.add.at(weights, (np.arange(len(index))[:, None], index), share / share.sum(1, keepdims=True))
        return BodyPack(
            rest=pack["vertices"].astype(np.float32),
            faces=pack["faces"].astype(np.int64),
            weights=weights,
            bone={str(name): number for number, name in enumerate(pack["bones"])},
            parents=pack["parents"].astype(np.int64),
            heads=pack["heads"].astype(np.float32),
            region=pack["region"].astype(np.int64),
        )


@dataclass(frozen=True)
class Pose:
    """One moment of a walk.

    Args:
        phase: place in the gait cycle, 0 to 1.
        swing: how far the thighs swing, degrees; 0 stands still.
        elbows: bend of the left and the right elbow, degrees.
        arms_out: how far the upper arms stay away from the body, degrees.
        lean: forward lean of the trunk, degrees.
        turn: turn of the head, degrees.
    """

    phase: float
    swing: float
    elbows: tuple[float, float] = (20.0, 20.0)
    arms_out: float = 9.0
    lean: float = 3.0
    turn: float = 0.0


def _rotation(axis: str, degrees: float) -> npt.NDArray[np.float64]:
    angle = np.deg2rad(degrees)
    cosine, sine = float(np.cos(angle)), float(np.sin(angle))
    if axis == "x":
        return np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]], dtype=np.float64)
    if axis == "y":
        return np.array([[cosine, 0, sine], [0, 1, 0], [-sine, 0, cosine]], dtype=np.float64)
    return np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]], dtype=np.float64)


def _joint_rotations(shape: int, pose: Pose) -> dict[str, npt.NDArray[np.float64]]:
    bone, heads = body_pack().bone, body_pack().heads[shape].astype(np.float64)
    turns = {
        "spine04": _rotation("x", pose.lean),
        "spine02": _rotation("z", 0.18 * pose.swing * np.sin(2 * np.pi * pose.phase)),
        "head": _rotation("z", pose.turn),
    }
    for side, sign, elbow in (("L", 1.0, pose.elbows[0]), ("R", -1.0, pose.elbows[1])):
        angle = 2 * np.pi * pose.phase + (0 if side == "L" else np.pi)
        hip, ankle = heads[bone[f"upperleg01.{side}"]], heads[bone[f"foot.{side}"]]
        shoulder, forearm = heads[bone[f"upperarm01.{side}"]], heads[bone[f"lowerarm01.{side}"]]
        apart = np.rad2deg(np.arctan2(abs(ankle[0] - hip[0]), hip[2] - ankle[2])) - 1.0
        lowered = np.rad2deg(np.arctan2(abs(forearm[0] - shoulder[0]), shoulder[2] - forearm[2])) - pose.arms_out
        forward = -pose.swing * np.sin(angle)
        knee = 4 + 1.7 * pose.swing * max(0.0, float(np.cos(angle))) ** 2
        turns[f"upperleg01.{side}"] = _rotation("x", forward) @ _rotation("y", sign * apart)
        turns[f"lowerleg01.{side}"] = _rotation("x", knee)
        turns[f"upperarm01.{side}"] = _rotation("x", -0.75 * forward + 4) @ _rotation("y", sign * lowered)
        turns[f"lowerarm01.{side}"] = _rotation("x", 45 - elbow)
    return turns


def bone_matrices(shape: int, pose: Pose, carrying: str = "R") -> Floats:
    """Return where a pose takes every bone.

    Args:
        shape: body shape, 0 to 15.
        pose: the pose.
        carrying: which hand the `CARRIED` bone hangs from, `L` or `R`.

    Returns:
        (37, 3, 4) float32 affine maps from the rest pose to the posed body.
    """
    pack = body_pack()
    heads = pack.heads[shape].astype(np.float64)
    turns = {pack.bone[name]: turn for name, turn in _joint_rotations(shape, pose).items()}
    matrices = np.zeros((CARRIED + 1, 4, 4))
    for number, parent in enumerate(pack.parents):
        matrix = matrices[parent] if parent >= 0 else np.eye(4)
        if number in turns:
            local = np.eye(4)
            local[:3, :3] = turns[number]
            local[:3, 3] = heads[number] - turns[number] @ heads[number]
            matrix = matrix @ local
        matrices[number] = matrix
    wrist = pack.bone[f"wrist.{carrying}"]
    matrices[CARRIED] = np.eye(4)
    matrices[CARRIED, :3, 3] = (matrices[wrist] @ np.append(heads[wrist], 1.0))[:3]
    return matrices[:, :3].astype(np.float32)


def skin(vertices: Floats, weights: Floats, matrices: Floats) -> Floats:
    """Return vertices moved by their bones (linear blend skinning).

    Args:
        vertices: (V, 3) float32 rest positions.
        weights: (V, 37) float32, rows sum to 1.
        matrices: (37, 3, 4) float32 from `bone_matrices`.

    Returns:
        (V, 3) float32 posed positions.
    """
    # Not a matrix product: how BLAS adds up depends on the number of threads, and pictures must not.
    flat = np.ascontiguousarray(matrices.reshape(len(matrices), 12).T)
    blended = np.einsum("vb,kb->vk", weights, flat).reshape(-1, 3, 4)
    posed: Floats = np.einsum("vij,vj->vi", blended[:, :, :3], vertices) + blended[:, :, 3]
    return posed


@dataclass(frozen=True, eq=False)
class Measures:
    """What a tailor wants to know about one body shape, in metres.

    Args:
        heights: (K,) rising stations from the ankles to the base of the neck.
        half_width: (K,) trunk (or both legs) at each station.
        front: (K,) how far the body reaches to the front (-y).
        back: (K,) how far it reaches to the back (+y).
        arm: radius at five places from the shoulder to the wrist.
        leg: radius at five places from the hip to the ankle.
        skull: centre and radii of the skull, (2, 3).
        foot: lowest and highest corner of the left foot, (2, 3).
    """

    heights: Floats
    half_width: Floats
    front: Floats
    back: Floats
    arm: Floats
    leg: Floats
    skull: Floats
    foot: Floats


def limb(shape: int, kind: str, side: str) -> Floats:
    """Return the three joints of an arm (shoulder, elbow, wrist) or a leg (hip, knee, ankle), (3, 3) float32."""
    names = ("upperarm01", "lowerarm01", "wrist") if kind == "arm" else ("upperleg01", "lowerleg01", "foot")
    pack = body_pack()
    joints: Floats = pack.heads[shape][[pack.bone[f"{name}.{side}"] for name in names]]
    return joints


def along(joints: Floats, places: Floats) -> Floats:
    """Return points at places 0 to 2 along three joints (1 is the middle joint), (n, 3) float32."""
    first, second = np.clip(places, None, 1.0)[:, None], np.clip(places - 1, 0, None)[:, None]
    points: Floats = joints[0] + first * (joints[1] - joints[0]) + second * (joints[2] - joints[1])
    return points


def _limb_radii(shape: int, kind: str, regions: tuple[int, int]) -> Floats:
    pack, joints = body_pack(), limb(shape, kind, "L")
    radii = []
    for upper, (start, stop) in ((True, joints[:2]), (False, joints[1:])):
        points = pack.rest[shape][pack.region == (regions[0] if upper else regions[1])]
        points = points[points[:, 0] > 0]
        axis = stop - start
        place = (points - start) @ axis / (axis @ axis)
        distance = np.linalg.norm(points - start - place[:, None] * axis, axis=1)
        for wanted in (0.25, 0.8):
            near = np.argsort(np.abs(place - wanted))[:10]
            radii.append(float(np.quantile(distance[near], 0.7)))
    return np.interp([0, 0.5, 1, 1.5, 2], [0.25, 0.8, 1.25, 1.8], radii).astype(np.float32)


def _smooth(values: list[float]) -> Floats:
    padded = np.pad(np.array(values, np.float32), 1, mode="edge")
    smooth: Floats = 0.25 * padded[:-2] + 0.5 * padded[1:-1] + 0.25 * padded[2:]
    return smooth


@lru_cache(maxsize=16)
def measures(shape: int) -> Measures:
    """Return the measures of one body shape."""
    pack = body_pack()
    rest, region = pack.rest[shape], pack.region
    trunk = rest[np.isin(region, (TORSO, THIGH, SHIN))]
    ankle = float(limb(shape, "leg", "L")[2, 2])
    heights = np.linspace(ankle, float(rest[region == TORSO][:, 2].max()) - 0.01, 26).astype(np.float32)
    bands = [trunk[np.abs(trunk[:, 2] - height) < 0.06] for height in heights]
    head = rest[region == HEAD]
    crown, chin = float(head[:, 2].max()), float(head[head[:, 1] < -0.11][:, 2].min())
    skull = head[head[:, 2] > crown - 0.5 * (crown - chin)]
    low, high = skull.min(0), skull.max(0)
    centre = np.array([0, (low[1] + high[1]) / 2, crown - 0.5 * (crown - chin)])
    radii = np.array([high[0], (high[1] - low[1]) / 2, 0.5 * (crown - chin)])
    foot = rest[(region == FOOT) & (rest[:, 0] > 0)]
    return Measures(
        heights=heights,
        half_width=_smooth([np.abs(band[:, 0]).max() for band in bands]),
        front=_smooth([-band[:, 1].min() for band in bands]),
        back=_smooth([band[:, 1].max() for band in bands]),
        arm=_limb_radii(shape, "arm", (UPPER_ARM, FOREARM)),
        leg=_limb_radii(shape, "leg", (THIGH, SHIN)),
        skull=np.stack([centre, radii]).astype(np.float32),
        foot=np.stack([foot.min(0), foot.max(0)]).astype(np.float32),
    )
