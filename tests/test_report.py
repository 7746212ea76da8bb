"""The report room: pictures and the page drawn from the record of a demonstration."""

from __future__ import annotations

import base64
import copy
import hashlib
import inspect
import json
import math
import pkgutil
import re
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

import collapsar.report as room
from collapsar.report import demo_page, png_bytes, styled, svg_string
from collapsar.report.penalty_axis import threshold_line
from collapsar.report.plots import demo_figure, heatmap, nc1_curve
from collapsar.report.style import COLOURS, DIVERGING, STATES, diverging_norm
from collapsar.report.words import consequence, finding, number_text, outcome, share_text, standard_finding, verdict

Record = dict[str, Any]

EVIL = '<script>alert(1)</script>"&\u2028<!-- $x$'
TEMPLATES = Path(room.__file__).parent / "templates"


def block_scores(heights: list[float], rng: np.random.Generator, noise: float = 0.0) -> np.ndarray:
    """Scores [logit, class] of a block structure: class k raises its own score to heights[k]."""
    K = len(heights)
    Z = np.array(heights) * (np.eye(K) - 1 / K)
    return Z + noise * rng.normal(size=(K, K))


def fake_run(
    lambda_z: float, heights: list[float], states: list[str], rng: np.random.Generator, position: str
) -> Record:
    K = len(heights)
    dead = all(state == "vanished" for state in states)
    bias = np.array([0.3] * (K // 2) + [-0.3] * (K - K // 2))
    return {
        "lambda_z": lambda_z,
        "seed": 0,
        "position": position,
        "predicted": {
            "states": states, "Z": block_scores(heights, rng).tolist(), "b": bias.tolist(),
            "primal": 1.2, "dual": 1.2 - 4e-10, "gap": 4e-10,
        },
        "measured": {
            "states": list(states), "Z": block_scores(heights, rng, 0.02).tolist(), "b": (bias * 1.1).tolist(),
            "nc1_uniform": 3.1e-3, "nc1_weighted": 1.7e-2, "relative_norm": [h / 5 for h in heights],
            "minority_separation": 0.7,
        },
        "distance": {
            "Z": None if dead else 0.0437, "Z_max": None if dead else 0.052, "b": 0.107,
            "Z_signed": None if dead else 0.21, "b_signed": 0.3,
        },
        "accuracy": {
            "train_minority": 0.991, "train_majority": 1.0, "test_minority": 0.613, "test_majority": 0.978,
            "test_balanced": 0.7955,
        },
        "stationarity": 0.0123,
        "seconds": 8.57,
        "epochs": 400,
        "history": [
            {"epoch": e, "nc1_uniform": 1 / e, "nc1_weighted": 2 / e, "train_loss": 0.5, "train_accuracy": 0.9,
             "test_minority": 0.6}
            for e in range(20, 401, 20)
        ],
    }  # fmt: skip


def fake_standard_run(lambda_w: float, states: list[str], cosine: float, rng: np.random.Generator) -> Record:
    run = fake_run(1.0, [2.0] * len(states), states, rng, "below")
    for side in ("predicted", "measured"):
        run[side]["cosines"] = {"minority": cosine, "majority": -0.2, "across": -0.1}
    return {**run, "lambda_w": lambda_w}


def fake_record(features: str = "nonnegative", large: int = 5, small: int = 5) -> Any:
    rng = np.random.default_rng(0)
    K = large + small

    def states(a: str, b: str) -> list[str]:
        return [a] * large + [b] * small

    def per_class(a: float, b: float) -> list[float]:
        return [a] * large + [b] * small

    runs = [
        fake_run(0.0045, per_class(5.0, 3.5), states("separated", "separated"), rng, "below"),
        fake_run(0.0105, per_class(3.0, 0.0), states("separated", "vanished"), rng, "between"),
        fake_run(0.018, per_class(0.0, 0.0), states("vanished", "vanished"), rng, "above"),
    ]
    runs[1]["accuracy"]["test_minority"] = 0.0
    return {
        "kind": "demo",
        "data": "digits",
        "class_names": [f"digit {k}" for k in range(K)],
        "class_counts": [100] * large + [20] * small,
        "features": features,
        "lambda_b": 0.02,
        "clusters": [list(range(large)), list(range(large, K))],
        "thresholds": {
            "nonnegative": {"vanish": per_class(0.0151, 0.00737), "complete": 0.0151},
            "signed": {
                "merge": per_class(0.01667, 0.00745), "vanish": per_class(0.01667, 0.00891), "complete": 0.01667,
            },
        },
        "environment": {"collapsar": "0.1.0", "python": "3.12", "torch": "2.13", "device": "cpu", "commit": None},
        "runs": runs,
        "standard": {
            "norm": "layernorm", "width": 32, "lambda_b": 0.0, "merge": 2.12,
            "runs": [
                fake_standard_run(1.06, states("separated", "separated"), 0.358, rng),
                fake_standard_run(2.97, states("separated", "merged"), 1.0, rng),
            ],
        },
    }  # fmt: skip


def changed(change: Callable[[Record], object], features: str = "nonnegative") -> Any:
    record = fake_record(features)
    change(record)
    return record


class Page(HTMLParser):
    """Elements with their attributes, the text in them, and the text of each script."""

    VOID = frozenset({"meta", "br", "link", "img", "input", "hr"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.scripts: list[str] = []
        self.open: list[str] = []
        self.texts: dict[str, list[list[str]]] = {}  # pieces: adding each to all that is open takes longer than reading
        self.feed(text)
        self.close()
        self.by_tag = {tag: ["".join(pieces) for pieces in texts] for tag, texts in self.texts.items()}
        assert self.open == [], "every element is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in self.VOID:
            self.open.append(tag)
            self.texts.setdefault(tag, []).append([])
        if tag == "script":
            self.scripts.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes its own element"

    def handle_data(self, data: str) -> None:
        for tag in set(self.open):
            self.texts[tag][-1].append(data)
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data

    def count(self, tag: str, kind: str = "") -> int:
        return sum(1 for name, attrs in self.elements if name == tag and kind in ["", *attrs.get("class", "").split()])


@pytest.fixture(scope="module")
def text() -> str:
    return demo_page(fake_record())


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def axes() -> Axes:
    with styled():
        return Figure(figsize=(3.3, 2.2)).subplots()


def at(line: Line2D) -> tuple[float, float]:
    """Where a line begins."""
    return float(np.asarray(line.get_xdata())[0]), float(np.asarray(line.get_ydata())[0])


# --- the page


def test_the_finding_comes_first_and_once(page: Page) -> None:
    words = (
        "The 5 minority classes (20 training images each) collapse between penalty 0.0045 and 0.0105; "
        "the theory puts the threshold at 0.00737."
    )
    assert [heading.strip() for heading in page.by_tag["h1"]] == [words]
    assert [name for name, _ in page.elements if name in ("h1", "svg")][:2] == ["h1", "svg"]


def test_every_matrix_entry_can_be_hovered_and_read_in_a_table(page: Page) -> None:
    record = fake_record()
    assert page.count("rect", "cell") == (6 + 4) * 100
    titles = page.by_tag["title"]
    value = record["runs"][0]["measured"]["Z"][7][2]
    words = f"images of “digit 2”, score for “digit 7”: {number_text(value)}"
    assert words in titles
    cells = [text.strip() for text in page.by_tag["td"]]
    for run in record["runs"]:
        for side in ("measured", "predicted"):
            for row in run[side]["Z"]:
                assert all(f"{x:.3f}".replace("-", "−") in cells for x in row)


def test_the_table_shows_the_numbers_of_the_record(page: Page) -> None:
    cells = [text.strip() for text in page.by_tag["td"]]
    for text in ("4.4 %", "5.2 %", "11 %", "21 %", "61 %", "99 %", "98 %", "0 %", "80 %", "0.0031", "4 × 10⁻¹⁰"):
        assert text in cells, text


@pytest.mark.usefixtures("undrawn")
def test_networks_as_people_train_them_stand_beside_their_own_optimum(page: Page) -> None:
    words = (
        "With a LayerNorm before the last layer and weight decay on that layer alone, the small classes merge "
        "in theory above lambda_w 2.12. Trained: all separated at lambda_w 1.06 (predicted: all separated; scores "
        "4.4 % away), minority merged at lambda_w 2.97 (predicted: minority merged; scores 4.4 % away)."
    )
    assert standard_finding(fake_record()) == words
    cells = [text.strip() for text in page.by_tag["td"]]
    assert "0.358" in cells
    assert cells.count("10 of 10") == 3 + 2
    assert "Minority, measured●separated■merged" in [row.strip() for row in page.by_tag["tr"]]
    without = demo_page(changed(lambda r: r.pop("standard")))  # as earlier versions wrote it
    assert "Networks with standard training" not in without


def test_text_from_a_record_stays_text(page: Page) -> None:
    record = fake_record()
    record["class_names"][3] = EVIL
    record["data"] = EVIL
    record["environment"]["device"] = EVIL
    record["environment"][EVIL] = EVIL
    record["runs"][1]["measured"]["states"][3] = "merged"  # so that the finding names it
    evil = Page(demo_page(record))
    assert len(evil.scripts) == len(page.scripts) == 2
    assert {name for name, _ in evil.elements} == {name for name, _ in page.elements}
    for tag in ("p", "dd", "th"):
        assert any(EVIL in text for text in evil.by_tag[tag])


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("name", ["ordinary", EVIL])
def test_the_embedded_record_is_the_record(name: str) -> None:
    record = fake_record()
    record["runs"] = record["runs"][:2]
    record["class_names"][0] = name
    record["runs"][0]["measured"]["Z"] = np.array(record["runs"][0]["measured"]["Z"])
    record["runs"][0]["measured"]["nc1_uniform"] = math.nan
    record["runs"][1]["seed"] = np.int64(0)
    block = Page(demo_page(record)).scripts[0]
    assert not re.search(r"[<>&]", block)
    expected = copy.deepcopy(record)
    expected["runs"][0]["measured"]["Z"] = record["runs"][0]["measured"]["Z"].tolist()
    expected["runs"][0]["measured"]["nc1_uniform"] = None
    expected["runs"][1]["seed"] = 0
    assert json.loads(block) == expected


def test_the_page_asks_the_network_for_nothing(text: str, page: Page) -> None:
    for name, attrs in page.elements:
        for key in ("src", "href", "xlink:href", "action", "poster", "data", "srcset"):
            assert attrs.get(key, "#").startswith(("#", "data:")), (name, key, attrs[key])
    style = re.sub(r"url\(#[\w-]+\)", "", text)
    assert not re.search(r"url\(|@import|//[a-z]+\.[a-z]+/[^\"]*\.(js|css|woff)", style)
    policy = next(attrs["content"] for _, attrs in page.elements if "content" in attrs and "http-equiv" in attrs)
    digest = base64.b64encode(hashlib.sha256(page.scripts[1].encode()).digest()).decode()
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}'" in policy


def test_ids_are_unique_and_references_lead_somewhere(text: str, page: Page) -> None:
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    targets = re.findall(r'(?:href="|url\()#([\w-]+)|aria-labelledby="([\w-]+)"', text)
    assert len(targets) > 20
    assert {a or b for a, b in targets} <= set(ids)


def test_pictures_have_text_alternatives_and_the_page_a_language(page: Page) -> None:
    pictures = [attrs for name, attrs in page.elements if name == "svg" and attrs.get("aria-hidden") != "true"]
    # Samples of the colour bar lie inside an element that has the label for all of them.
    labelled = [attrs for attrs in pictures if attrs.get("role") == "img" and len(attrs.get("aria-label", "")) > 30]
    assert len(labelled) == 6 + 1 + 3 + 4
    assert len(pictures) - len(labelled) == 2 * 9
    assert ("html", {"lang": "en"}) in page.elements


def test_the_page_is_small_and_the_same_every_time(text: str) -> None:
    assert text == demo_page(fake_record())
    assert len(text.encode()) < 400_000


def test_many_classes_become_pictures_within_the_budget() -> None:
    text = demo_page(fake_record(large=30, small=30))
    assert len(text.encode()) < 2_000_000
    assert Page(text).count("rect", "cell") == 0
    assert text.count("data:image/png;base64") == 20  # a picture for each colour of each map


def numbers_to_null(value: Any, keep: tuple[str, ...]) -> Any:
    if isinstance(value, dict):
        return {k: v if k in keep else numbers_to_null(v, keep) for k, v in value.items()}
    if isinstance(value, list):
        return [numbers_to_null(item, keep) for item in value]
    return None if isinstance(value, int | float) else value


# What says that the numbers of a part are missing: dashes in its rows, or words.
NULLS: list[tuple[str, str]] = [
    ("distance", "Distance to theory, mean predictions Z̄–"),
    ("measured", "NC1 uniform–"),
    ("predicted", "Certificate gap–"),
    ("accuracy", "Training images recognised, minority–"),
    ("history", "NC1 is undefined"),
    ("thresholds", "signed features, vanish–"),
]


NOTHING = re.compile(r"\b(nan|None|null)\b")


@pytest.mark.parametrize(("part", "words"), NULLS)
def test_undefined_numbers_are_shown_as_such(part: str, words: str) -> None:
    record = fake_record("signed")
    if part == "thresholds":
        record[part] = numbers_to_null(record[part], ())
    else:
        record["runs"] = record["runs"][:1]
        record["runs"][0][part] = numbers_to_null(record["runs"][0][part], ("epoch",))
    page = Page(demo_page(record))
    text = "".join(page.by_tag["body"])
    assert words in " ".join("".join(text).split())
    assert "–: not recorded, or undefined" in text
    assert not NOTHING.search(text.replace(page.scripts[0], "").replace(page.scripts[1], ""))


def test_a_record_without_any_number_still_becomes_page_and_figure() -> None:
    record = numbers_to_null(fake_record(), ("lambda_z", "seed", "clusters", "class_counts"))
    record["runs"][2]["history"] = []
    page = Page(demo_page(record))
    text = "".join(page.by_tag["body"]).replace(page.scripts[0], "").replace(page.scripts[1], "")
    assert "theory puts" not in text
    assert not NOTHING.search(text)
    assert len(png_bytes(demo_figure(record), dpi=50)) > 1000


@pytest.mark.usefixtures("undrawn")
def test_several_seeds_are_told_apart() -> None:
    record = fake_record()
    record["runs"] += [{**run, "seed": 1} for run in copy.deepcopy(record["runs"])]
    page = Page(demo_page(record))
    headings = [text for text in page.by_tag["h3"] if "seed" in text]
    assert [re.sub(r":.*", "", h, flags=re.DOTALL) for h in headings] == [
        f"Penalty {level}, seed {seed}" for level in ("0.0045", "0.0105", "0.018") for seed in (0, 1)
    ]
    assert len(demo_figure(record).axes) == 3 * 3 + 2  # the first seed, the colour bar, the threshold line


def luminance(colour: str) -> float:
    channels = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return float(np.dot([0.2126, 0.7152, 0.0722], channels))


def palettes() -> list[dict[str, str]]:
    blocks = re.findall(r":root \{(.*?)\}", (TEMPLATES / "page.css").read_text(encoding="utf-8"), flags=re.DOTALL)
    return [dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block)) for block in blocks]


@pytest.mark.parametrize("palette", palettes(), ids=["light", "dark"])
def test_contrast_in_light_and_dark(palette: dict[str, str]) -> None:
    # WCAG 2.1: 4.5 for text, 3 for graphical objects.
    for ground in ("page", "panel"):
        for name, least in {"ink": 4.5, "muted": 4.5, "link": 4.5, **dict.fromkeys(COLOURS, 3.0), "rule": 1.0}.items():
            high, low = sorted((luminance(palette[name]), luminance(palette[ground])), reverse=True)
            assert (high + 0.05) / (low + 0.05) >= least, (name, ground)


@pytest.mark.parametrize("palette", [*palettes(), dict(COLOURS)], ids=["light", "dark", "figure"])
@pytest.mark.parametrize(
    "simulation",
    [
        # Machado, Oliveira & Fernandes, IEEE TVCG 15(6), 2009, severity 1: protanopia, deuteranopia.
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    ],
    ids=["protanopia", "deuteranopia"],
)
def test_for_and_against_stay_apart_under_colour_blindness(
    palette: dict[str, str], simulation: list[list[float]]
) -> None:
    def seen(name: str) -> np.ndarray:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(palette[name])]
        return np.clip(np.array(simulation) @ linear, 0, 1) ** (1 / 2.2)

    for one, other in (("for", "against"), ("blue", "orange"), ("blue", "vermilion")):
        assert np.linalg.norm(seen(one) - seen(other)) > 0.35, (one, other)


