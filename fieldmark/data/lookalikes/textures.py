"""Square textures of natural grounds, made from noise and strokes, lit from the upper left."""

from __future__ import annotations

from functools import lru_cache
from math import cos, pi, sin

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

Array = np.ndarray
Rng = np.random.Generator
Rgb = tuple[int, int, int]

#: Textures of each kind.
VARIANTS = 2


@lru_cache(maxsize=96)
def texture(kind: str, variant: int, side: int, focus: int = 0) -> Image.Image:
    """A square RGB texture of ``side`` pixels (cached; the same for the same arguments).

    Out of ``focus`` (1 or 2) it is blurred, and half as large.
    """
    if focus:
        small = texture(kind, variant, side).reduce(2)
        return small.filter(ImageFilter.GaussianBlur(focus * side * 0.0011))
    return _MAKERS[kind](np.random.default_rng([KINDS.index(kind), variant]), side)


def noise(rng: Rng, side: int, cells: tuple[float, ...], stretch: float = 1.0, fall: float = 0.6) -> Array:
    """A sum of smooth noises with so many bumps across, each ``fall`` as strong as the last; about -1..1."""
    total, weight, scale = np.zeros((side, side), np.float32), 1.0, 0.0
    for count in cells:
        rows, columns = max(2, round(count / stretch)), max(2, round(count))
        small = Image.fromarray(rng.random((rows, columns), np.float32))
        total += weight * (np.asarray(small.resize((side, side), Image.Resampling.BICUBIC)) * 2 - 1)
        scale += weight
        weight *= fall
    return total / scale * 1.6


def _relit(height: Array, depth: float) -> Array:
    """Brightness of a height field lit from the upper left; 1 where it is flat."""
    dy, dx = np.gradient(height * height.shape[0])
    slope = (dx + dy) * depth
    return 1 + slope / np.sqrt(1 + slope * slope)


def _mix(weight: Array, a: tuple[int, int, int], b: tuple[int, int, int]) -> Array:
    w = np.clip(weight, 0, 1)[..., None]
    return np.array(a, np.float32) * (1 - w) + np.array(b, np.float32) * w


def picture(colour: Array, light: Array | float = 1.0) -> Image.Image:
    """Colours [side, side, 3] in 0..255, times light [side, side], as an image."""
    lit = colour * (light[..., None] if isinstance(light, np.ndarray) else light)
    return Image.fromarray(np.uint8(np.clip(lit, 0, 255)))


def _leaf(rng: Rng, side: int) -> Image.Image:
    return _blade(rng, side, (46, 92, 30), (112, 150, 58), (176, 192, 112))


def _petal(rng: Rng, side: int) -> Image.Image:
    return _blade(rng, side, (196, 112, 138), (236, 182, 188), (246, 220, 214), 0.35)


def _dry_leaf(rng: Rng, side: int) -> Image.Image:
    return _blade(rng, side, (122, 72, 36), (188, 132, 72), (96, 58, 34), 1.3)


def _blade(rng: Rng, side: int, dark: Rgb, bright: Rgb, veins: Rgb, relief: float = 1.0) -> Image.Image:
    """A leaf from near: midrib, side veins, a net of fine veins, waxy blotches."""
    y, x = np.mgrid[0:side, 0:side].astype(np.float32) / side
    turn = rng.uniform(-0.5, 0.5)
    a = (x - 0.5) * cos(turn) + (y - 0.5) * sin(turn)  # across the midrib
    b = (y - 0.5) * cos(turn) - (x - 0.5) * sin(turn)
    bow = a + 0.05 * np.sin(b * 3)
    rib = np.exp(-((bow / 0.010) ** 2))
    phase = (b + 0.75 * np.abs(bow) - 0.35 * bow * bow + 0.012 * noise(rng, side, (6,))) * 11
    vein = np.abs((phase + 0.25 * np.sign(bow)) % 1 - 0.5)
    side_vein = np.exp(-((vein / (0.035 + 0.02 * (1 - np.abs(bow)))) ** 2)) * np.exp(-np.abs(bow) * 0.8)
    net = np.abs(noise(rng, side, (55, 110), fall=0.8))
    fine = np.clip(1 - net * 5, 0, 1)
    billow = 0.5 - 0.5 * np.cos((vein - 0.5) * 2 * pi)
    height = (
        0.004 * billow + 0.010 * noise(rng, side, (5, 11)) - 0.0016 * side_vein - 0.004 * rib - 0.0006 * fine
    )
    tone = 0.5 + 0.35 * noise(rng, side, (4, 9, 20)) + 0.12 * noise(rng, side, (150,))
    colour = _mix(tone, dark, bright)
    pale = np.clip(0.75 * rib + 0.5 * side_vein + 0.16 * fine, 0, 1)[..., None]
    colour = colour * (1 - pale) + np.array(veins, np.float32) * pale
    return picture(colour, _relit(height, 0.9 * relief) * (0.94 + 0.12 * tone))


