"""A small ray tracer in numpy for `alignlab.data.scenes`: analytic shapes, soft shadows, one mirror bounce.

>>> from alignlab.data.scenes import sample_scene
>>> render(sample_scene(3), 32).shape
(32, 32, 3)

One ray is one row; colours are linear light until the last line of `render`. Same scene and size, same pixels.
"""

from __future__ import annotations

import numpy as np

from alignlab.data.scenes import BACKDROP_COLOURS, COLOURS, Array, Scene, Thing

NDIndex = np.ndarray  # integer or boolean rows
FAR = np.float32(1e9)
WALL_Y = 5.2  # the backdrop is the plane y = WALL_Y
NOTHING, GROUND, WALL = -1, -2, -3
# Unit shapes: how far the middle lies above the ground, in units of the thing's radius.
REST = {"sphere": 1.0, "cube": 0.80, "cylinder": 0.86, "cone": 0.95, "torus": 1.0}


def _dot(a: Array, b: Array) -> Array:
    return np.einsum("ij,ij->i", a, b)


def _unit(a: Array) -> Array:
    return a / np.maximum(np.sqrt(_dot(a, a)), 1e-9)[:, None]


def _nearest(first: Array, second: Array) -> Array:
    """The smaller root that lies in front of the origin, or FAR."""
    out = np.where(first > 1e-3, first, np.where(second > 1e-3, second, FAR))
    return out.astype(np.float32)


def _quadratic(a: Array, b: Array, c: Array) -> tuple[Array, Array]:
    """Roots of a t^2 + 2 b t + c, smaller first; FAR where there are none."""
    disc = b * b - a * c
    root = np.sqrt(np.maximum(disc, 0))
    safe = np.where(np.abs(a) < 1e-9, 1e-9, a)
    lo, hi = (-b - root) / safe, (-b + root) / safe
    miss = disc < 0
    return np.where(miss, FAR, np.minimum(lo, hi)), np.where(miss, FAR, np.maximum(lo, hi))


def _sphere(o: Array, d: Array) -> Array:
    return _nearest(*_quadratic(_dot(d, d), _dot(o, d), _dot(o, o) - 1))


def _cube(o: Array, d: Array, half: float = REST["cube"]) -> Array:
    safe = np.where(np.abs(d) < 1e-9, 1e-9, d)
    a, b = (-half - o) / safe, (half - o) / safe
    near, far = np.minimum(a, b).max(1), np.maximum(a, b).min(1)
    return np.where(near > far, FAR, _nearest(near, far))


def _disc(o: Array, d: Array, z: float, radius: float) -> Array:
    dz = np.where(np.abs(d[:, 2]) < 1e-9, 1e-9, d[:, 2])
    t = (z - o[:, 2]) / dz
    x, y = o[:, 0] + t * d[:, 0], o[:, 1] + t * d[:, 1]
    return np.where((t > 1e-3) & (x * x + y * y < radius * radius), t, FAR)


def _cylinder(o: Array, d: Array, radius: float = 0.74, half: float = REST["cylinder"]) -> Array:
    flat_o, flat_d = o[:, :2], d[:, :2]
    roots = _quadratic(_dot(flat_d, flat_d), _dot(flat_o, flat_d), _dot(flat_o, flat_o) - radius**2)
    best = np.minimum(_disc(o, d, half, radius), _disc(o, d, -half, radius))
    for t in roots:
        inside = (t > 1e-3) & (np.abs(o[:, 2] + np.minimum(t, 1e4) * d[:, 2]) < half)
        best = np.minimum(best, np.where(inside, t, FAR))
    return best


def _cone(o: Array, d: Array, radius: float = 0.92, half: float = REST["cone"]) -> Array:
    slope = (radius / (2 * half)) ** 2
    h, dz = half - o[:, 2], d[:, 2]  # distance below the tip
    a = _dot(d[:, :2], d[:, :2]) - slope * dz * dz
    b = _dot(o[:, :2], d[:, :2]) + slope * h * dz
    c = _dot(o[:, :2], o[:, :2]) - slope * h * h
    best = _disc(o, d, -half, radius)
    for t in _quadratic(a, b, c):
        z = o[:, 2] + np.minimum(t, 1e4) * dz
        best = np.minimum(best, np.where((t > 1e-3) & (z < half) & (z > -half), t, FAR))
    return best


_RING, _TUBE = 0.69, 0.31


def _torus_distance(p: Array) -> Array:
    return np.hypot(np.hypot(p[:, 0], p[:, 2]) - _RING, p[:, 1]) - _TUBE