# --- pictures


def test_heatmap_shows_the_matrix_in_the_order_of_the_clusters() -> None:
    Z = np.arange(16.0).reshape(4, 4) - 8
    ax = axes()
    artists = heatmap(Z, ax, clusters=[[0, 3], [1]], class_names=["a", "$b", EVIL, "d"])
    order = [0, 3, 1, 2]
    np.testing.assert_array_equal(np.asarray(artists.image.get_array()), Z[order][:, order])
    assert artists.image.get_clim() == (-8, 8)
    assert sorted(at(line)[0] for line in artists.lines[::2]) == [1.5, 2.5]
    assert [label.get_text() for label in ax.get_yticklabels()][:3] == ["a", "d", "$b"]
    png_bytes(ax.figure.figure, dpi=50)  # an odd number of $ in a name is no mathematics


def test_heatmap_leaves_unseen_classes_blank() -> None:
    image = heatmap([[1.0, None], [-1.0, None]], axes()).image
    shown = image.to_rgba(np.ma.masked_invalid(np.asarray(image.get_array())))
    np.testing.assert_allclose(shown[:, 1, :3], [to_rgb("#d9dce1")] * 2, atol=1 / 255)


def test_diverging_colours_are_centred() -> None:
    norm = diverging_norm(5.0)
    np.testing.assert_allclose(norm(np.array([-5.0, 0.0, 5.0, 50.0])), [0, 0.5, 1, 1])
    np.testing.assert_allclose(norm.inverse(norm(np.array([-3.0, 0.1, 2.0]))), [-3.0, 0.1, 2.0])
    np.testing.assert_allclose(DIVERGING(0.5)[:3], [1, 1, 1], atol=0.01)


