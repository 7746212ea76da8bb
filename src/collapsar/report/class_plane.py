"""The class means as points in their principal plane, merged classes circled.

Example:
    >>> from matplotlib.figure import Figure
    >>> from collapsar.report.style import styled
    >>> record = {"class_means": [[1.0, 0.0], [-0.5, 0.1], [-0.5, 0.1]], "class_names": ["a", "b", "c"]}
    >>> record |= {"clusters": [[0], [1, 2]], "groups": [[1, 2]], "states": ["separated", "merged", "merged"]}
    >>> with styled():
    ...     artists = class_means_plane(record, Figure().subplots())
    >>> round(artists.shown, 3), len(artists.circles)
    (1.0, 1)
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.patches import Circle
from matplotlib.text import Text

from collapsar.core.sentences import listed
from collapsar.core.types import Array
from collapsar.report.record import cluster_of_classes
from collapsar.report.style import CLUSTER_COLOURS, COLOURS, STATES

_MOST_NAMES = 30  # more class names would overlap
_SAME_PLACE = 0.03  # of the picture's width: names of classes closer than this are written together
_COMPETES = 0.3  # share of the second principal direction's weight from which a third one competes with it
_LETTER_INCHES = 0.053  # mean width of a letter of a name
# Where a name may stand: distance from its point as a share of the half width, angle from the outward direction.
_TRIES = [(r, side * turn) for r in (0.08, 0.18, 0.3) for turn in (0.0, 0.5, 1.0, 1.6, 2.3) for side in (1, -1)]
_FAR_TRIES = [
    (r, side * turn) for r in (0.08, 0.3, 0.45, 0.6) for turn in (0.0, 0.5, 1.0, 1.6, 2.3, 3.0) for side in (1, -1)
]
_WORSE = 10.0  # how much worse it is for a name to overlap a name than a ray
_MOST_TOGETHER = 4  # names of classes in one place that are written out
_CLEAR = 0.02  # half the width that a ray takes, of the picture's half width
_CIRCLE = 0.07  # radius of the circle around one point, of the picture's half width


class PlaneArtists(NamedTuple):
    """What was drawn, and the share of the means' squared length that lies in the plane."""

    points: list[PathCollection]
    rays: LineCollection
    circles: list[Circle]
    names: list[Text]
    shown: float


def principal_plane(class_means: Any) -> tuple[Array, float]:
    """Project class means onto the plane through the origin that keeps most of their squared length.

    The origin stays where it is: a vanished class is drawn there. Means of many classes often point in as many
    directions of similar weight, and the plane of the first two would put all other classes at the origin, as if
    they had vanished. If a third direction competes with the second, the plane is therefore the one, among all
    competing directions, that fans the classes out around the origin. The plane is turned so that the first class
    that has not vanished lies to the left, and the next one off that line above it: the same geometry gives
    the same picture, and panels can be compared.

    Args:
        class_means: Shape (K, d); rows of NaN are unseen classes and stay NaN.

    Returns:
        Coordinates, shape (K, 2), and the share of Σ_k ‖μ_k‖² they hold, in [0, 1]; 1 when all means are 0.
    """
    means = np.asarray(class_means, dtype=np.float64)
    seen = np.isfinite(means).all(axis=1)
    _, sigma, axes = np.linalg.svd(means[seen], full_matrices=False)
    flat = means[seen] @ _fanning(means[seen], sigma, axes).T
    places = np.full((len(means), 2), np.nan)
    places[seen] = _turned(np.pad(flat, ((0, 0), (0, 2 - flat.shape[1]))))
    whole = float(np.sum(sigma**2))
    return places, float(np.sum(flat**2)) / whole if whole > 0 else 1.0