def _bark(rng: Rng, side: int) -> Image.Image:
    """Furrowed bark: ridges along the trunk, cracks, some lichen."""
    warp = 0.5 * noise(rng, side, (4, 9), 2.5)
    _, x = np.mgrid[0:side, 0:side].astype(np.float32) / side
    ridge = np.abs(np.sin((x * 7 + warp) * pi + 0.8 * noise(rng, side, (14, 30), 4)))
    rough = noise(rng, side, (24, 60, 140), 3.0, 0.8)
    cross = np.clip(np.abs(noise(rng, side, (9, 18), 0.45)) * 5, 0, 1)
    height = 0.020 * ridge**0.7 * (0.6 + 0.4 * cross) + 0.007 * rough
    deep = np.clip(1 - ridge * 2.6, 0, 1)
    colour = _mix(0.5 + 0.5 * rough + 0.25 * warp, (88, 66, 48), (152, 124, 96))
    colour = colour * (1 - 0.62 * deep[..., None])
    lichen = np.clip(noise(rng, side, (7, 22, 60), 1.0, 0.8) * 3 - 1.25, 0, 1) * (1 - deep)
    colour = (
        colour * (1 - 0.75 * lichen[..., None])
        + np.array((150, 160, 122), np.float32) * 0.75 * lichen[..., None]
    )
    return picture(colour, _relit(height, 0.8) * (0.75 + 0.35 * ridge))