def test_nc1_curve_holds_the_history() -> None:
    history = [
        {"epoch": 1, "nc1_uniform": 1.0, "nc1_weighted": 3.0},
        {"epoch": 2, "nc1_uniform": None, "nc1_weighted": 0.0},
        {"epoch": 3, "nc1_uniform": 0.01, "nc1_weighted": 0.03},
    ]
    ax = axes()
    lines = nc1_curve(history, ax).lines
    assert ax.get_yscale() == "log"
    np.testing.assert_array_equal(lines[0].get_ydata(), [1.0, math.nan, 0.01])
    np.testing.assert_array_equal(lines[1].get_ydata(), [3.0, math.nan, 0.03])
    np.testing.assert_array_equal(lines[0].get_xdata(), [1, 2, 3])


@pytest.mark.parametrize(
    ("history", "words"),
    [([], "no history recorded"), ([{"epoch": 1, "nc1_uniform": None}], "NC1 is undefined\nin this run")],
)
def test_nc1_curve_says_when_there_is_nothing(history: list[Record], words: str) -> None:
    artists = nc1_curve(history, axes())
    assert artists.lines == []
    assert artists.remark is not None
    assert artists.remark.get_text() == words


def spans(features: str, **changes: Any) -> list[tuple[float, float, float]]:
    """Lane, begin and end of the bands, lanes from the top."""
    record = fake_record(features) | changes
    bands = threshold_line(record, axes()).bands
    return [(round(1 - (b.get_y() + b.get_height() / 2)), b.get_x(), b.get_x() + b.get_width()) for b in bands]


