"""Class means in their principal plane: distances are kept, and the pose does not depend on the basis."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from scipy.stats import ortho_group

import collapsar as cs
from collapsar.report.class_plane import class_means_plane, principal_plane
from collapsar.report.style import CLUSTER_COLOURS, COLOURS, styled

FLAT = np.array([[2.0, 0.0], [-1.0, 1.0], [-1.0, -1.0], [0.0, 0.0]])


@pytest.mark.parametrize("seed", range(4))
def test_flat_means_keep_all_distances_and_their_pose(seed: int) -> None:
    turned = np.pad(FLAT, ((0, 0), (0, 3))) @ ortho_group.rvs(5, random_state=seed)
    places, shown = principal_plane(turned)
    assert shown == pytest.approx(1.0)
    np.testing.assert_allclose(places @ places.T, FLAT @ FLAT.T, atol=1e-12)
    np.testing.assert_allclose(places, [[-2, 0], [1, 1], [1, -1], [0, 0]], atol=1e-12)


def test_share_shown_is_that_of_the_two_largest_directions() -> None:
    assert principal_plane(np.diag([3.0, 2.0, 1.0]))[1] == pytest.approx(13 / 14)


def test_unseen_classes_stay_undefined_and_vanished_means_at_the_origin() -> None:
    places, shown = principal_plane([[0.0, 0.0, 0.0], [np.nan] * 3, [0.0, 0.0, 0.0]])
    np.testing.assert_array_equal(places, [[0, 0], [np.nan, np.nan], [0, 0]])
    assert shown == 1.0


def test_merged_groups_are_circled_and_their_names_joined() -> None:
    record = {
        "class_means": [[1.0, 0.0], [-0.5, 1e-4], [-0.5, 0.0]],
        "class_names": ["cat", "<b>", "$x$"],
        "clusters": [[0], [1, 2]],
        "groups": [[1, 2]],
    }
    artists = class_means_plane(record, Figure().subplots())
    assert [text.get_text() for text in artists.names] == ["cat", "<b>, $x$"]
    assert len(artists.circles) == 1
    (points,), places = artists.points, principal_plane(record["class_means"])[0]  # one state: one marker for all
    np.testing.assert_array_equal(np.asarray(points.get_offsets()), places)
    assert [to_hex(colour) for colour in np.asarray(points.get_facecolor())] == [
        COLOURS[CLUSTER_COLOURS[j]] for j in (0, 1, 1)
    ]
    assert [segment.tolist() for segment in artists.rays.get_segments()] == [
        [[0, 0], place] for place in places.tolist()
    ]
    with pytest.raises(ValueError, match="`states`"):
        class_means_plane({**record, "states": ["merged"]}, Figure().subplots())


def test_names_of_thirty_classes_of_which_many_merge_lie_beside_one_another() -> None:
    """The mean scores of a long tail: the names of the merged ones were written over those of others."""
    counts = np.round(np.geomspace(1000, 20, 30)).astype(int).tolist()
    optimum = cs.solve(cs.Problem(counts, 0.0012, 0.02))
    names = [f"type {k}" for k in range(30)]
    record = {"class_means": optimum.Z.T, "class_names": names, "states": list(optimum.class_states)}
    with styled():
        figure = Figure(figsize=(2.9, 2.9), layout="constrained")
        artists = class_means_plane(record, figure.subplots())
        figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in artists.names]
    shared = [
        min(min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0))
        for i, a in enumerate(boxes)
        for b in boxes[:i]
    ]
    assert max(shared) < 0.02 * figure.bbox.width
    assert sum("more" in text.get_text() for text in artists.names) == 1


def test_each_state_has_its_marker_and_its_classes() -> None:
    means = np.array([[2.0, 0.0], [-1.0, 1.0], [np.nan, np.nan], [-1.0, -1.0], [0.0, 0.0]])
    states = ["separated", "merged", "unseen", "separated", "vanished"]
    artists = class_means_plane({"class_means": means, "states": states, "lost": [2, 3]}, Figure().subplots())
    places = principal_plane(means)[0]
    *of_states, lost = (np.asarray(points.get_offsets()).tolist() for points in artists.points)
    assert of_states == [places[[0, 3]].tolist(), places[[1]].tolist(), places[[4]].tolist()]
    assert lost == places[[3]].tolist()
    assert len(artists.rays.get_segments()) == 4
