"""The report of several networks in a real browser: opens from disk, safe with any name, keyboard, phone, theme."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest

import collapsar as cs
from browser_probes import LOW_CONTRASTS, NAMELESS, OVERLAPPING_WORDS, SCROLLS, STICKS_OUT
from collapsar.app.report_record import report_record
from collapsar.app.solution_report import solution_report
from collapsar.report import diagnosis_page, report_page
from collapsar.report.advice_page import advice_page
from test_report import EVIL
from test_report_optimum import PROBLEMS
from test_report_page import write

pytestmark = pytest.mark.browser


TAIL = (400, 300, 150, 80, 40, 20, 10, 5)


def tail(path, counts, lambda_z=0.005, lambda_w=0.2):
    """The optimum of classes of which no two have one size, as a network with a history."""
    W, H, b = cs.solve(cs.Problem(counts, lambda_z, 0.02)).factors(len(counts) + 1, lambda_w=lambda_w)
    labels = np.repeat(np.arange(len(counts)), counts)
    names = [f"species {k}" for k in range(len(counts))]
    penalties = {"lambda_w": lambda_w, "lambda_h": lambda_z**2 / lambda_w, "lambda_b": 0.02}
    W, features = W.T, H[:, labels].T
    np.savez(path, features=features, labels=labels, weight=W, bias=b, class_names=np.array(names), **penalties)  # pyright: ignore[reportArgumentType]
    return path


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks")
    cases = {"apart": ("nonnegative", 0.008), "merged": ("signed", 0.0185), "vanished": ("nonnegative", 0.03)}
    record = report_record([write(folder / f"{name}.npz", *case) for name, case in cases.items()])
    numbers = ("nc1_uniform", "nc1_weighted", "cdnv", "cdnv_max", "nc2_etf", "nc3_self_duality", "stationarity")
    record["runs"][0]["history"] = [{"epoch": e, **dict.fromkeys(numbers, 1 / e)} for e in (1, 2, 4, 8)]
    return record


@pytest.fixture(scope="module")
def files(tmp_path_factory, record):
    """A page of several networks, of a diagnosis, of advice."""
    folder = tmp_path_factory.mktemp("pages")
    merged = record["runs"][1]
    pages = {
        "report": report_page(record),
        "diagnosis": diagnosis_page(merged["diagnosis"]),
        "advice": advice_page(merged["advice"]),
    }
    for name, counts in {"tail": TAIL, "longer tail": range(60, 4, -4), "thirty": range(310, 10, -10)}.items():
        pages[name] = report_page(report_record([tail(folder / f"{name}.npz", tuple(counts))]))
    for name in ("per sample", "distinct"):
        optimum = solution_report(cs.solve(PROBLEMS[name]), "optimum", None)
        pages[name] = report_page({"kind": "report", "runs": [], "solutions": [optimum]})
    for name, text in pages.items():
        (folder / f"{name}.html").write_text(text)
    return {name: folder / f"{name}.html" for name in pages}


def test_it_opens_from_disk_in_under_a_second_of_processor_time(files, open_page):
    page = open_page(files["report"])
    assert (
        page.inner_text("h1")
        == "2 of 3 networks have merged, vanished, lost or dead classes: merged.npz, vanished.npz."
    )
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})  # the clock of a busy machine says more of others
    page.reload()
    spent = {entry["name"]: entry["value"] for entry in session.send("Performance.getMetrics")["metrics"]}
    assert 0 < spent["TaskDuration"] < 1, spent
    assert files["report"].stat().st_size < 2_000_000


@pytest.mark.parametrize("name", ["report", "diagnosis", "advice"])
def test_the_download_yields_the_record(files, open_page, record, tmp_path, name):
    page = open_page(files[name], accept_downloads=True)
    with page.expect_download() as download:
        page.click("#download")
    download.value.save_as(tmp_path / "record.json")
    merged = record["runs"][1]
    expected = {"report": record, "diagnosis": merged["diagnosis"], "advice": merged["advice"]}[name]
    assert json.loads((tmp_path / "record.json").read_text()) == expected
    names = {
        "report": "collapsar-report-apart.npz-merged.npz-vanished.npz.json",
        "diagnosis": "collapsar-diagnosis-merged.npz.json",
        "advice": "collapsar-advice.json",
    }
    assert download.value.suggested_filename == names[name]


def test_markup_in_names_is_text(tmp_path, open_page, record):
    evil = copy.deepcopy(record)
    evil["runs"][0]["name"] = EVIL
    evil["runs"][0]["diagnosis"]["class_names"][0] = EVIL
    path = tmp_path / "evil.html"
    path.write_text(report_page(evil))
    page = open_page(path)
    assert EVIL in page.evaluate("document.body.textContent")
    assert page.locator("script").count() == 2  # the record and the page's own
    page.locator(".run .maps").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    assert EVIL in page.inner_text(".run .readout >> nth=0")


def test_the_keyboard_reads_cells_of_every_network_and_opens_definitions(files, open_page, record):
    page = open_page(files["report"])
    for index, run in enumerate(record["runs"]):
        page.locator(".run .maps").nth(index).focus()
        for key in ("ArrowDown", "ArrowDown", "ArrowRight"):
            page.keyboard.press(key)
        words = page.locator(".run .readout").nth(index).inner_text()
        measured, predicted = run["diagnosis"]["Z"][2][1], run["diagnosis"]["prediction"]["Z"][2][1]
        assert words.startswith("Images of “bee”, score for “cat”: network ")
        assert f"{abs(measured):.3g}, theory" in words
        assert f"{abs(predicted):.3g}." in words
    link = page.locator('a[href^="#def-"]').first
    target = link.get_attribute("href")
    link.focus()
    page.keyboard.press("Enter")
    page.wait_for_function("id => document.getElementById(id).open", arg=target[1:])
    summary = page.locator("details:not([open]) summary").first
    summary.focus()
    page.keyboard.press("Enter")
    assert summary.evaluate("document.activeElement.parentElement.open")


def test_pointing_at_a_cell_marks_it_in_both_maps(files, open_page):
    page = open_page(files["diagnosis"])
    page.locator(".run .cell").nth(0).hover()
    assert "“ant”, score for “ant”" in page.inner_text(".run .readout")
    assert page.locator(".run .cursor").evaluate_all("(all) => all.map((c) => c.style.visibility)") == ["visible"] * 2


@pytest.mark.parametrize("name", ["report", "diagnosis", "advice", "per sample", "distinct", "thirty"])
@pytest.mark.parametrize("width", [320, 400])
def test_nothing_sticks_out_on_a_narrow_screen(files, open_page, width, name):
    page = open_page(files[name], width=width, height=800)
    page.evaluate("document.querySelectorAll('details').forEach((d) => (d.open = true))")
    assert page.evaluate(STICKS_OUT) <= 0
    assert page.evaluate(SCROLLS) == []


@pytest.mark.parametrize(
    "name", ["report", "diagnosis", "advice", "tail", "longer tail", "per sample", "distinct", "thirty"]
)
@pytest.mark.parametrize("width", [390, 1400])
def test_no_words_of_a_picture_touch_or_are_cut(files, open_page, width, name):
    assert open_page(files[name], width=width, height=900).evaluate(OVERLAPPING_WORDS) == []


# Heights in pixels of the names of classes that are written upright below pictures and above maps.
_NAMES = """() => [...document.querySelectorAll("svg text")]
  .filter((e) => e.checkVisibility() && /species/.test(e.textContent))
  .map((e) => Math.min(e.getBoundingClientRect().width, e.getBoundingClientRect().height))"""


@pytest.mark.parametrize("width", [390, 1400])
def test_names_of_thirty_classes_can_be_read(files, open_page, width):
    """Each picture of classes is drawn again for a phone, which shows only that one."""
    page = open_page(files["thirty"], width=width, height=900)
    heights = page.evaluate(_NAMES)
    assert len(heights) >= 4 * 30
    assert min(heights) > 9.5  # 9 and 7.6 where a phone had the wide pictures, shrunk
    for variant, there in ((".broad", width > 480), (".slim", width < 480)):
        shown = page.locator(variant).evaluate_all("(all) => all.map((e) => e.checkVisibility())")
        assert shown.count(there) == len(shown) >= 4


@pytest.mark.parametrize("name", ["report", "diagnosis", "advice", "per sample"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_are_two_pages_that_can_be_read(files, open_page, scheme, name):
    page = open_page(files[name], color_scheme=scheme)
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).every((c) => c < 60)")
    assert dark == (scheme == "dark")
    page.evaluate("document.querySelectorAll('details').forEach((d) => (d.open = true))")
    assert page.evaluate(LOW_CONTRASTS) == []


@pytest.mark.parametrize("name", ["report", "diagnosis", "advice", "per sample"])
def test_everything_has_a_name(files, open_page, name):
    assert open_page(files[name]).evaluate(NAMELESS) == []


def test_in_print_all_definitions_are_open_and_the_button_is_gone(files, open_page):
    page = open_page(files["report"])
    assert not page.locator("#def-z p").is_visible()
    page.emulate_media(media="print")
    assert page.locator("#def-z p").is_visible()
    assert not page.locator("#download").is_visible()