def test_bands_end_at_the_thresholds_of_the_own_model() -> None:
    left, right = 0.0045 / 1.6, 0.018 * 2.2
    expected = [(0, left, 0.0151), (0, 0.0151, right), (1, left, 0.00737), (1, 0.00737, right)]
    np.testing.assert_allclose(spans("nonnegative"), expected)
    expected = [(0, left, 0.01667), (0, 0.01667, right)]
    expected += [(1, left, 0.00745), (1, 0.00745, 0.00891), (1, 0.00891, right)]
    np.testing.assert_allclose(spans("signed"), expected)


def test_missing_thresholds_draw_no_band_unless_theory_says_vanished_throughout() -> None:
    record = fake_record()
    record["thresholds"]["nonnegative"]["vanish"] = [None] * 10
    assert threshold_line(record, axes()).bands == []
    for run in record["runs"]:
        run["predicted"]["states"][0] = "vanished"
    assert len(threshold_line(record, axes()).bands) == 1


def test_markers_stand_at_the_runs_in_the_colour_of_the_measured_state() -> None:
    record = fake_record()
    record["runs"][1]["measured"]["states"][7] = "merged"
    markers = threshold_line(record, axes()).markers
    found = [(at(m)[0], round(at(m)[1]), m.get_color(), m.get_marker()) for m in markers]
    wanted = {"separated": (0.0045, 1), "merged": (0.0105, 0), "vanished": (0.018, 0)}
    for state, place in wanted.items():
        style = STATES[state]
        assert (*place, COLOURS[style.colour], style.marker) in found
    assert len(found) == 7  # one place has two states