def _fanning(means: Array, sigma: Array, axes: Array) -> Array:
    """Orthonormal rows, (at most 2, d): the two principal axes, or, if more compete, the plane that fans out the rows.

    It turns r orthogonal means of equal length into a regular r-gon.
    """
    competing = int(np.sum(sigma**2 >= _COMPETES * sigma[1] ** 2)) if len(sigma) > 2 and sigma[1] > 0 else 0
    if competing <= 2:
        return axes[:2]
    alive = np.linalg.norm(means, axis=1) > _SAME_PLACE * np.linalg.norm(means, axis=1).max()
    angles = 2 * np.pi * (np.cumsum(alive) - 1) / alive.sum()
    fan = np.stack([np.cos(angles), np.sin(angles)]) * alive
    within = axes[:competing]
    directions, _, _ = np.linalg.svd(within @ (fan @ means).T, full_matrices=False)
    return directions.T @ within


def _turned(places: Array) -> Array:
    """Rotate and reflect the plane into the pose that ``principal_plane`` promises."""
    lengths = np.hypot(*places.T)
    alive = np.flatnonzero(lengths > _SAME_PLACE * lengths.max(initial=0.0))
    if not len(alive):
        return places
    c, s = -places[alive[0]] / lengths[alive[0]]
    turned = places @ np.array([[c, -s], [s, c]])
    off = np.flatnonzero(np.abs(turned[:, 1]) > _SAME_PLACE * lengths.max())
    return turned * [1.0, -1.0] if len(off) and turned[off[0], 1] < 0 else turned


def class_means_plane(record: Mapping[str, Any], ax: Axes, *, reach: float | None = None) -> PlaneArtists:
    """Draw class means in their principal plane: a ray from the origin each, merged groups circled.

    Args:
        record: ``class_means`` (K, d); optional ``class_names`` (K), ``states`` (K, a marker and a colour each),
            ``clusters`` (lists of class indices, one colour each instead of those of the states), ``groups``
            (merged classes, circled), ``lost`` (classes with no sample recognised, ringed).
        ax: Where to draw.
        reach: Half width of the picture; default 1.25 times the longest projected mean. Give the same to panels
            that are compared.

    Returns:
        The artists and the share of the means' squared length the plane shows.

    Raises:
        ValueError: Lengths disagree.
    """
    places, shown = principal_plane(record["class_means"])
    names = list(record.get("class_names") or [])
    states = list(record.get("states") or ["separated"] * len(places))
    for what, values in (("class_names", names or states), ("states", states)):
        if len(values) != len(places):
            raise ValueError(f"`{what}` must hold one entry for each of the {len(places)} classes, got {len(values)}")
    longest = float(np.nanmax(np.hypot(*places.T), initial=0.0)) or 1.0
    reach = 1.25 * longest if reach is None else reach
    seen, colours = np.flatnonzero(np.isfinite(places).all(axis=1)), np.array(_colours(record, states))
    # one artist for all rays and one for each marker: hundreds of them take seconds to make
    rays = LineCollection([((0, 0), tuple(places[k])) for k in seen], colors=colours[seen].tolist(), alpha=0.5)
    rays.set(linewidth=0.9, zorder=2)
    ax.add_collection(rays, autolim=False)
    markers = np.array([STATES[state].marker for state in states])
    points = []
    for marker in dict.fromkeys(markers[seen].tolist()):
        x, y = places[these := seen[markers[seen] == marker]].T
        points.append(ax.scatter(x, y, s=26, marker=marker, color=colours[these].tolist(), linewidths=0, zorder=3))
    lost = [k for k in record.get("lost") or () if np.isfinite(places[k]).all()]
    if lost:
        edge = {"facecolors": "none", "edgecolors": COLOURS["ink"], "linewidths": 0.9}
        points.append(ax.scatter(*places[lost].T, s=80, marker="v", zorder=4, **edge))
    circles = [_circle(places[list(group)], reach, ax) for group in record.get("groups") or () if len(group) > 1]
    labels = _written(places, names, reach, ax) if 0 < len(names) <= _MOST_NAMES else []
    ax.plot([0], [0], marker="+", color=COLOURS["muted"], markersize=6, zorder=1)
    ax.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    return PlaneArtists(points, rays, circles, labels, shown)