def _torus(o: Array, d: Array) -> Array:
    """Sphere tracing: the distance to a standing ring is simple where its intersection (a quartic) is not."""
    speed = np.sqrt(_dot(d, d))
    enter, leave = _quadratic(_dot(d, d), _dot(o, d), _dot(o, o) - 1.0001)
    t = np.maximum(enter, 1e-3)
    live = np.flatnonzero((enter < FAR) & (leave > 1e-3))
    out = np.full(len(o), FAR, dtype=np.float32)
    for _ in range(56):
        if not live.size:
            break
        gap = _torus_distance(o[live] + t[live, None] * d[live])
        close = gap < 6e-4
        out[live[close]] = t[live[close]]
        t[live] += np.maximum(gap, 5e-4) / speed[live]
        live = live[~close & (t[live] < leave[live])]
    return out


_HIT = {"sphere": _sphere, "cube": _cube, "cylinder": _cylinder, "cone": _cone, "torus": _torus}


def _normal(shape: str, p: Array) -> Array:
    """Outward unit normals at local hit points [N, 3]."""
    if shape == "sphere":
        return _unit(p)
    if shape == "cube":
        axis = np.abs(p).argmax(1)
        n = np.zeros_like(p)
        n[np.arange(len(p)), axis] = np.sign(p[np.arange(len(p)), axis])
        return n
    if shape == "torus":
        around = np.hypot(p[:, 0], p[:, 2])
        centre = np.stack([p[:, 0], np.zeros_like(around), p[:, 2]], 1) * (_RING / np.maximum(around, 1e-6))[:, None]
        return _unit(p - centre)
    half = REST[shape]
    if shape == "cylinder":
        n = np.stack([p[:, 0], p[:, 1], np.zeros(len(p), np.float32)], 1)
        n[np.abs(p[:, 2]) > half - 2e-3] = 0
        n[p[:, 2] > half - 2e-3] = (0, 0, 1)
        n[p[:, 2] < -half + 2e-3] = (0, 0, -1)
        return _unit(n)
    slope = 0.92 / (2 * half)
    n = np.stack([p[:, 0], p[:, 1], slope * np.hypot(p[:, 0], p[:, 1])], 1)
    n[p[:, 2] < -half + 2e-3] = (0, 0, -1)
    return _unit(n)


def _to_local(thing: Thing, o: Array, d: Array) -> tuple[Array, Array]:
    c, s = np.float32(np.cos(thing.yaw)), np.float32(np.sin(thing.yaw))
    turn = np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]], dtype=np.float32) / np.float32(thing.radius)
    return (o - _centre(thing)) @ turn.T, d @ turn.T


def _centre(thing: Thing) -> Array:
    return np.array([thing.x, thing.y, REST[thing.shape] * thing.radius], dtype=np.float32)


def _reach(thing: Thing) -> float:
    """Radius of the sphere around `_centre` that holds the whole thing."""
    return (
        thing.radius * {"sphere": 1.0, "cube": 1.39, "cylinder": 1.14, "cone": 1.33, "torus": 1.0}[thing.shape] + 1e-3
    )


def _hits(thing: Thing, o: Array, d: Array) -> tuple[NDIndex, Array]:
    """Rows whose ray (unit direction) meets the thing's bounding sphere, and their distances (FAR for a miss)."""
    to = _centre(thing) - o
    along = _dot(to, d)
    gap = _dot(to, to) - along * along
    rows = np.flatnonzero((gap < _reach(thing) ** 2) & (along > -_reach(thing)))
    if not rows.size:
        return rows, np.empty(0, dtype=np.float32)
    return rows, _HIT[thing.shape](*_to_local(thing, o[rows], d[rows]))


def _trace(scene: Scene, o: Array, d: Array) -> tuple[Array, NDIndex]:
    """Distance [N] and what was hit [N]: a thing's number, GROUND, WALL or NOTHING."""
    best = np.full(len(o), FAR, dtype=np.float32)
    what = np.full(len(o), NOTHING, dtype=np.int64)
    with np.errstate(divide="ignore", invalid="ignore"):
        for axis, level, code in ((2, 0.0, GROUND), (1, WALL_Y, WALL)):
            t = (np.float32(level) - o[:, axis]) / d[:, axis]
            closer = (t > 1e-3) & (t < best)
            best[closer], what[closer] = t[closer], code
    for number, thing in enumerate(scene.things):
        rows, t = _hits(thing, o, d)
        closer = t < best[rows]
        best[rows[closer]], what[rows[closer]] = t[closer], number
    return best, what


