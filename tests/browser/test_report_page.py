"""The demonstration's report in a real browser: opens from disk, safe with any name, by keyboard, phone and theme."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image

from browser_probes import LOW_CONTRASTS, NAMELESS, STICKS_OUT
from collapsar.report import demo_page
from test_report import EVIL, fake_record

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def record():
    return fake_record()


@pytest.fixture(scope="module")
def file(tmp_path_factory, record):
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(demo_page(record))
    return path


def test_it_opens_from_disk(file, open_page, record):
    page = open_page(file)
    assert page.inner_text("h1")
    assert file.stat().st_size < 2_000_000
    assert page.locator(".run").count() == len(record["runs"]) + len(record["standard"]["runs"]) == 5


def test_the_download_yields_the_record(file, open_page, record, tmp_path):
    page = open_page(file, accept_downloads=True)
    with page.expect_download() as download:
        page.click("#download")
    saved = tmp_path / "record.json"
    download.value.save_as(saved)
    assert json.loads(saved.read_text()) == json.loads(json.dumps(record))
    assert download.value.suggested_filename == "collapsar-demo-digits.json"


def test_markup_in_names_is_text(tmp_path, open_page):
    record = fake_record()
    record["class_names"][0] = EVIL
    path = tmp_path / "evil.html"
    path.write_text(demo_page(record))
    page = open_page(path)
    assert EVIL in page.evaluate("document.body.textContent")
    assert page.locator("script").count() == 2  # the record and the page's own
    group = page.locator(".run .maps").first
    group.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    assert EVIL in page.inner_text(".run .readout >> nth=0")


def test_maps_of_many_classes_are_pictures_in_the_right_colours_that_can_be_read(tmp_path, open_page):
    record = fake_record(large=30, small=30)
    record["class_names"][3] = EVIL
    path = tmp_path / "many.html"
    path.write_text(demo_page(record))
    page = open_page(path, color_scheme="light")
    Z = np.array(record["runs"][0]["measured"]["Z"])
    frame = page.locator(".run .frame").first
    frame.scroll_into_view_if_needed()
    box = frame.bounding_box()
    picture = np.array(Image.open(io.BytesIO(page.screenshot())).convert("RGB"), dtype=float)
    full = max(np.abs(run[side]["Z"]).max() for run in record["runs"] for side in ("measured", "predicted"))
    for column, row in ((3, 3), (3, 40), (45, 45), (59, 0)):
        x, y = (box[a] + box[b] * (at + 0.5) / 60 for a, b, at in (("x", "width", column), ("y", "height", row)))
        z = Z[row, column]
        end = np.array([0x0B, 0x4F, 0x8A] if z > 0 else [0xB8, 0x4A, 0x00])
        expected = 255 + (end - 255) * (abs(z) / full) ** 0.6
        assert np.abs(picture[int(y), int(x)] - expected).max() <= 3
        page.mouse.move(x, y)
        said = page.inner_text(".run .readout >> nth=0")
        assert f"“{record['class_names'][column]}”, score for “{record['class_names'][row]}”: network " in said
        assert f"{float(f'{abs(z):.3g}'):g}" in said


def test_the_keyboard_reads_cells_and_opens_definitions(file, open_page, record):
    page = open_page(file)
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.classList.contains('maps')"):
            break
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    text = page.locator(".readout").first.inner_text()
    run, names = record["runs"][0], record["class_names"]
    assert f"“{names[1]}”" in text
    assert f"“{names[2]}”" in text
    assert f"{abs(run['measured']['Z'][2][1]):.3g}" in text
    assert f"{abs(run['predicted']['Z'][2][1]):.3g}" in text
    details = page.locator("details:not([open]) summary")
    before = details.count()
    details.first.focus()
    page.keyboard.press("Enter")
    assert details.count() == before - 1
    link = page.locator('a[href^="#def-"]').first
    target = link.get_attribute("href")
    link.focus()
    page.keyboard.press("Enter")
    page.wait_for_function("id => document.getElementById(id).open", arg=target[1:])


@pytest.mark.parametrize("width", [320, 400])
def test_nothing_sticks_out_on_a_narrow_screen(file, open_page, width):
    page = open_page(file, width=width, height=800)
    assert page.evaluate(STICKS_OUT) <= 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_are_two_pages_that_can_be_read(file, open_page, scheme):
    page = open_page(file, color_scheme=scheme)
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).every((c) => c < 60)")
    assert dark == (scheme == "dark")
    assert page.evaluate(LOW_CONTRASTS) == []


def test_everything_has_a_name(file, open_page):
    assert open_page(file).evaluate(NAMELESS) == []


def test_the_probe_of_contrasts_sees_a_faint_text(tmp_path, open_page, file):
    faint = tmp_path / "faint.html"
    faint.write_text(file.read_text().replace("--muted: #5b636e", "--muted: #9aa3ae"))
    page = open_page(faint, color_scheme="light")
    assert page.evaluate(LOW_CONTRASTS)