def _colours(record: Mapping[str, Any], states: Sequence[str]) -> list[str]:
    """A colour for each class: that of its cluster if clusters are given, otherwise that of its state."""
    if not record.get("clusters"):
        return [COLOURS[STATES[state].colour] for state in states]
    cluster_of = {
        k: j for j, cluster in enumerate(cluster_of_classes(record["clusters"], len(states))) for k in cluster
    }
    return [COLOURS[CLUSTER_COLOURS[cluster_of[k] % len(CLUSTER_COLOURS)]] for k in range(len(states))]


def _circle(places: Array, reach: float, ax: Axes) -> Circle:
    """A circle around a merged group, never smaller than a marker."""
    centre = np.nanmean(places, axis=0)
    radius = float(np.nanmax(np.hypot(*(places - centre).T))) + _CIRCLE * reach
    circle = Circle((float(centre[0]), float(centre[1])), radius, fill=False, edgecolor=COLOURS["ink"], linestyle="--")
    circle.set_linewidth(0.9)
    ax.add_patch(circle)
    return circle


def _written(places: Array, names: Sequence[str], reach: float, ax: Axes) -> list[Text]:
    """The names, outside their points, away from other names; names of points in the same place are joined."""
    letter = 2 * reach * _LETTER_INCHES * ax.figure.dpi / ax.get_window_extent().width
    left = [k for k in range(len(places)) if np.isfinite(places[k]).all()]
    rays, taken = _ray_boxes(places[left], reach), np.empty((0, 4))  # left, bottom, right, top
    together: list[list[int]] = []
    while left:
        together.append([k for k in left if np.hypot(*(places[k] - places[left[0]])) < 2 * _SAME_PLACE * reach])
        left = [k for k in left if k not in together[-1]]
    written: list[Text] = []
    for here in sorted(together, key=len):  # many names need the most room
        first = here[0]
        text = textwrap.fill(listed((names[k] for k in here), _MOST_TOGETHER), 18)
        lines = text.split("\n")
        size = letter * np.array([max(map(len, lines)) + 0.3, 2.2 * len(lines) + 0.2])  # and a gap
        length = float(np.hypot(*places[first]))
        outwards = float(np.arctan2(*places[first][::-1])) if length > _SAME_PLACE * reach else -np.pi / 2
        for tries in (_TRIES, _FAR_TRIES):  # farther away only if there is no room nearby
            boxes = [_box(places[first], outwards + turn, distance * reach, size) for distance, turn in tries]
            boxes = [box for box in boxes if np.abs(box).max() <= reach] or boxes
            covered = [_shared(box, rays) + _WORSE * _shared(box, taken) for box in boxes]
            box = boxes[int(np.argmin(covered))]  # the first of the best
            if _shared(box, taken) == 0:
                break
        taken = np.vstack([taken, box])
        x, y = ((box[:2] + box[2:]) / 2).tolist()
        written.append(
            ax.text(x, y, text, fontsize=7, parse_math=False, ha="center", va="center", multialignment="center")
        )
    return written


def _box(place: Array, angle: float, distance: float, size: Array) -> Array:
    """The box of a name that lies ``distance`` from its point, in the direction of the angle."""
    towards = np.array([np.cos(angle), np.sin(angle)])
    return np.concatenate([centre := place + distance * towards + towards * size / 2 - size / 2, centre + size])


def _ray_boxes(places: Array, reach: float) -> Array:
    """Small boxes along the rays and around the points, (n, 4): names should avoid them."""
    along = np.concatenate([share * places for share in np.linspace(0.1, 1.0, 10)])
    return np.hstack([along - _CLEAR * reach, along + _CLEAR * reach])


def _shared(box: Array, others: Array) -> float:
    """The area that a box shares with others, (n, 4)."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    return float(np.prod(np.maximum(sides, 0), axis=1).sum())