def _in_shadow(scene: Scene, o: Array, d: Array) -> NDIndex:
    dark = np.zeros(len(o), dtype=bool)
    for thing in scene.things:
        rows, t = _hits(thing, o, d)
        dark[rows] |= t < FAR
    return dark


def _rays(scene: Scene, size: int, samples: int) -> tuple[Array, Array]:
    origin, rotation = scene.camera()
    steps = (np.arange(size * samples, dtype=np.float32) + 0.5) / (size * samples) * 2 - 1
    x, y = np.meshgrid(steps, -steps)
    scale = np.float32(np.tan(scene.field / 2))
    local = np.stack([x.ravel() * scale, y.ravel() * scale, np.ones(x.size, np.float32)], 1)
    d = _unit(local @ rotation)  # [size * samples squared, 3]
    return np.broadcast_to(origin, d.shape).astype(np.float32), d


def visible_shares(scene: Scene, size: int = 48) -> tuple[Array, Array]:
    """For each thing: the share of its outline that nothing hides, and the share of the picture that it covers."""
    o, d = _rays(scene, size, 1)
    _, what = _trace(scene, o, d)
    seen = np.array([(what == i).sum() for i in range(len(scene.things))], dtype=np.float32)
    alone = np.array([(_hits(t, o, d)[1] < FAR).sum() for t in scene.things], dtype=np.float32)
    return seen / np.maximum(alone, 1), seen / (size * size)


# --- textures ------------------------------------------------------------------------------------------------


def _noise(u: Array, v: Array, seed: int) -> Array:
    """Value noise in 0..1 on the unit lattice."""

    def corner(i: np.ndarray, j: np.ndarray) -> Array:
        h = (i * 374761393 + j * 668265263 + seed * 974711) & 0xFFFFFFFF
        h = ((h ^ (h >> 13)) * 1274126177) & 0xFFFFFFFF
        return ((h ^ (h >> 16)) & 0xFFFF).astype(np.float32) / np.float32(65535)

    i, j = np.floor(u).astype(np.int64), np.floor(v).astype(np.int64)
    x, y = u - i, v - j
    x, y = x * x * (3 - 2 * x), y * y * (3 - 2 * y)
    top = corner(i, j) * (1 - x) + corner(i + 1, j) * x
    low = corner(i, j + 1) * (1 - x) + corner(i + 1, j + 1) * x
    return (top * (1 - y) + low * y).astype(np.float32)


def _fractal(u: Array, v: Array, seed: int, octaves: int = 3) -> Array:
    total = np.zeros_like(u, dtype=np.float32)
    for k in range(octaves):
        total += _noise(u * 2**k, v * 2**k, seed + k) / 2 ** (k + 1)
    return total / np.float32(1 - 0.5**octaves)


def _lines(x: Array, width: float) -> Array:
    """1 within `width` of a whole number, else 0."""
    return (np.abs(x - np.round(x)) < width).astype(np.float32)


def _ground(scene: Scene, p: Array) -> Array:
    """Colour [N, 3] of ground points."""
    c, s = np.cos(scene.ground_yaw), np.sin(scene.ground_yaw)
    u, v = p[:, 0] * c + p[:, 1] * s, -p[:, 0] * s + p[:, 1] * c
    seed = scene.texture_seed
    base = np.array(scene.ground_rgb, dtype=np.float32)
    if scene.ground == "wooden":
        plank = np.floor(v / 0.62)
        tone = _noise(plank * 7.3 + 0.5, np.full_like(u, 3.5), seed)
        grain = _fractal(u * 1.2 + plank * 11, v * 14, seed + 1)
        value = 0.62 + 0.45 * tone + 0.40 * (grain - 0.5)
        value *= 1 - 0.55 * _lines(v / 0.62, 0.022)
    elif scene.ground == "tiled":
        odd = (np.floor(u / 0.9) + np.floor(v / 0.9)) % 2
        value = 0.62 + 0.62 * odd + 0.14 * (_fractal(u * 3, v * 3, seed) - 0.5)
        value *= 1 - 0.35 * np.maximum(_lines(u / 0.9, 0.018), _lines(v / 0.9, 0.018))
    elif scene.ground == "sandy":
        ripple = np.sin(v * 7 + 5 * _fractal(u * 0.7, v * 0.7, seed))
        value = 0.90 + 0.10 * ripple + 0.36 * (_fractal(u * 9, v * 9, seed + 5) - 0.5)
    elif scene.ground == "concrete":
        value = 0.70 + 0.62 * _fractal(u * 0.9, v * 0.9, seed, 5)
    else:
        weave = np.sin(u * 11) * np.sin(v * 11)
        band = (np.floor(v / 0.8) % 2) * 0.22
        value = 0.82 + 0.18 * np.clip(weave * 3, -1, 1) + band + 0.2 * (_fractal(u * 6, v * 6, seed) - 0.5)
    return base * value[:, None].astype(np.float32)


