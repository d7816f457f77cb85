"""What stands in a rendered scene: things, ground, backdrop, light, camera, all drawn from one seed.

>>> scene = sample_scene(0, split="eval")
>>> scene == sample_scene(0, split="eval")
True
>>> 1 <= len(scene.things) <= 4
True

The evaluation scenes and the training scenes are two streams of one generator (the split's name enters the seed),
so that no training scene is an evaluation scene whatever the indices. `alignlab.data.render` draws a scene and
`alignlab.data.describe` captions it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]

SHAPES = ("sphere", "cube", "cylinder", "cone", "torus")
MATERIALS = ("matte", "shiny", "striped", "checked", "spotted")
SIZES = {"small": 0.56, "large": 0.88}
# Linear-light RGB, chosen to stay apart from one another at 64 px under a warm or a cool light.
COLOURS = {
    "red": (0.70, 0.035, 0.03),
    "orange": (0.88, 0.26, 0.015),
    "yellow": (0.88, 0.66, 0.04),
    "green": (0.04, 0.34, 0.06),
    "turquoise": (0.03, 0.52, 0.50),
    "blue": (0.03, 0.10, 0.60),
    "purple": (0.26, 0.05, 0.46),
    "pink": (0.88, 0.24, 0.42),
    "white": (0.82, 0.82, 0.80),
}
GROUNDS = ("wooden", "tiled", "sandy", "concrete", "woven")
GROUND_COLOURS = {
    "wooden": ((0.36, 0.20, 0.10), (0.24, 0.13, 0.07), (0.46, 0.30, 0.17)),
    "tiled": ((0.42, 0.42, 0.40), (0.30, 0.33, 0.38), (0.45, 0.38, 0.32)),
    "sandy": ((0.56, 0.43, 0.26), (0.62, 0.52, 0.36)),
    "concrete": ((0.30, 0.30, 0.30), (0.38, 0.37, 0.35), (0.22, 0.23, 0.25)),
    "woven": ((0.34, 0.30, 0.26), (0.24, 0.28, 0.30), (0.40, 0.33, 0.25)),
}
BACKDROPS = ("plain", "brick", "papered", "panelled")
BACKDROP_COLOURS = {
    "beige": (0.52, 0.44, 0.33),
    "grey": (0.36, 0.37, 0.38),
    "pale blue": (0.34, 0.44, 0.54),
    "pale green": (0.36, 0.46, 0.34),
    "dusty pink": (0.54, 0.37, 0.35),
}


@dataclass(frozen=True)
class Thing:
    """One object: its words, and where it stands (ground coordinates and yaw in radians; radius in world units)."""

    shape: str
    colour: str
    size: str
    material: str
    x: float
    y: float
    yaw: float
    radius: float


@dataclass(frozen=True)
class Scene:
    """Everything a picture and its captions are made from."""

    things: tuple[Thing, ...]
    ground: str
    ground_rgb: tuple[float, float, float]
    ground_yaw: float
    backdrop: str
    backdrop_colour: str
    light: tuple[float, float, float]
    warmth: float
    azimuth: float
    elevation: float
    distance: float
    field: float
    texture_seed: int

    def camera(self) -> tuple[Array, Array]:
        """Position [3] and rotation [3, 3] (rows: right, up, forward) of the camera."""
        target = np.array([0.0, 0.25, 0.55], dtype=np.float32)
        direction = np.array(
            [
                np.sin(self.azimuth) * np.cos(self.elevation),
                -np.cos(self.azimuth) * np.cos(self.elevation),
                np.sin(self.elevation),
            ],
            dtype=np.float32,
        )
        forward = -direction
        right = np.cross(forward, np.array([0, 0, 1], dtype=np.float32))
        right /= np.linalg.norm(right)
        up = np.cross(right, forward)
        return target + self.distance * direction, np.stack([right, up, forward]).astype(np.float32)

    def project(self, points: Array) -> Array:
        """World points [N, 3] -> [N, 3]: screen x (right) and y (up) in -1..1, and the depth."""
        origin, rotation = self.camera()
        local = (points - origin) @ rotation.T  # [N, 3]
        scale = np.tan(self.field / 2)
        return np.stack([local[:, 0] / local[:, 2] / scale, local[:, 1] / local[:, 2] / scale, local[:, 2]], axis=1)

    def screen(self) -> Array:
        """Screen position and depth of each thing's middle, [len(things), 3]."""
        return self.project(np.array([[t.x, t.y, t.radius * 0.9] for t in self.things], dtype=np.float32))

    def inside(self) -> bool:
        """Whether every thing lies wholly in the picture."""
        middle = self.screen()
        reach = np.array([t.radius * 1.2 for t in self.things]) / middle[:, 2] / np.tan(self.field / 2)
        return bool((np.abs(middle[:, :2]) + reach[:, None]).max() < 1)


