"""Hair, hats, scarves and bags: what tells two people in the same coat apart."""

from __future__ import annotations

import numpy as np

from uda_reid.data.scenes.body import CARRIED, Floats, body_pack, limb, measures
from uda_reid.data.scenes.shapes import (
    BAG,
    HAIR,
    HAT,
    Mesh,
    ball,
    bound,
    loft,
    rounded_box,
    smoothstep,
    solid,
    triple,
)
from uda_reid.data.scenes.wardrobe import Outfit

_LENGTH = {"shaved": 0.0, "short": 0.0, "bob": 0.09, "long": 0.24, "ponytail": 0.0, "bun": 0.0}


def _to_head(count: int) -> Floats:
    return bound(count, {body_pack().bone["head"]: 1.0})


def _scalp(outfit: Outfit) -> Mesh:
    """Return the hair as a shell around the skull that dips under the skin where the face and the neck are."""
    centre, radii = measures(outfit.shape).skull
    _, faces, direction = ball(centre, radii, rings=15, around=20)
    front, height = -direction[:, 1], direction[:, 2]
    falls = _LENGTH[outfit.hair] > 0
    nape, side = (-2.0, -1.3) if falls else (-0.62, -0.2)
    line = np.interp(front, [-1, -0.1, 0.3, 0.62, 1], [nape, side, side + 0.2, 0.5, 0.6])
    shown = smoothstep(((height - line) / 0.18 + 0.5).astype(np.float32))
    volume = {"shaved": 1.03, "short": 1.13, "bob": 1.2, "long": 1.17, "ponytail": 1.1, "bun": 1.1}[outfit.hair]
    vertices = direction * radii * (0.72 + (volume - 0.72) * shown[:, None])
    low = np.clip(-height, 0, 1) * shown
    vertices[:, 2] -= _LENGTH[outfit.hair] * low
    if falls:  # Long hair spreads over the back instead of running into a point.
        spread = np.clip(-height - 0.1, 0, 1) * shown
        vertices[:, 0] += 0.07 * spread * np.sign(direction[:, 0]) * np.abs(direction[:, 0]) ** 0.5
        vertices[:, 1] += (0.055 + 0.1 * _LENGTH[outfit.hair]) * spread
    return solid(vertices + centre, faces, _to_head(len(vertices)), HAIR, texture=vertices)


def hair(outfit: Outfit) -> list[Mesh]:
    """Return the hair of a person."""
    meshes = [_scalp(outfit)]
    centre, radii = measures(outfit.shape).skull
    if outfit.hair == "ponytail":
        drop = np.linspace(0, 1, 6).astype(np.float32)
        centres = np.stack([0 * drop, 0.05 * np.sin(2.6 * drop), -0.25 * drop], 1) + centre
        centres += triple(0, float(radii[1]) * 1.0, float(radii[2]) * 0.35)
        thick = triple(0.012, 0.032, 0.036, 0.033, 0.025, 0.004)
        vertices, faces = loft(
            centres.astype(np.float32), triple(1, 0, 0), triple(0, 1, 0), np.repeat(thick[:, None], 3, 1), around=8
        )
        meshes.append(solid(vertices, faces, _to_head(len(vertices)), HAIR, texture=vertices - centre))
    if outfit.hair == "bun":
        place = centre + triple(0, float(radii[1]) * 0.85, float(radii[2]) * 0.7)
        vertices, faces, _ = ball(place, triple(0.05, 0.05, 0.048), rings=7, around=10)
        meshes.append(solid(vertices, faces, _to_head(len(vertices)), HAIR, texture=vertices - centre))
    return meshes