@pytest.mark.parametrize("features", ["nonnegative", "signed"])
@pytest.mark.parametrize("width", [3.3, 7.0])
def test_labels_of_thresholds_do_not_touch(features: str, width: float) -> None:
    with styled():
        figure = Figure(figsize=(width, 2.0), layout="constrained")
        artists = threshold_line(fake_record(features), figure.subplots())
        figure.draw_without_rendering()
        labels = [t.get_window_extent() for t in artists.labels if "\n" in t.get_text()]
        ticks = [t.get_window_extent() for t in figure.axes[0].get_xticklabels()]
    assert len(labels) == (2 if features == "nonnegative" else 3)
    inside = figure.axes[0].get_window_extent()
    assert all(box.x1 <= figure.bbox.x1 and box.x0 >= inside.x0 for box in labels)
    for boxes in (labels, ticks):
        for i, box in enumerate(boxes):
            assert not any(box.overlaps(other) for other in boxes[:i])


def test_demo_figure_has_a_column_per_penalty() -> None:
    figure = demo_figure(fake_record())
    images = [ax.images[0] for ax in figure.axes if ax.images]
    assert len(images) == 6
    assert len({image.get_clim() for image in images}) == 1
    titles = [ax.get_title() for ax in figure.axes if ax.images]
    assert titles[2:4] == ["penalty 0.0105\nnetwork: minority vanished", "theory: minority vanished"]
    words = [ax.get_xlabel() for ax in figure.axes if ax.images]
    assert words[::2] == ["distance to theory 4.4 %", "distance to theory 4.4 %", ""]