def _sand(rng: Rng, side: int) -> Image.Image:
    """Wind-rippled sand of many-coloured grains."""
    y, x = np.mgrid[0:side, 0:side].astype(np.float32) / side
    bend = noise(rng, side, (3, 6)) * 0.5
    ripple = np.sin((y * 6 + 1.6 * x + bend) * 2 * pi)
    grain_rng = rng.random((side // 2 + 1, side // 2 + 1), np.float32)
    grain = Image.fromarray(grain_rng).resize((side, side), Image.Resampling.BICUBIC)
    g = np.asarray(grain) * 2 - 1 + 0.6 * noise(rng, side, (90,))
    height = 0.005 * ripple + 0.006 * noise(rng, side, (6, 14)) + 0.0007 * g
    colour = _mix(0.5 + 0.25 * ripple + 0.4 * noise(rng, side, (40, 120)), (186, 154, 112), (226, 202, 162))
    speck = Image.fromarray(np.uint8(rng.random((side, side), np.float32) * 255))
    soft = np.asarray(speck.filter(ImageFilter.GaussianBlur(0.7)), np.float32) / 255
    dark, bright = (soft < 0.30)[..., None], (soft > 0.71)[..., None]
    colour = np.where(dark, colour * 0.62, np.where(bright, colour * 0.5 + 124, colour))
    return picture(colour, _relit(height, 0.6))


def _paper(rng: Rng, side: int) -> Image.Image:
    """Laid paper with fibres, faint stains and a pencil grid's ghost."""
    fibre = Image.new("L", (side, side), 128)
    brush = ImageDraw.Draw(fibre)
    for _ in range(900):
        px, py = rng.random(2) * side
        angle, length = rng.random() * pi, side * rng.uniform(0.01, 0.035)
        bow = rng.uniform(-0.3, 0.3) * length
        mid = (
            px + cos(angle) * length / 2 - sin(angle) * bow,
            py + sin(angle) * length / 2 + cos(angle) * bow,
        )
        end = (px + cos(angle) * length, py + sin(angle) * length)
        brush.line([(px, py), mid, end], fill=int(rng.choice((96, 116, 146, 160))), width=1)
    f = np.asarray(fibre.filter(ImageFilter.GaussianBlur(0.8)), np.float32) / 128 - 1
    tooth = noise(rng, side, (75, 150), fall=0.9)
    colour = _mix(0.5 + 0.6 * noise(rng, side, (3, 6)), (226, 216, 196), (244, 238, 224))
    return picture(colour + 28 * f[..., None], _relit(0.0008 * tooth + 0.006 * noise(rng, side, (4, 8)), 0.7))


def _stone(rng: Rng, side: int) -> Image.Image:
    """Granite with crystals, a few cracks and lichen rosettes."""
    grains = [noise(rng, side, (75, 140), fall=0.8) for _ in range(3)]
    body = noise(rng, side, (4, 9, 20))
    crack = np.clip(1 - np.abs(noise(rng, side, (3, 7, 15))) * 26, 0, 1)
    height = 0.014 * body + 0.0005 * grains[0] + 0.0016 * noise(rng, side, (50,)) - 0.002 * crack
    colour = _mix(0.5 + 0.35 * body, (122, 122, 124), (170, 166, 160))
    for g, rgb, level in (
        (grains[0], (70, 70, 76), 0.36),
        (grains[1], (206, 200, 192), 0.34),
        (grains[2], (150, 122, 108), 0.42),
    ):
        w = np.clip((g - level) * 5, 0, 0.75)[..., None]
        colour = colour * (1 - w) + np.array(rgb, np.float32) * w
    ring = noise(rng, side, (5, 12))
    lichen = np.clip(np.clip(ring * 4 - 1.9, 0, 1) * (0.6 + 0.9 * noise(rng, side, (70,))), 0, 0.85)[
        ..., None
    ]
    colour = colour * (1 - lichen) + np.array((172, 168, 96), np.float32) * lichen
    return picture(colour, _relit(height, 0.7) * (1 - 0.35 * crack))


def _strokes(
    rng: Rng, side: int, count: int, colours: list[tuple[int, int, int]], reach: float, width: float
) -> Image.Image:
    """Layers of small pointed leaves, dark below and bright above."""
    image = Image.new("RGB", (side, side), tuple(c // 3 for c in colours[0]))
    brush = ImageDraw.Draw(image)
    for i in range(count):
        depth = i / count
        px, py = rng.random(2) * side * 1.1 - side * 0.05
        base = colours[int(rng.integers(len(colours)))]
        level = (0.40 + 0.70 * depth) * rng.uniform(0.8, 1.2)
        angle = rng.random() * 2 * pi
        for k in range(5):
            a = angle + (k - 2) * rng.uniform(0.4, 0.7)
            length = side * reach * rng.uniform(0.6, 1.2)
            lit = level * (1 + 0.28 * cos(a + 3 * pi / 4))
            wx, wy = -sin(a) * side * width, cos(a) * side * width
            mx, my = px + cos(a) * length * 0.45, py + sin(a) * length * 0.45
            tip = (px + cos(a) * length, py + sin(a) * length)
            fill = tuple(min(255, int(c * lit)) for c in base)
            brush.polygon([(px, py), (mx + wx, my + wy), tip, (mx - wx, my - wy)], fill=fill)
    return image


def _moss(rng: Rng, side: int) -> Image.Image:
    greens = [(96, 128, 40), (78, 116, 38), (122, 146, 54), (64, 100, 40)]
    image = _strokes(rng, side, 1800, greens, 0.034, 0.0034)
    mound = np.asarray(image, np.float32)
    return picture(mound, _relit(0.03 * noise(rng, side, (5, 10)), 0.5)).filter(
        ImageFilter.GaussianBlur(side / 900)
    )


def _soil(rng: Rng, side: int) -> Image.Image:
    """Crumbled soil with a litter of twigs and needles."""
    crumb = noise(rng, side, (18, 40, 90, 200), fall=0.85)
    height = 0.016 * noise(rng, side, (6, 14)) + 0.006 * np.abs(crumb)
    colour = _mix(0.5 + 0.6 * crumb, (58, 42, 30), (128, 98, 70))
    image = picture(colour, _relit(height, 0.9))
    brush = ImageDraw.Draw(image)
    for _ in range(70):
        px, py = rng.random(2) * side
        angle, length, wide = (
            rng.random() * pi,
            side * rng.uniform(0.03, 0.12),
            max(1, round(side * rng.uniform(0.002, 0.006))),
        )
        end = (px + cos(angle) * length, py + sin(angle) * length)
        lit = rng.uniform(0.5, 1.15)
        brush.line(
            [(px + wide, py + wide), (end[0] + wide, end[1] + wide)], fill=(34, 26, 20), width=wide + 1
        )
        brush.line([(px, py), end], fill=tuple(int(c * lit) for c in (150, 112, 72)), width=wide)
        if wide > 2:
            brush.line(
                [(px - 1, py - 1), (end[0] - 1, end[1] - 1)],
                fill=tuple(int(c * lit) for c in (190, 152, 108)),
            )
    return image.filter(ImageFilter.GaussianBlur(side / 1100))


def _wood(rng: Rng, side: int) -> Image.Image:
    """A weathered board: year rings cut lengthwise, pores, a check or two."""
    y, x = np.mgrid[0:side, 0:side].astype(np.float32) / side
    swirl = noise(rng, side, (3, 6), 3.0)
    rings = (x + 0.16 * swirl + 0.05 * np.sin(y * 3 + 1)) * 12
    ring = np.abs(rings % 1 - 0.3) ** 0.7
    pores = np.clip(noise(rng, side, (200,), 22.0) * 2 - 1.1, 0, 1)
    colour = _mix(
        0.35 + 0.75 * ring + 0.15 * noise(rng, side, (60, 150), 12.0), (134, 96, 62), (206, 166, 118)
    )
    colour = colour * (1 - 0.30 * pores[..., None])
    return picture(colour, _relit(0.0022 * ring - 0.0012 * pores + 0.004 * noise(rng, side, (5,)), 0.9))


def _grass(rng: Rng, side: int) -> Image.Image:
    """Long blades, crossing."""
    image = Image.new("RGB", (side, side), (26, 40, 14))
    brush = ImageDraw.Draw(image)
    for i in range(700):
        px, py = rng.uniform(-0.1, 1.1, 2) * side
        angle, length = rng.normal(-0.5 * pi, 0.55), side * rng.uniform(0.15, 0.5)
        wide, lit = side * rng.uniform(0.003, 0.009), (0.35 + 0.75 * i / 700) * rng.uniform(0.8, 1.15)
        nx, ny = -sin(angle) * wide, cos(angle) * wide
        bend = rng.normal(0, 0.06) * length
        mx, my = (
            px + cos(angle) * length / 2 - sin(angle) * bend,
            py + sin(angle) * length / 2 + cos(angle) * bend,
        )
        tip = (px + cos(angle) * length, py + sin(angle) * length)
        base = ((104, 140, 50), (126, 156, 62), (148, 150, 76))[int(rng.integers(3))]
        for a, b, tone in ((1.0, -1.0, 0.8), (1.0, 0.0, 1.05)):
            shape = [(px + nx * a, py + ny * a), (mx + nx * a, my + ny * a), tip]
            shape += [(mx + nx * b, my + ny * b), (px + nx * b, py + ny * b)]
            brush.polygon(shape, fill=tuple(min(255, int(c * lit * tone)) for c in base))
    return image.filter(ImageFilter.GaussianBlur(side / 900))


def _clay(rng: Rng, side: int) -> Image.Image:
    """Dry mud, cracked into plates."""
    y, x = np.mgrid[0:side, 0:side].astype(np.float32) / side
    x = x + 0.030 * noise(rng, side, (9, 24))
    y = y + 0.030 * noise(rng, side, (9, 24))
    seeds = (np.argwhere(np.ones((6, 6))) + rng.uniform(0.1, 0.9, (36, 2))) / 6
    first = np.full((side, side), 9, np.float32)
    second = first.copy()
    for sx, sy in seeds.astype(np.float32):
        d = np.hypot(x - sx, y - sy)
        second = np.minimum(second, np.maximum(first, d))
        first = np.minimum(first, d)
    gap = second - first
    plate = np.clip(gap / 0.045, 0, 1)
    crack = np.clip(1 - gap / 0.011, 0, 1)
    height = 0.010 * np.sqrt(plate) + 0.004 * noise(rng, side, (14, 34)) + 0.0008 * noise(rng, side, (140,))
    colour = _mix(0.5 + 0.45 * noise(rng, side, (8, 20, 60)), (158, 134, 108), (200, 178, 148))
    return picture(colour * (1 - 0.75 * crack[..., None]), _relit(height, 0.55))


_MAKERS = {
    "leaf": _leaf,
    "bark": _bark,
    "sand": _sand,
    "paper": _paper,
    "stone": _stone,
    "moss": _moss,
    "soil": _soil,
    "petal": _petal,
    "dry leaf": _dry_leaf,
    "wood": _wood,
    "grass": _grass,
    "clay": _clay,
}
#: What there is.
KINDS = tuple(_MAKERS)