def hats(outfit: Outfit) -> list[Mesh]:
    """Return hat and scarf."""
    meshes = []
    centre, radii = measures(outfit.shape).skull
    if outfit.hat != "none":
        vertices, faces, direction = ball(centre, radii, rings=12, around=18)
        line = {"cap": 0.28, "beanie": 0.1, "sunhat": 0.3}[outfit.hat] + 0.15 * np.clip(-direction[:, 1], 0, 1)
        shown = smoothstep(((direction[:, 2] - line) / 0.12 + 0.5).astype(np.float32))
        vertices = centre + direction * radii * (0.7 + 0.53 * shown[:, None])
        meshes.append(solid(vertices, faces, _to_head(len(vertices)), HAT))
        if outfit.hat != "beanie":
            bill = triple(0, -float(radii[1]) - 0.05, float(radii[2]) * 0.36), triple(0.085, 0.085, 0.014)
            brim = triple(0, 0, float(radii[2]) * 0.34), triple(0.2, 0.21, 0.018)
            vertices, faces, _ = ball(centre + (bill if outfit.hat == "cap" else brim)[0],
                                      (bill if outfit.hat == "cap" else brim)[1], rings=7, around=16)  # fmt: skip
            meshes.append(solid(vertices, faces, _to_head(len(vertices)), HAT, tone=0.85))
    if outfit.scarf:
        pack = body_pack()
        neck = pack.heads[outfit.shape][pack.bone["neck02"]] - triple(0, 0.01, 0.01)
        vertices, faces, _ = ball(neck, triple(0.098, 0.102, 0.055), rings=8, around=14)
        meshes.append(solid(vertices, faces, bound(len(vertices), {pack.bone["spine01"]: 1.0}), HAT))
    return meshes


def _suitcase(reach: float) -> list[Mesh]:
    """Return a trolley that rolls behind; `reach` is the height of the hand above the floor."""
    body = rounded_box(triple(0, 0.34, 0.3 - reach), triple(0.19, 0.11, 0.27), sharpness=6.0)
    drop = np.linspace(0, 1, 4).astype(np.float32)[:, None]
    bar = (1 - drop) * triple(0, 0.02, -0.06) + drop * triple(0, 0.3, 0.5 - reach)
    rod = loft(bar, triple(1, 0, 0), triple(0, 0.7, 0.7), np.full((4, 3), 0.014, np.float32), around=6)
    hanging = {CARRIED: 1.0}
    return [
        solid(body[0], body[1], bound(len(body[0]), hanging), BAG),
        solid(rod[0], rod[1], bound(len(rod[0]), hanging), BAG, tone=0.5),
    ]


def bags(outfit: Outfit) -> list[Mesh]:
    """Return the bag of a person, worn or carried."""
    pack, size = body_pack(), measures(outfit.shape)
    joints = pack.heads[outfit.shape]
    sign = 1.0 if outfit.bag_side == "L" else -1.0
    thick = {"none": 0.02, "jacket": 0.035, "coat": 0.045}[outfit.coat]
    if outfit.bag == "backpack":
        chest = float(joints[pack.bone["spine02"], 2])
        back = float(np.interp(chest, size.heights, size.back)) + thick
        vertices, faces, cube = rounded_box(triple(0, back + 0.08, chest + 0.03), triple(0.16, 0.1, 0.23))
        weights = bound(len(vertices), {pack.bone["spine02"]: 1.0})
        return [solid(vertices, faces, weights, BAG, tone=np.where(cube[:, 2] < -0.2, 0.85, 1.0))]
    if outfit.bag == "shoulder":
        hip = limb(outfit.shape, "leg", "L")[0]
        wide = float(np.interp(hip[2], size.heights, size.half_width)) + thick
        place = triple(sign * (wide + 0.045), 0.03, float(hip[2]) + 0.04)
        vertices, faces, cube = rounded_box(place, triple(0.06, 0.16, 0.13))
        return [solid(vertices, faces, bound(len(vertices), {0: 1.0}), BAG, tone=np.where(cube[:, 2] > 0.3, 0.85, 1.0))]
    wrist = joints[pack.bone[f"wrist.{outfit.bag_side}"]]
    if outfit.bag == "suitcase":
        return _suitcase(float(joints[pack.bone["upperarm01.L"], 2] - size.foot[0, 2]) - 0.58)
    if outfit.bag in ("handbag", "shopping"):
        radii = triple(0.06, 0.15, 0.11) if outfit.bag == "handbag" else triple(0.08, 0.15, 0.19)
        place = triple(0.02 * sign, -0.02, -0.12 - float(radii[2]))
        vertices, faces, _ = rounded_box(place, radii, sharpness=6.0)
        return [solid(vertices, faces, bound(len(vertices), {CARRIED: 1.0}), BAG, texture=vertices + wrist)]
    return []