def test_svg_is_text_with_its_own_ids_and_no_date() -> None:
    def draw(name: str, *, adaptive: bool = False) -> str:
        ax = axes()
        ax.plot([1, 2], [1, 2], color=COLOURS["blue"], label="a line")
        ax.set_title("title")
        return svg_string(ax.figure.figure, name, 'so "to" <say>', adaptive=adaptive)

    first, second = draw("one"), draw("two")
    assert first == draw("one")
    ids = [set(re.findall(r'\bid="([^"]+)"', text)) for text in (first, second)]
    assert ids[0]
    assert ids[0].isdisjoint(ids[1])
    used = set(re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', first))
    assert used
    assert {a or b for a, b in used} <= ids[0]
    assert "<metadata" not in first
    assert re.search(r"<text[^>]*>title</text>", first)
    assert 'role="img" aria-label="so &quot;to&quot; &lt;say&gt;"' in first
    assert "var(" not in first
    assert f"stroke: var(--blue, {COLOURS['blue']})" in draw("one", adaptive=True)


def test_png_is_the_same_every_time() -> None:
    def draw() -> bytes:
        ax = axes()
        threshold_line(fake_record(), ax)
        return png_bytes(ax.figure.figure, dpi=40)

    assert draw() == draw()
    assert b"Software" not in draw()


def test_whoever_draws_on_axes_returns_what_was_drawn() -> None:
    """Axes are taken, never made, and the artists come back; what only names ticks draws nothing."""
    drawing = set()
    for module in pkgutil.iter_modules(room.__path__, "collapsar.report."):
        for name, function in inspect.getmembers(import_module(module.name), inspect.isfunction):
            parameters = inspect.signature(function).parameters
            if not name.startswith("_") and function.__module__ == module.name and "ax" in parameters:
                drawing.add((name, inspect.signature(function).return_annotation))
    assert len(drawing) > 12
    silent = {name for name, returned in drawing if returned in ("None", "Axes")}
    assert silent == {"name_classes"}


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_a_missing_extra_says_how_to_install_it(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = [name for name in sys.modules if name.startswith((f"{package}.", "collapsar.report."))]
    for name in loaded:
        monkeypatch.delitem(sys.modules, name)
    for name in room.__all__:
        monkeypatch.delitem(vars(room), name, raising=False)  # as before it was first used
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'collapsar\[report\]'"):
        _ = room.demo_page


def test_the_style_has_no_colour_that_a_page_cannot_replace() -> None:
    text = Path(room.__file__).with_name("collapsar.mplstyle").read_text(encoding="utf-8")
    used = {f"#{colour}" for colour in re.findall(r": ([0-9a-f]{6})$", text, flags=re.MULTILINE)}
    assert used == {COLOURS[name] for name in ("ink", "muted", "rule")}


# --- words


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0045, "0.0045"), (0.007366, "0.00737"), (-2.5, "−2.5"), (0.0, "0"), (1e-4, "0.0001"),
        (3.77e-5, "3.77 × 10⁻⁵"),
        (1000, "1000"), (12345, "12345"), (2e6, "2 × 10⁶"), (None, "–"), (math.nan, "–"), (math.inf, "–"),
    ],
)  # fmt: skip
def test_numbers_in_words(value: float | None, text: str) -> None:
    assert number_text(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.0, "100 %"), (0.6053, "61 %"), (0.0996, "10 %"), (0.0582, "5.8 %"), (0.0, "0 %"), (None, "–")],
)
def test_shares_in_words(value: float | None, text: str) -> None:
    assert share_text(value) == text


