"""The explorer in a real browser: what it shows is what the package computes, by mouse, keyboard, link and phone."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

import collapsar as cs
from browser_probes import LOW_CONTRASTS, NAMELESS, STICKS_OUT
from collapsar.core.problem import FeatureModel
from collapsar.report.explorer import explorer_page
from make_explorer_cases import DATA

pytestmark = pytest.mark.browser

FIG5 = "#k=5,5&n=500,100&z=0.0037&b=0.02&f=signed"
PIXELS = """(places) => {
  const map = document.getElementById("heatmap"), edge = 26 / 400 * map.width;
  const cell = (map.width - edge - 2 * devicePixelRatio) / 10, at = (i) => Math.floor(edge + (i + .5) * cell);
  const { data, width } = map.getContext("2d").getImageData(0, 0, map.width, map.height);
  const colour = (from) => Array.from(data.slice(from, from + 3));
  return places.map(([column, row]) => colour(4 * (at(row) * width + at(column))));
}"""
ARRIVED = """([z, features, n]) => {
  const { problem } = explorer, counts = problem.groups.map((g) => g.n).join();
  return Math.abs(problem.lambdaZ / z - 1) < 1e-9 && problem.features === features && counts === n;
}"""
TOO_LOW = """() => [...document.querySelectorAll("button, select, input[type=text]")]
  .filter((e) => e.offsetParent && e.getBoundingClientRect().height < 20).map((e) => e.id)"""
CONTRASTS = """() => {
  const linear = (c) => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4;
  const light = (name) => {
    const hex = getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
    const [r, g, b] = [1, 3, 5].map((i) => linear(parseInt(hex.slice(i, i + 2), 16) / 255));
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const ratio = (a, b) => {
    const [x, y] = [light(a), light(b)].sort((p, q) => q - p);
    return [a, b, (x + .05) / (y + .05)];
  };
  const text = ["ink", "muted", "link", "A", "B", "C", "vermilion"];
  const zones = ["separated", "merged", "vanished", "all"].map((z) => ratio("ink", "z-" + z));
  return [...text.flatMap((a) => [ratio(a, "page"), ratio(a, "panel")]), ...zones, ratio("page", "blue")];
}"""


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("explorer") / "explorer.html"
    path.write_text(explorer_page())
    return path


EVERY_CASE = """(cases) => cases.map(({ problem }) => {
  const { solve, thresholds, entryOf } = explorer, { groups } = problem, each = (f) => groups.map((_, g) => f(g));
  const p = { ...problem, lambdaB: problem.lambdaB === "inf" ? Infinity : problem.lambdaB };
  const runs = [1, 2, 3].map(() => { const begin = performance.now(); solve(p); return performance.now() - begin; });
  const s = solve(p), other = (g, h) => entryOf(s, groups, g, h, g === h && groups[g].k === 1);
  const said = { closed: s.closed, states: s.states, b: Array.from(s.b), complete: thresholds(p).complete };
  return { ...said, ms: Math.min(...runs),
    own: each((g) => entryOf(s, groups, g, g, true)), other: each((g) => each((h) => other(g, h))) };
})"""


def solved(page):
    """Diagonal of Z, states and lambda_Z as the page has them."""
    return page.evaluate(
        """() => ({ z: explorer.state.z, n: explorer.state.n, k: explorer.state.k, states: explorer.solution.states,
          own: explorer.problem.groups.map((g, i) => explorer.solution.C[i * (explorer.problem.groups.length + 1)]
            + explorer.solution.alpha[i] * (1 - 1 / g.k)) })"""
    )


def expected(n, z, b=0.02, features: FeatureModel = "signed", k=(5, 5)):
    s = cs.solve(cs.Problem([n[0]] * k[0] + [n[1]] * k[1], z, b, features=features))
    return [s.Z[0, 0], s.Z[-1, -1]], [s.class_states[0], s.class_states[-1]]


def until(page, condition):
    page.wait_for_function(f"() => {condition}")  # a function: the page's policy forbids evaluating text


def settle(page):
    until(page, "explorer.settled")


def test_it_opens_from_disk_and_speaks(file, open_page):
    page = open_page(file, FIG5)
    assert "merged into one point" in page.inner_text("#verdict")
    assert "B merges at 0.00333" in page.inner_text("#ticks")
    assert "below 10" in page.inner_text("#proof")
    settle(page)
    assert page.locator("#cure-list button").count() >= 5
    until(page, "document.querySelectorAll('#phase-map path').length === 7")


def test_the_slider_moves_the_picture_to_the_package_s_values(file, open_page):
    page = open_page(file, FIG5)
    before = page.evaluate("document.getElementById('heatmap').toDataURL()")
    box = page.locator("#strip-z").bounding_box()
    for part in (0.3, 0.66, 0.8):
        page.mouse.click(box["x"] + part * box["width"], box["y"] + box["height"] / 2)
        settle(page)
        shown = solved(page)
        own, states = expected(shown["n"], shown["z"])
        assert shown["states"] == states
        assert np.allclose(shown["own"], own, atol=1e-6)
    assert {"separated", "vanished"} <= {expected((500, 100), 0.002)[1][1], shown["states"][1]}
    assert page.evaluate("document.getElementById('heatmap').toDataURL()") != before
    # the points themselves: B's lie on one point when merged, on five when apart
    for z, circles in ((0.0025, 10), (0.0037, 7), (0.0045, 5), (0.009, 0)):
        page.fill("#f-z", str(z))
        page.keyboard.press("Enter")
        settle(page)
        assert page.locator("#geometry circle").count() == circles


def test_the_heat_map_s_colours_are_the_entries(file, open_page):
    page = open_page(file, "#k=5,5&n=500,100&z=0.002&b=0.02&f=signed")
    settle(page)
    places = [(0, 0), (0, 1), (7, 2), (8, 8), (2, 9)]
    pixels = page.evaluate(PIXELS, places)
    s = cs.solve(cs.Problem("500x5,100x5", 0.002, 0.02))
    full = page.evaluate("explorer.reference.full")
    for (column, row), pixel in zip(places, pixels, strict=True):
        z = s.Z[row, column]
        end = np.array([0x0B, 0x4F, 0x8A] if z > 0 else [0xB8, 0x4A, 0x00])
        colour = 255 + (end - 255) * min(abs(z) / full, 1) ** 0.6
        assert np.abs(np.array(pixel) - colour).max() <= 1.5


def test_the_paper_s_panels_are_the_package_s_and_fast(file, open_page):
    page = open_page(file, FIG5)
    cases = json.loads(DATA.read_text())[:40]  # panels of the paper's figures, through the page itself
    worst, times = 0.0, []
    for case in cases:
        problem, stored = case["problem"], case["answer"]
        k, n = (",".join(f"{g[name]:g}" for g in problem["groups"]) for name in ("k", "n"))
        fragment = f"#k={k}&n={n}&z={problem['lambdaZ']!r}&b={problem['lambdaB']}&f={problem['features']}"
        page.evaluate("h => { location.hash = h; }", fragment)
        page.wait_for_function(ARRIVED, arg=[problem["lambdaZ"], problem["features"], n])
        shown = solved(page)
        worst = max(worst, np.abs(np.subtract(shown["own"], stored["own"])).max())
        assert shown["states"] == stored["states"]
        times.append(page.evaluate("explorer.ms"))
    assert worst <= 1e-6
    assert np.median(times) <= 5


def test_every_stored_case_is_the_package_s_in_five_milliseconds(file, open_page):
    cases = json.loads(DATA.read_text())
    answers = open_page(file, FIG5).evaluate(EVERY_CASE, cases)
    closed = [(case["answer"], mine) for case, mine in zip(cases, answers, strict=True) if mine["closed"]]
    assert len(closed) > 280
    for theirs, mine in closed:
        assert mine["states"] == theirs["states"]
        assert mine["complete"] == pytest.approx(theirs["complete"], rel=1e-8)
        for name in ("own", "other", "b"):
            assert np.abs(np.subtract(mine[name], theirs[name])).max() <= 1e-6, name
    assert max(mine["ms"] for mine in answers) <= 5


def test_a_link_restores_the_state_and_follows_it(file, open_page):
    link = "#k=3,7&n=450,120&z=0.0061&b=inf&f=nonnegative&s=2.5&held=1&e=0.05&x=b&v=W"
    page = open_page(file, link)
    settle(page)
    state = page.evaluate("JSON.parse(JSON.stringify(explorer.state, (_, x) => x === Infinity ? 'inf' : x))")
    assert (state["k"][:2], state["n"][:2], state["z"], state["b"]) == ([3, 7], [450, 120], 0.0061, "inf")
    assert (state["f"], state["s"], state["held"], state["e"], state["x"], state["v"]) == (
        "nonnegative",
        2.5,
        True,
        0.05,
        "b",
        "W",
    )
    assert page.input_value("#f-nA") == "450"
    assert page.input_value("#f-b") == "inf"
    assert page.is_checked('[name="f"][value="nonnegative"]')
    assert page.evaluate("location.hash") == link
    page.fill("#f-nA", "800")
    page.keyboard.press("Tab")
    settle(page)
    assert "n=800,120" in page.evaluate("location.hash")
    again = open_page(file, page.evaluate("location.hash"))
    assert again.evaluate("JSON.stringify(explorer.state)") == page.evaluate("JSON.stringify(explorer.state)")


def test_a_broken_link_opens_the_page_all_the_same(file, open_page):
    page = open_page(file, "#k=-3,banana&n=1e99,0&z=nonsense&b=-1&f=both&<script>alert(1)</script>")
    assert page.evaluate("explorer.state.k[0] >= 1 && explorer.state.n[0] <= 1e6 && explorer.state.f === 'signed'")
    assert page.inner_text("#verdict")


def test_the_point_of_the_phase_diagram_can_be_dragged(file, open_page):
    page = open_page(file, FIG5)
    settle(page)
    until(page, "document.querySelector('#phase-map path')")
    page.locator("#phase").scroll_into_view_if_needed()
    point = page.locator("#phase-point .here").bounding_box()
    x, y = point["x"] + point["width"] / 2, point["y"] + point["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 60, y + 90, steps=6)
    page.mouse.up()
    settle(page)
    shown = solved(page)
    assert shown["n"][0] > 600
    assert shown["z"] < 0.003
    own, states = expected(shown["n"], shown["z"])
    assert shown["states"] == states
    assert np.allclose(shown["own"], own, atol=1e-6)
    moved = page.locator("#phase-point .here").bounding_box()
    assert abs(moved["x"] - point["x"] - 60) < 3
    assert abs(moved["y"] - point["y"] - 90) < 3


@pytest.mark.parametrize(("features", "ill"), [("signed", "merged"), ("nonnegative", "vanished")])
def test_a_cure_cures(file, open_page, features, ill):
    link = f"#k=5,5&n=500,100&z=0.0037&b=0.02&f={features}"
    page = open_page(file, link)
    settle(page)
    cures = page.locator("#cure-list button").count()
    assert cures >= 4
    for row in range(cures):
        page.goto(file.as_uri() + link)
        until(page, f"explorer.solution.states[1] === '{ill}'")
        settle(page)
        page.locator("#cure-list button").nth(row).click()
        until(page, "explorer.solution.states[1] === 'separated'")
        settle(page)
        assert "Nothing to cure" in page.inner_text("#cure-lead")


def test_the_keyboard_is_enough(file, open_page):
    page = open_page(file, FIG5)
    settle(page)
    seen, ids = set(), []
    for _ in range(60):
        page.keyboard.press("Tab")
        name = page.evaluate("document.activeElement.id || document.activeElement.textContent.slice(0, 20)")
        ids.append(name)
        seen.add(name)
    wanted = {
        "start-tour",
        "copy-python",
        "theme",
        "f-z",
        "strip-z",
        "geometry",
        "heatmap",
        "phase",
        "preset",
        "r-K",
        "f-nA",
        "r-nB",
        "r-b",
        "r-s",
        "held",
    }
    assert wanted <= seen, wanted - seen
    for name in ("strip-z", "geometry", "phase", "r-nA"):
        page.focus(f"#{name}")
        before = page.evaluate("[JSON.stringify(explorer.state), document.getElementById('geometry').innerHTML]")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowUp")
        settle(page)
        assert (
            page.evaluate("[JSON.stringify(explorer.state), document.getElementById('geometry').innerHTML]") != before
        ), name
    page.focus("#heatmap")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    assert re.search(r"Samples of class A\d.*: ", page.inner_text("#heatmap-readout"))
    page.focus("#start-tour")
    page.keyboard.press("Enter")
    assert page.is_visible("#tour")
    page.keyboard.press("Escape")
    assert page.is_hidden("#tour")
    assert page.evaluate("document.activeElement.id") == "start-tour"


def test_the_tour_goes_to_the_end(file, open_page):
    page = open_page(file, FIG5, reduced_motion="reduce")
    page.click("#start-tour")
    titles = []
    for _ in range(20):
        page.wait_for_timeout(60)
        titles.append(page.inner_text("#tour-title"))
        assert page.locator(".marked").count() == 1
        page.click("#tour-next")
        if page.is_hidden("#tour"):
            break
    assert len(titles) == len(set(titles)) == 8
    assert page.locator(".marked").count() == 0


@pytest.mark.parametrize("width", [320, 400, 768])
def test_nothing_sticks_out_on_a_narrow_screen(file, open_page, width):
    page = open_page(file, FIG5, width=width, height=800)
    settle(page)
    assert page.evaluate(STICKS_OUT) <= 0
    assert page.evaluate("document.getElementById('geometry').getBoundingClientRect().width") > 0.7 * min(width, 380)
    small = page.evaluate(TOO_LOW)
    assert small == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(file, open_page, scheme):
    page = open_page(file, FIG5, color_scheme=scheme)
    settle(page)
    page.click("#start-tour")
    assert page.evaluate(LOW_CONTRASTS) == []
    ratios = page.evaluate(CONTRASTS)
    assert [row for row in ratios if row[2] < 4.5] == []


def test_the_theme_button_turns_the_page_over(file, open_page):
    page = open_page(file, FIG5, color_scheme="light")
    ground = "getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(ground)
    page.click("#theme")
    assert page.evaluate(ground) != before
    page.click("#theme")
    assert page.evaluate(ground) == before


def test_everything_has_a_name(file, open_page):
    page = open_page(file, FIG5)
    nameless = page.evaluate(NAMELESS)
    assert nameless == []
    assert "group B (5 classes) on one point" in page.get_attribute("#geometry", "aria-label")
    assert page.get_attribute("#heatmap", "aria-label").startswith("Mean predictions in nats. samples of A")


def test_the_python_text_is_copied(file, open_page):
    page = open_page(file, FIG5, permissions=["clipboard-read", "clipboard-write"])
    settle(page)
    page.click("#copy-python")
    until(page, "document.getElementById('copy-python').textContent === 'Copied'")
    text = page.evaluate("navigator.clipboard.readText()")
    assert "cs.Problem(" in text
    assert text == page.evaluate("document.getElementById('python').textContent")


def test_an_open_certificate_is_said(file, open_page):
    page = open_page(file, "#k=5,5&n=500,20&z=0.0018&b=0.001&f=nonnegative")
    assert "Not proved" in page.inner_text("#proof")
    assert page.locator("#proof.open").count() == 1


def test_panels_of_a_figure(file, open_page):
    page = open_page(file)
    page.select_option("#preset", "7")
    sticks_out = """[...document.querySelectorAll("#geometry circle")].filter((c) =>
      [c.cx, c.cy].some((at) => at.baseVal.value < 0 || at.baseVal.value > 400))"""
    for preset in ("5", "6", "8", "9", "balanced", "three", "tail", "7"):
        page.select_option("#preset", preset)
        settle(page)
        assert page.evaluate(f"{sticks_out}.length") == 0, preset
    assert page.locator("#panels button").count() == 10
    page.locator("#panels button").nth(3).click()
    until(page, "explorer.state.n[0] === 400 && explorer.problem.groups[0].n === 400")
    assert page.evaluate("explorer.state.f") == "nonnegative"
    assert solved(page)["states"] == expected((400, 100), 0.005, features="nonnegative")[1]
    page.click("#start-tour")  # the menu does not go on naming a figure that is no longer shown
    assert (page.input_value("#preset"), page.locator("#panels button").count()) == ("", 0)


def test_play_goes_from_apart_to_collapsed_and_stops_when_touched(file, open_page):
    page = open_page(file, FIG5)
    settle(page)
    page.clock.install()  # from here on time stands still unless the test moves it
    page.click("#play")
    assert page.inner_text("#play") == "Stop"
    seen = []
    for _ in range(100):
        page.clock.run_for(100)
        states = page.evaluate("explorer.solution.states.join()")
        seen += [states] if states not in seen else []
    assert seen == ["separated,separated", "separated,merged", "separated,vanished", "vanished,vanished"]
    assert page.inner_text("#play") == "Play"
    page.click("#play")
    page.clock.run_for(4000)
    page.focus("#strip-z")
    page.keyboard.press("ArrowRight")
    page.clock.run_for(500)
    stopped = page.evaluate("explorer.state.z")
    page.clock.run_for(2000)
    assert page.evaluate("explorer.state.z") == stopped