def _stream(index: int, split: str) -> np.random.Generator:
    return np.random.default_rng([*split.encode(), int(index)])


def _place(rng: np.random.Generator, count: int) -> tuple[Thing, ...] | None:
    """Things that keep apart from one another, or None when the ground got too full."""
    things: list[Thing] = []
    for _ in range(count):
        size = str(rng.choice(list(SIZES)))
        radius = SIZES[size] * float(rng.uniform(0.92, 1.08))
        for _ in range(30):
            x, y = float(rng.uniform(-2.5, 2.5)), float(rng.uniform(-2.0, 2.6))
            if all(np.hypot(x - t.x, y - t.y) > radius + t.radius + 0.22 for t in things):
                break
        else:
            return None
        shape = str(rng.choice(SHAPES))
        # A ring seen edge-on is no ring: it turns away from the camera by 50 degrees at most.
        turn = 0.87 if shape == "torus" else np.pi
        things.append(
            Thing(
                shape=shape,
                colour=str(rng.choice(list(COLOURS))),
                size=size,
                material=str(rng.choice(MATERIALS, p=[0.34, 0.30, 0.12, 0.12, 0.12])),
                x=x,
                y=y,
                yaw=float(rng.uniform(-turn, turn)),
                radius=radius,
            )
        )
    return tuple(things)


def sample_scene(index: int, split: str = "train") -> Scene:
    """The scene number `index` (0 or more) of a split: 1 to 4 things, every one of them well in view.

    Drawn again until each thing shows at least 55% of its outline and covers at least 0.9% of the picture, so that
    a caption never names what cannot be seen, not even at 64 px.
    """
    if index < 0:
        raise ValueError(f"index must be 0 or more, got {index}")
    from alignlab.data.render import visible_shares

    rng = _stream(index, split)
    count = int(rng.integers(1, 5))
    while True:
        things = _place(rng, count)
        ground = str(rng.choice(GROUNDS))
        palette = GROUND_COLOURS[ground]
        side = -1.0 if rng.random() < 0.5 else 1.0
        scene = Scene(
            things=things or (),
            ground=ground,
            ground_rgb=palette[int(rng.integers(len(palette)))],
            ground_yaw=float(rng.uniform(-0.5, 0.5)),
            backdrop=str(rng.choice(BACKDROPS)),
            backdrop_colour=str(rng.choice(list(BACKDROP_COLOURS))),
            light=(side * float(rng.uniform(2.5, 5.5)), float(rng.uniform(-6.0, -2.0)), float(rng.uniform(5.5, 8.0))),
            warmth=float(rng.uniform(-1, 1)),
            azimuth=float(rng.uniform(-0.28, 0.28)),
            elevation=float(rng.uniform(0.36, 0.58)),
            distance=float(rng.uniform(7.6, 8.8)),
            field=float(rng.uniform(0.64, 0.71)),
            texture_seed=int(rng.integers(2**31)),
        )
        if things is None or not scene.inside():
            continue
        share, area = visible_shares(scene)
        if share.min() >= 0.55 and area.min() >= 0.009:
            return scene
