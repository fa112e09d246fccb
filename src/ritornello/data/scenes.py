"""Pictures of nested things, generated: regions side by side, parts made of regions, objects made of parts."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ritornello.errors import ArgumentError

FEATURES = 7  # red, green, blue, and the middle, width and height of the region


class Scene(NamedTuple):
    """A picture cut into regions.

    Attributes:
        features: (regions, `FEATURES`) float32: a noisy colour, and where the region lies in the unit square.
        neighbours: (regions, regions) which regions touch along an edge.
        groups: (groups, regions) the regions of each part and each object, and of the whole.
        boxes: (regions, 4) left, bottom, right, top.
    """

    features: np.ndarray
    neighbours: np.ndarray
    groups: np.ndarray
    boxes: np.ndarray


def scenes(count: int, seed: int, *, noise: float = 0.03) -> list[Scene]:
    """Draws pictures: two to four objects, each of one to three parts, each cut into one to three regions.

    An object has a colour, a part a shade of it, a region that shade but for noise: regions of one shade belong
    together first, then shades of one colour. As the segmented scenes of Socher et al. (2011), whose regions a
    recursive network merges by what they look like and where they touch.

    Args:
        count: how many.
        seed: of all that is drawn.
        noise: deviation of a region's colour from its part's.

    Raises:
        ArgumentError: a negative count or noise.

    Example:
        >>> scene = scenes(1, seed=1)[0]
        >>> scene.features.shape[1], bool((scene.neighbours == scene.neighbours.T).all()), bool(scene.groups[0].all())
        (7, True, True)
    """
    if count < 0 or noise < 0:
        raise ArgumentError(f"scenes: count and noise must not be negative, not {count} and {noise}.")
    random = np.random.default_rng(seed)
    return [_scene(random, noise) for _ in range(count)]


def _scene(random: np.random.Generator, noise: float) -> Scene:
    boxes, colours, owners = [], [], []  # of each region; owners: its object, and its part among all
    part = 0
    for number, thing in enumerate(_cut(random, (0.0, 0.0, 1.0, 1.0), int(random.integers(2, 5)))):
        colour = random.uniform(0.15, 0.85, 3)
        for piece in _cut(random, thing, int(random.integers(1, 4))):
            shade = colour + random.normal(0, 0.06, 3)
            for box in _cut(random, piece, int(random.integers(1, 4))):
                boxes.append(box)
                colours.append(shade + random.normal(0, noise, 3))
                owners.append((number, part))
            part += 1
    edges, owner = np.array(boxes), np.array(owners)
    own = [owner[:, level] == which for level in (0, 1) for which in np.unique(owner[:, level])]
    middle = (edges[:, :2] + edges[:, 2:]) / 2
    features = np.concatenate([np.array(colours), middle, edges[:, 2:] - edges[:, :2]], 1)
    return Scene(features.astype(np.float32), _touching(edges), np.array([np.ones(len(edges), bool), *own]), edges)


def _cut(random: np.random.Generator, box: tuple[float, ...], pieces: int) -> list[tuple[float, ...]]:
    """A box, cut across its longer side until there are so many; each cut goes through the largest piece."""
    found = [box]
    while len(found) < pieces:
        left, bottom, right, top = found.pop(int(np.argmax([(b[2] - b[0]) * (b[3] - b[1]) for b in found])))
        share = random.uniform(0.3, 0.7)
        if right - left > top - bottom:
            middle = left + share * (right - left)
            found += [(left, bottom, middle, top), (middle, bottom, right, top)]
        else:
            middle = bottom + share * (top - bottom)
            found += [(left, bottom, right, middle), (left, middle, right, top)]
    return found


def _touching(box: np.ndarray) -> np.ndarray:
    """Which boxes share more than a corner."""
    low, high = box[:, None, :2], box[:, None, 2:]
    overlap = np.minimum(high, high.transpose(1, 0, 2)) - np.maximum(low, low.transpose(1, 0, 2))
    return ((np.abs(overlap) < 1e-12) & (overlap[..., ::-1] > 1e-12)).any(-1)
