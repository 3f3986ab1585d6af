"""Dresses a body: every garment is a loose tube around it, cut in the rest pose and carried by the same bones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from uda_reid.data.scenes.accessories import bags, hair, hats
from uda_reid.data.scenes.body import (
    FOOT,
    FOREARM,
    HAND,
    HEAD,
    SHIN,
    THIGH,
    TORSO,
    UPPER_ARM,
    Floats,
    along,
    body_pack,
    limb,
    measures,
)
from uda_reid.data.scenes.shapes import (
    LOWER,
    SHOES,
    SKIN,
    SLEEVES,
    UPPER,
    Mesh,
    bound,
    grid_faces,
    join,
    loft,
    rounded_box,
    smoothstep,
    solid,
    triple,
)
from uda_reid.data.scenes.wardrobe import Cloth, Outfit


def materials(outfit: Outfit) -> list[Cloth]:
    """Return the material table of a dressed person: one cloth per row, `SKIN` to `BAG`."""
    upper = outfit.top if outfit.coat == "none" else outfit.outer
    strap = {"backpack": "both", "shoulder": "left" if outfit.bag_side == "L" else "right"}.get(outfit.bag, "none")
    upper = replace(upper, strap=strap, strap_colour=outfit.bag_colour)
    repeats = upper.pattern in ("hoops", "check", "speckle")
    sleeves = replace(upper, strap="none", pattern=upper.pattern if repeats else "plain")
    if upper.pattern == "block":
        sleeves = replace(sleeves, colour=upper.second)
    hat = Cloth(outfit.hat_colour, wrinkle=0.3)
    return [
        Cloth(outfit.skin, wrinkle=0.0),
        upper,
        sleeves,
        replace(outfit.top if outfit.legs == "dress" else outfit.lower, strap="none"),
        Cloth(outfit.shoes, wrinkle=0.1),
        Cloth(outfit.hair_colour, pattern="strands", wrinkle=0.3),
        hat,
        Cloth(outfit.bag_colour, wrinkle=0.15),
    ]


def _trunk_weights(shape: int, vertices: Floats) -> Floats:
    pack = body_pack()
    joint, bone = pack.heads[shape], pack.bone
    height, across = vertices[:, 2], vertices[:, 0]
    hip, knee = joint[bone["upperleg01.L"], 2], joint[bone["lowerleg01.L"], 2]
    lower, upper = joint[bone["spine04"], 2], joint[bone["spine02"], 2]
    trunk = smoothstep((height - hip) / (lower + 0.03 - hip))
    chest = trunk * smoothstep((height - lower - 0.06) / (upper - lower))
    legs = 0.92 * smoothstep((hip + 0.02 - height) / 0.22)
    shin = legs * 0.55 * smoothstep((knee + 0.05 - height) / 0.35)
    left = smoothstep(across / 0.30 + 0.5)
    return bound(
        len(vertices),
        {
            0: (1 - trunk) * (1 - legs),
            bone["spine04"]: trunk - chest,
            bone["spine02"]: chest,
            bone["upperleg01.L"]: (legs - shin) * left,
            bone["upperleg01.R"]: (legs - shin) * (1 - left),
            bone["lowerleg01.L"]: shin * left,
            bone["lowerleg01.R"]: shin * (1 - left),
        },
    )


def _trunk(
    shape: int, low: float, high: float, material: int, *, ease: float, hang: float, flare: float, closed: bool = False
) -> Mesh:
    """Return a tube around the trunk from height `low` to `high`; it hangs from its widest place by `hang`."""
    size = measures(shape)
    heights = np.linspace(low, high, max(5, int((high - low) / 0.055))).astype(np.float32)
    body = np.stack([np.interp(heights, size.heights, part) for part in (size.half_width, size.front, size.back)], 1)
    hip = float(limb(shape, "leg", "L")[0, 2])
    # Below the hip the resting legs stand apart; a garment must not follow them outwards.
    widest = np.interp(hip, size.heights, size.half_width) + 0.02
    body[:, 0] = np.where(heights < hip, np.minimum(body[:, 0], widest), body[:, 0])
    radii = body + ease + flare * np.clip((hip + 0.12 - heights) / 0.5, 0, None)[:, None] * triple(1.0, 1.0, 1.0)
    for row in range(len(heights) - 2, -1, -1):
        radii[row] = np.maximum(radii[row], hang * radii[row + 1] + (1 - hang) * radii[row])
    centres = np.stack([np.zeros_like(heights), np.zeros_like(heights), heights], 1)
    tone = np.ones(len(heights), np.float32)
    if closed:
        radii = np.concatenate([0.05 * radii[:1], 0.75 * radii[:1], radii])
        centres = np.concatenate([centres[:1] - triple(0, 0, 0.05), centres[:1] - triple(0, 0, 0.035), centres])
        tone = np.concatenate([triple(0.7, 0.8), tone])
    vertices, faces = loft(centres, triple(1, 0, 0), triple(0, 1, 0), radii, around=20, roundness=2.4)
    return solid(vertices, faces, _trunk_weights(shape, vertices), material, tone=np.repeat(tone, 20))


def _shirt(outfit: Outfit) -> Mesh:
    """Return the outermost upper garment without sleeves, closed around the neck."""
    pack, size = body_pack(), measures(outfit.shape)
    hip = float(limb(outfit.shape, "leg", "L")[0, 2])
    low = {"none": hip - outfit.hem, "jacket": hip - 0.06, "coat": hip - 0.42}[outfit.coat]
    if outfit.legs == "dress" and outfit.coat == "none":
        low = hip + 0.05
    ease = {"none": 0.014 + 0.012 * outfit.fit, "jacket": 0.034, "coat": 0.036}[outfit.coat]
    shoulder = float(size.heights[-1]) - 0.03
    flare = {"none": 0.012, "jacket": 0.0, "coat": 0.05}[outfit.coat]
    body = _trunk(outfit.shape, low, shoulder, UPPER, ease=ease, hang=0.25 + 0.7 * outfit.fit, flare=flare)
    neck = pack.heads[outfit.shape][pack.bone["neck01"]]
    last = body.vertices[-20:]
    rim = 0.5 * (last - last.mean(0)) + triple(0, neck[1] - 0.01, shoulder + 0.055)
    mid = 0.82 * (last - last.mean(0)) + last.mean(0) + triple(0, 0, 0.035)
    collar = rim * triple(0.9, 0.9, 1) + triple(0, -0.002, 0.03 if outfit.coat != "none" else 0.012)
    vertices = np.concatenate([mid, rim, collar])
    start = len(body.vertices) - 20
    faces = grid_faces(4, 20, True) + start
    chest = bound(60, {pack.bone["spine02"]: 1.0})
    grown = np.concatenate([body.vertices, vertices])
    texture = grown - triple(0, 0, shoulder)
    return solid(
        grown, np.concatenate([body.faces, faces]), np.concatenate([body.weights, chest]), UPPER, texture=texture
    )


def _tube(shape: int, kind: str, side: str, places: Floats, radii: Floats, material: int) -> Mesh:
    """Return a sleeve or a trouser leg through places 0 (shoulder, hip) to 2 (wrist, ankle)."""
    pack, joints = body_pack(), limb(shape, kind, side)
    centres = along(joints, places)
    if places[0] < 0:
        centres[places < 0] = joints[0] + places[places < 0, None] * (joints[1] - joints[0])
    first, second = (joint / np.linalg.norm(joint) for joint in (joints[1] - joints[0], joints[2] - joints[1]))
    bend = smoothstep((places - 0.85) / 0.3)[:, None]
    axis = (1 - bend) * first + bend * second
    axis /= np.linalg.norm(axis, axis=1, keepdims=True)
    depth = triple(0, 1, 0) - axis[:, 1:2] * axis
    depth /= np.linalg.norm(depth, axis=1, keepdims=True)
    around = 12
    vertices, faces = loft(centres, np.cross(depth, axis), depth, np.repeat(radii[:, None], 3, 1), around=around)
    place = np.repeat(places, around)
    names = ("upperarm01", "lowerarm01") if kind == "arm" else ("upperleg01", "lowerleg01")
    lower = smoothstep((place - 0.88) / 0.24)
    root = 0.35 * smoothstep((0.15 - place) / 0.3) if kind == "arm" else 0.6 * smoothstep((0.2 - place) / 0.3)
    anchor = pack.bone[f"shoulder01.{side}"] if kind == "arm" else 0
    weights = bound(
        len(vertices),
        {
            anchor: root,
            pack.bone[f"{names[0]}.{side}"]: (1 - root) * (1 - lower),
            pack.bone[f"{names[1]}.{side}"]: lower,
        },
    )
    texture = vertices - np.repeat(centres, around, 0)
    texture[:, 2] = -place * float(np.linalg.norm(joints[1] - joints[0]))
    return solid(vertices, faces, weights, material, texture=texture)


def _sleeves(outfit: Outfit) -> list[Mesh]:
    end = {"none": 0.0, "short": 0.72, "long": 1.93}["long" if outfit.coat != "none" else outfit.sleeve]
    if end == 0:
        return []
    ease = {"none": 0.012 + 0.012 * outfit.fit, "jacket": 0.026, "coat": 0.028}[outfit.coat]
    places = np.concatenate([[-0.32, -0.26, -0.12], np.linspace(0.05, end, 4 if end < 1 else 9)]).astype(np.float32)
    radii = np.interp(places, [0, 0.5, 1, 1.5, 2], measures(outfit.shape).arm) + ease
    radii[:3] = radii[3] * triple(0.1, 0.62, 0.95)
    radii[-1] += 0.012 if end < 1 else 0.004
    return [_tube(outfit.shape, "arm", side, places, radii.astype(np.float32), SLEEVES) for side in "LR"]


def _lower(outfit: Outfit) -> list[Mesh]:
    size, hip = measures(outfit.shape), limb(outfit.shape, "leg", "L")
    waist = float(hip[0, 2]) + 0.14
    if outfit.legs in ("skirt", "dress"):
        hem = float(along(hip, triple(outfit.lower_hem))[0, 2])
        tube = _trunk(outfit.shape, hem, waist, LOWER, ease=0.018, hang=0.9, flare=outfit.flare)
        return [replace(tube, texture=tube.texture - triple(0, 0, waist))]
    pelvis = _trunk(outfit.shape, float(hip[0, 2]) - 0.06, waist, LOWER, ease=0.008, hang=0.6, flare=0.0, closed=True)
    places = np.linspace(0.02, outfit.lower_hem, 5 if outfit.lower_hem < 1.2 else 10).astype(np.float32)
    thin = np.interp(places, [0, 0.5, 1, 1.5, 2], size.leg)
    radii = thin + 0.01 + (0.004 + outfit.flare) * np.clip(places, 0, 1.4)
    radii = np.maximum(radii, (0.068 + 0.4 * outfit.flare) * (places > 0.5))
    radii[0] *= 0.9
    legs = [_tube(outfit.shape, "leg", side, places, radii.astype(np.float32), LOWER) for side in "LR"]
    return [pelvis, *legs]


def _skin(outfit: Outfit) -> Mesh:
    """Return the parts of the body that no garment hides, with eyes, brows and mouth toned in."""
    pack, size = body_pack(), measures(outfit.shape)
    rest, region = pack.rest[outfit.shape], pack.region
    sleeve = "long" if outfit.coat != "none" else outfit.sleeve
    shown = np.isin(region, (HEAD, HAND)) | ((region == TORSO) & (rest[:, 2] > size.heights[-1] - 0.1))
    if sleeve != "long":
        shown |= np.isin(region, (UPPER_ARM, FOREARM))
    if outfit.legs != "trousers":
        hem = float(along(limb(outfit.shape, "leg", "L"), triple(outfit.lower_hem))[0, 2])
        shown |= np.isin(region, (THIGH, SHIN)) & (rest[:, 2] < hem + 0.12)
        shown |= (region == FOOT) & (rest[:, 2] > size.foot[1, 2] - 0.05)
    number = np.cumsum(shown) - 1
    faces = number[pack.faces[shown[pack.faces].all(1)]]
    vertices = rest[shown]
    for side_of in (1.0, -1.0):  # the pack's hands are spread wide; a walker's are half closed
        fingers = (region[shown] == HAND) & (vertices[:, 0] * side_of > 0)
        wrist = limb(outfit.shape, "arm", "L" if side_of > 0 else "R")[2]
        vertices[fingers] = wrist + 0.78 * (vertices[fingers] - wrist)
    side, height = np.abs(vertices[:, 0]), vertices[:, 2] - size.skull[0, 2]
    face = (region[shown] == HEAD) & (vertices[:, 1] < size.skull[0, 1] - 0.4 * size.skull[1, 1])
    tone = np.where((region[shown] == HEAD) & (height < -1.05 * size.skull[1, 2]), 0.8, 1.0)
    tone[face & (np.abs(side - 0.034) < 0.02) & (np.abs(height + 0.002) < 0.011)] = 0.45
    tone[face & (np.abs(side - 0.034) < 0.022) & (np.abs(height - 0.022) < 0.008)] = 0.6
    tone[face & (side < 0.024) & (np.abs(height + 0.075) < 0.009)] = 0.7
    return solid(vertices, faces, pack.weights[shown], SKIN, tone=tone.astype(np.float32))


def _shoes(outfit: Outfit) -> list[Mesh]:
    pack, (low, high) = body_pack(), measures(outfit.shape).foot
    meshes = []
    for side, sign in (("L", 1.0), ("R", -1.0)):
        centre, radii = (low + high) / 2, (high - low) / 2 * triple(0.92, 1.04, 1.0)
        vertices, faces, cube = rounded_box(centre * triple(sign, 1, 1), radii, sharpness=3.0)
        # The upper slopes from the ankle down to the toes (toes are at -y).
        slope = np.interp(cube[:, 1], [-1, 0, 1], [0.45, 0.8, 1.0])
        vertices[:, 2] = low[2] + (vertices[:, 2] - low[2]) * slope
        tone = np.where(cube[:, 2] < -0.45, 0.55, 1.0)
        meshes.append(solid(vertices, faces, bound(len(vertices), {pack.bone[f"foot.{side}"]: 1.0}), SHOES, tone=tone))
    return meshes


def clothe(outfit: Outfit) -> Mesh:
    """Return a dressed person in the rest pose."""
    return join(
        [
            _skin(outfit),
            _shirt(outfit),
            *_sleeves(outfit),
            *_lower(outfit),
            *_shoes(outfit),
            *hair(outfit),
            *hats(outfit),
            *bags(outfit),
        ]
    )