def _wall(scene: Scene, p: Array) -> Array:
    """Colour [N, 3] of backdrop points."""
    u, v, seed = p[:, 0], p[:, 2], scene.texture_seed + 99
    base = np.array(BACKDROP_COLOURS[scene.backdrop_colour], dtype=np.float32)
    value = 0.92 + 0.20 * (_fractal(u * 0.8, v * 0.8, seed) - 0.5)
    if scene.backdrop == "brick":
        row = np.floor(v / 0.42)
        shifted = u / 1.0 + 0.5 * (row % 2)
        value = value + 0.36 * (_noise(np.floor(shifted) * 5.1 + 0.5, row * 3.7 + 0.5, seed) - 0.5)
        mortar = np.maximum(_lines(v / 0.42, 0.055), _lines(shifted, 0.028))
        value = value * (1 - mortar) + 1.25 * mortar
    elif scene.backdrop == "papered":
        value = value * (0.80 + 0.34 * ((np.floor(u / 0.55) % 2) > 0))
    elif scene.backdrop == "panelled":
        value = value * (1 - 0.34 * _lines(u / 1.3, 0.02)) * (1 + 0.06 * np.sin(np.pi * u / 1.3) ** 2)
    return base * value[:, None].astype(np.float32)


def _paint(thing: Thing, p: Array) -> Array:
    """Colour [N, 3] of a thing at local points."""
    base = np.array(COLOURS[thing.colour], dtype=np.float32)
    if thing.material in ("matte", "shiny"):
        return np.broadcast_to(base, p.shape)
    other = np.array((0.10, 0.10, 0.11) if thing.colour == "white" else (0.86, 0.85, 0.82), dtype=np.float32)
    if thing.material == "striped":
        mark = np.floor(p[:, 2] / 0.29 + 0.5) % 2 > 0
    elif thing.material == "checked":
        mark = np.floor(p / 0.42 + 0.013).sum(1) % 2 > 0
    else:
        cell = p / 0.56
        mark = np.sqrt(((cell - np.round(cell)) ** 2).sum(1)) < 0.33
    return np.where(mark[:, None], other, base)


# --- light ---------------------------------------------------------------------------------------------------


def _surface(scene: Scene, o: Array, d: Array) -> tuple[Array, Array, Array, NDIndex]:
    """Hit points, normals, colours, and what was hit, one row a ray."""
    t, what = _trace(scene, o, d)
    p = o + np.minimum(t, 1e3)[:, None] * d
    normal, colour = np.zeros_like(p), np.zeros_like(p)
    normal[what == GROUND] = (0, 0, 1)
    normal[what == WALL] = (0, -1, 0)
    colour[what == GROUND] = _ground(scene, p[what == GROUND])
    colour[what == WALL] = _wall(scene, p[what == WALL])
    # What looks past everything (a mirror ray towards the room behind the camera) sees a dim room.
    colour[what == NOTHING] = 0.25 + 0.35 * np.clip(d[what == NOTHING, 2:3], 0, 1)
    for number, thing in enumerate(scene.things):
        rows = np.flatnonzero(what == number)
        if rows.size:
            local, _ = _to_local(thing, p[rows], d[rows])
            c, s = np.cos(thing.yaw), np.sin(thing.yaw)
            back = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]], dtype=np.float32)
            normal[rows] = _normal(thing.shape, local) @ back.T
            colour[rows] = _paint(thing, local)
    return p, normal, colour, what


def _contact(scene: Scene, p: Array, normal: Array) -> Array:
    """How much of the ambient light things near by take away, 0..1 (a cheap ambient occlusion)."""
    open_sky = np.ones(len(p), dtype=np.float32)
    for thing in scene.things:
        to = _centre(thing) - p
        far = np.sqrt(_dot(to, to))
        facing = np.clip(_dot(to, normal) / np.maximum(far, 1e-6), 0, 1)
        open_sky *= 1 - 0.85 * facing * np.clip(thing.radius / np.maximum(far, 1e-6), 0, 1) ** 2
    return open_sky