def with_states(*states: str) -> Callable[[Record], None]:
    """Measured states of all minority classes at the three penalties; the majority stays apart."""

    def change(record: Record) -> None:
        for run, state in zip(record["runs"], states, strict=True):
            run["measured"]["states"] = ["separated"] * 5 + state.split() * (5 // len(state.split()))

    return change


@pytest.mark.usefixtures("undrawn")
def test_the_words_of_the_finding_are_explained_and_its_classes_named(page: Page) -> None:
    text = " ".join("".join(page.by_tag["body"]).split())
    small = ", ".join(f"digit {k}" for k in range(5, 10))
    assert f"Minority: {small}. Majority:" in text
    assert "A class has collapsed when the network gives its images no scores of their own" in text
    assert "Minority:" not in demo_page(fake_record(large=30, small=30))


@pytest.mark.parametrize(
    ("states", "words"),
    [
        (("separated", "merged", "vanished"), "collapse between penalty 0.0045 and 0.0105; the theory puts"),
        (("separated", "separated", "merged"), "collapse between penalty 0.0105 and 0.018; the theory puts"),
        (("vanished", "vanished", "vanished"), "collapse at every penalty tried, from 0.0045 on; the theory puts"),
        (("separated", "merged", "separated"), "collapse in part, from penalty 0.0105 on; the theory puts"),
        (("separated", "separated", "separated"), "No class collapses at the penalties tried."),
    ],
)
def test_the_finding_follows_the_measured_states(states: tuple[str, ...], words: str) -> None:
    assert words in finding(changed(with_states(*states)))


def test_the_finding_speaks_of_whoever_collapses_first() -> None:
    record = fake_record()
    for run in record["runs"]:
        run["measured"]["states"] = ["vanished"] * 5 + ["separated"] * 5
    assert finding(record).startswith("The 5 majority classes (100 training images each) collapse at every penalty")


def test_the_verdict_counts_and_names_what_theory_missed() -> None:
    assert verdict(fake_record()).endswith("gets the state of every class right, in all 3 runs.")
    record = changed(with_states("separated", "separated", "vanished"))
    assert "predicts 20 of 30 class states in the 3 runs" in verdict(record)
    assert "“digit 5” at 0.0105: predicted vanished, measured separated" in verdict(record)
    assert verdict(record).endswith("; and 7 more.")


def test_consequence_compares_accuracies_or_says_nothing() -> None:
    assert "61 % of unseen minority images" in consequence(fake_record())
    assert consequence(fake_record()).endswith("at 0.0105 it recognises 0 % and 98 %.")
    assert consequence(changed(with_states("separated", "separated", "separated"))) == ""
    assert consequence(changed(lambda r: r["runs"][0]["accuracy"].update(test_minority=None))) == ""


@pytest.mark.parametrize(
    ("states", "words"),
    [
        ("s s s s", "all separated"), ("s s v v", "minority vanished"), ("v v v v", "all vanished"),
        ("m m v v", "majority merged, minority vanished"),
        ("s s v m", "minority 1 vanished, 1 merged"),
    ],
)  # fmt: skip
def test_outcome_in_words(states: str, words: str) -> None:
    full = {"s": "separated", "m": "merged", "v": "vanished"}
    record: Any = {"clusters": [[0, 1], [2, 3]], "class_counts": [9, 9, 2, 2]}
    assert outcome(record, [full[s] for s in states.split()]) == words


@pytest.mark.usefixtures("undrawn")
def test_other_numbers_of_clusters_are_named_by_their_counts() -> None:
    record = fake_record()
    record["clusters"] = [[0, 1, 2, 3, 4], [5, 6], [7, 8, 9]]
    text = demo_page(record)
    assert "n = 100" in text
    assert "The 3 classes with 20 images collapse between" in text


# --- the door


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.update(kind="train"), r'kind "demo"\), got kind .train'),
        (lambda r: r.pop("thresholds"), "missing: thresholds"),
        (lambda r: r["runs"][1].pop("history"), r"record.runs\[1\].* missing: history"),
        (lambda r: r["runs"][0]["measured"].pop("Z"), "measured.* missing: Z"),
        (lambda r: r["runs"].clear(), "at least one run"),
        (lambda r: r["class_names"].pop(), "10 classes, got 9 names"),
        (lambda r: r["runs"][2]["predicted"]["Z"].pop(), "square"),
        (lambda r: r["runs"][2]["predicted"].update(Z=[[1.0]]), r"10 classes, got sizes \(1, 10, 10\)"),
        (lambda r: r["runs"][2]["measured"].update(Z=[["a"]]), "square"),
        (lambda r: r["runs"][0].update(lambda_z=None), "must be positive, got None"),
        (lambda r: r["runs"][0].update(lambda_z=math.nan), "must be positive, got None"),
        (lambda r: r.update(clusters=[[0, 1], [1]]), "at most once"),
        (lambda r: r.update(clusters=[[0, 10]]), "at most once"),
        (lambda r: r["standard"].pop("merge"), "`record.standard` must hold .*missing: merge"),
        (lambda r: r["standard"]["runs"][1]["measured"].update(b=[0.0]), r"`record.standard.runs\[1\].measured` must"),
        (lambda r: r["thresholds"].pop("nonnegative"), "own feature model 'nonnegative', got those of signed"),
    ],
)
@pytest.mark.parametrize("door", [demo_page, demo_figure, lambda record: threshold_line(record, axes())])
def test_bad_records_are_refused(
    change: Callable[[Record], object], message: str, door: Callable[[Record], Any]
) -> None:
    with pytest.raises(ValueError, match=message):
        door(changed(change))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: heatmap([[1.0, 2.0]], axes()), "`Z` must be a square"),
        (lambda: heatmap(np.eye(3), axes(), class_names=["a"]), "each of the 3 classes, got 1"),
        (lambda: heatmap(np.eye(3), axes(), vmax=math.nan), "`vmax` must be positive"),
        (lambda: svg_string(Figure(), "1 bad"), "`name` must be a letter"),
    ],
)
def test_bad_arguments_are_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_drawing_leaves_the_record_as_it_was() -> None:
    record = fake_record()
    record["runs"].reverse()
    before = copy.deepcopy(record)
    demo_page(record)
    demo_figure(record)
    assert record == before
