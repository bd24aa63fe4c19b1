"""The doctor's page in Chromium: filters, sorting, pictures, and names that try to run something."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from doctor_data import FAULTS, Content, planted, renamed

from vision_stack import commands

pytestmark = pytest.mark.browser
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
PLANTED = (
    "truncated jpeg",
    "same file in both splits",
    "annotation twice",
    "mask in a mask",
    "crowded image",
    "image without objects",
    "annotation is text",
)
HOSTILE = "<img src=x onerror=\"document.title='owned'\"></td><script>document.title='owned'</script>"


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a data set with several faults."""
    root = tmp_path_factory.mktemp("doctor")

    def faults(content: Content, folder: Path) -> None:
        for name in PLANTED:
            FAULTS[name][0](content, folder)
        for split in content:
            renamed(split, HOSTILE)(content, folder)

    data = planted(root / "data", faults)
    assert commands.main(["doctor", str(data), "--html", str(root / "page.html")]) == 1
    return root / "page.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install -e '.[browser]'")
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any, page_file: Path) -> Iterator[Any]:
    """The page as it opens; whatever it logs as an error, and any request beyond the file, fails the test."""
    tab = browser.new_page(viewport={"width": 1280, "height": 900})
    faults: list[str] = []
    tab.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    tab.on("pageerror", lambda error: faults.append(str(error)))
    tab.on(
        "request", lambda request: None if request.url.startswith(("file:", "data:")) else faults.append(request.url)
    )
    tab.goto(page_file.as_uri())
    yield tab
    tab.close()
    assert faults == []


def shown(page: Any, selector: str) -> list[Any]:
    return [each for each in page.query_selector_all(selector) if each.is_visible()]


def column(page: Any, number: int) -> list[str]:
    return [row.query_selector_all("td")[number].inner_text() for row in shown(page, "#findings tbody tr")]


def test_names_run_nothing_and_are_shown_as_they_are(page: Any) -> None:
    assert page.title() == "Data of data"
    assert HOSTILE in page.inner_text("#classes")
    assert page.query_selector("#classes img") is None


def test_totals_filter_rows_and_pictures_and_a_second_click_shows_all(page: Any) -> None:
    everything = len(shown(page, "#findings tbody tr"))
    page.click("#totals button.error")
    assert set(column(page, 0)) == {"error"}
    assert page.get_attribute("#totals button.error", "aria-pressed") == "true"
    assert {each.get_attribute("data-severity") for each in shown(page, "#pictures figure")} == {"error"}
    errors = int(page.inner_text("#totals button.error b"))
    assert len(column(page, 0)) == errors == 4
    assert page.inner_text("#shown") == f"{errors} of {everything} shown"
    page.click("#totals button.error")
    assert len(shown(page, "#findings tbody tr")) == everything


def test_kind_split_and_words_filter_together(page: Any) -> None:
    page.select_option("#kind", "duplicate annotations")
    assert set(column(page, 1)) == {"duplicate annotations"}
    assert len(shown(page, "#pictures figure")) == 1
    page.select_option("#split", "val")
    assert column(page, 1) == []
    page.select_option("#kind", "")
    page.fill("#words", "VAL_3.JPG")
    assert column(page, 1) == ["images with more objects than can be found"]
    page.press("#words", "Enter")  # submits nothing
    assert page.title() == "Data of data"


def test_a_click_on_a_head_sorts_up_and_then_down(page: Any) -> None:
    page.click("#findings th:nth-child(2) button")
    assert column(page, 1) == sorted(column(page, 1), key=str.lower)
    page.click("#findings th:nth-child(2) button")
    assert column(page, 1) == sorted(column(page, 1), key=str.lower, reverse=True)
    assert page.get_attribute("#findings th:nth-child(2)", "aria-sort") == "descending"
    counts = "#classes tbody tr td:nth-child(2)"
    page.click("#classes th:nth-child(2) button")
    values = [int(cell.inner_text().replace(",", "")) for cell in page.query_selector_all(counts)]
    assert values == sorted(values)  # as numbers


def test_a_click_on_a_picture_enlarges_it(page: Any) -> None:
    picture = page.query_selector("#pictures figure img")
    assert picture.evaluate("image => image.naturalWidth") > 0
    before = picture.bounding_box()["width"]
    page.click("#pictures figure button")
    assert picture.bounding_box()["width"] > 2 * before
    page.click("#pictures figure button")
    assert picture.bounding_box()["width"] == before


def test_nothing_is_wider_than_a_phone(page: Any) -> None:
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