def _light(scene: Scene, p: Array, normal: Array, view: Array, where: Array) -> tuple[Array, Array, Array]:
    """Diffuse light [N, 3], highlight [N, 1] and the lamp's colour [3]; `where` [N, 2] are points on the lamp, -1..1."""
    lamp = np.array([1 + 0.10 * scene.warmth, 1.0, 1 - 0.14 * scene.warmth], dtype=np.float32)
    sky = np.array([0.90 - 0.05 * scene.warmth, 0.95, 1.04 + 0.05 * scene.warmth], dtype=np.float32)
    at = np.array(scene.light, dtype=np.float32)
    across = _unit(np.cross(at, (0, 0, 1.0)).astype(np.float32)[None])[0]
    over = np.cross(across, at / np.linalg.norm(at)).astype(np.float32)
    target = at + 0.95 * (where[:, :1] * across + where[:, 1:] * over)
    to_lamp = _unit(target - p)
    lit = np.clip(_dot(to_lamp, normal), 0, None)
    rows = np.flatnonzero(lit > 0)
    lit[rows[_in_shadow(scene, p[rows] + 2e-3 * normal[rows], to_lamp[rows])]] = 0
    half = _unit(to_lamp - view)
    gloss = np.clip(_dot(half, normal), 0, None) * (lit > 0)
    ambient = (0.34 + 0.20 * normal[:, 2]) * _contact(scene, p, normal)
    return 1.25 * lit[:, None] * lamp + ambient[:, None] * sky, gloss[:, None], lamp


def _shade(scene: Scene, o: Array, d: Array, where: Array, bounce: bool) -> Array:
    p, normal, colour, what = _surface(scene, o, d)
    diffuse, gloss, lamp = _light(scene, p, normal, d, where)
    out = colour * np.where((what == NOTHING)[:, None], 1, diffuse)
    shiny = np.array([t.material == "shiny" for t in scene.things] + [False] * 3)[what]
    glazed = (what >= 0) & ~shiny
    out[glazed] += 0.05 * lamp * gloss[glazed] ** 24
    rows = np.flatnonzero(shiny)
    if rows.size and bounce:
        n, v = normal[rows], d[rows]
        cosine = np.clip(-_dot(n, v), 0, 1)[:, None]
        mirrored = v + 2 * cosine * n
        seen = _shade(scene, p[rows] + 3e-3 * n, mirrored, where[rows], bounce=False)
        strength = 0.20 + 0.55 * (1 - cosine) ** 4
        tint = 0.45 + 0.55 * colour[rows] / np.maximum(colour[rows].max(1, keepdims=True), 1e-3)
        out[rows] = out[rows] * (1 - 0.6 * strength) + seen * tint * strength + 1.3 * lamp * gloss[rows] ** 140
    return out


def render(scene: Scene, size: int = 224, samples: int = 3) -> np.ndarray:
    """Draw a scene: uint8 sRGB [size, size, 3]; `samples` squared rays a pixel (and as many points on the lamp)."""
    if size < 8 or samples < 1:
        raise ValueError(f"size must be 8 or more and samples 1 or more, got size={size}, samples={samples}")
    o, d = _rays(scene, size, samples)
    # Each of a pixel's rays looks at another part of the lamp, in an order that differs from pixel to pixel:
    # soft shadows for the price of one shadow ray each.
    rng = np.random.default_rng(scene.texture_seed)
    n = size * samples
    grid_y, grid_x = np.divmod(np.arange(n * n), n)
    cell = (grid_y % samples) * samples + grid_x % samples
    shuffle = rng.permuted(np.tile(np.arange(samples**2), (size * size, 1)), axis=1)
    cell = shuffle[(grid_y // samples) * size + grid_x // samples, cell]
    where = np.stack([cell // samples, cell % samples], 1) + rng.random((n * n, 2))
    linear = _shade(scene, o, d, (where / samples * 2 - 1).astype(np.float32), bounce=True)
    pixels = linear.reshape(size, samples, size, samples, 3).clip(0, 4)
    pixels = (pixels / (1 + 0.18 * pixels)).mean(axis=(1, 3))  # tone before averaging keeps highlights smooth
    srgb = np.where(pixels <= 0.0031308, 12.92 * pixels, 1.055 * np.maximum(pixels, 1e-6) ** (1 / 2.4) - 0.055)
    return (srgb.clip(0, 1) * 255 + 0.5).astype(np.uint8)
