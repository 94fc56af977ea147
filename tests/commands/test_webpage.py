"""The page in a browser: it fits, it sorts, it asks nobody for anything, and what data say in it stays text."""

import json
import math
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import planted
import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from alignment.reporting.tables import escaped
from commands.compare import __main__ as script
from commands.compare import html, page, variants
from commands.compare.blocks import Cell, Figure, Section, Table
from commands.compare.comparison import SideBySide

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars",
)  # fmt: skip
HOSTILE = "<script>document.title = 'ran'</script><img src=x onerror=\"document.title = 'ran'\">&amp;"
FIGURES = 4

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="Debian's chromium and chromium-driver are not installed"),
]


@pytest.fixture(scope="module")
def sections(tmp_path_factory: pytest.TempPathFactory) -> list[Section]:
    """The page of two datasets and two seeds, whose names, prompts and answers are scripts."""
    folder, runs = tmp_path_factory.mktemp("planted"), []
    effects = {"sft": {"truthfulqa_mc2": 0.6}, "dpo": {"safety": 0.6}}
    for data in ("lima", HOSTILE):
        for seed in (0, 1):
            told = {"prompts": (HOSTILE, "Is it true?"), "answer": f"{HOSTILE}\n\n`code` **stress**"}
            revision = planted.revision(
                folder,
                f"{len(runs)}",
                data,
                "hh",
                seed,
                effects=effects,
                drawn=0.05,
                found=[("piqa", "piqa 3")],
                **told,
            )
            runs += revision.checkpoints()
    comparison = SideBySide.of(variants.group(runs))
    return list(page.sections(comparison, "base", f"python -m commands.compare '{HOSTILE}'"))


@pytest.fixture(scope="module")
def place(sections: list[Section], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of the page as a file."""
    path = tmp_path_factory.mktemp("page") / "study.html"
    path.write_text(html.html(page.QUESTION, sections), encoding="utf-8")
    return path.as_uri()


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """A browser with a profile of its own, which keeps a log of its requests."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    with webdriver.Chrome(options=options, service=Service(DRIVER)) as chrome:
        yield chrome


@pytest.fixture
def browser(started: webdriver.Chrome, place: str) -> webdriver.Chrome:
    """The browser with the page, laid out for a laptop."""
    look(started, 1280)
    started.get(place)
    return started


def look(browser: webdriver.Chrome, width: int, **media: Any) -> None:
    """Lay the page out for a screen of this width, or for other media."""
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": [], **media})


def table(browser: webdriver.Chrome, caption: str) -> WebElement:
    """The table with this caption, which is its name."""
    return next(t for t in browser.find_elements(By.TAG_NAME, "table") if t.accessible_name.startswith(caption))


def column(shown: WebElement, name: str) -> tuple[WebElement, Callable[[], list[str]]]:
    """A column's header, and its cells from top to bottom as text."""
    heads = shown.find_elements(By.CSS_SELECTOR, "thead th")
    at = next(i for i, head in enumerate(heads) if head.text.startswith(name))
    return heads[at], lambda: [
        row.find_elements(By.CSS_SELECTOR, "th, td")[at].text
        for row in shown.find_elements(By.CSS_SELECTOR, "tbody tr")
    ]


def numbers(text: str) -> list[str]:
    return re.findall(r"[-+]?\d[\d,.]*\d|\d", text)


@pytest.mark.parametrize(
    ("width", "media"), [(390, {}), (1280, {}), (1040, {"media": "print"})], ids=["phone", "laptop", "print"]
)
def test_it_fits_its_width(browser: webdriver.Chrome, width: int, media: dict[str, str]) -> None:
    look(browser, width, **media)
    widths = browser.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
    assert widths == [width, width]
    # What is wider scrolls in a box of its own, which a keyboard reaches; on paper nothing may be cut off.
    outside = browser.execute_script(
        "return [...document.querySelectorAll('body *')].filter(e => !e.closest('svg *, details:not([open]) *')"
        " && e.getBoundingClientRect().right > innerWidth + 1 && !e.closest('.scroll[tabindex=\"0\"]')).length"
    )
    assert outside == 0
    if media:
        assert browser.execute_script(
            "return [...document.querySelectorAll('.scroll')].every(e => e.scrollWidth <= innerWidth)"
        )


def test_a_header_sorts_by_the_number_and_says_so(browser: webdriver.Chrome) -> None:
    head, cells = column(table(browser, "Differences to base in points"), "safety")
    before = cells()

    def values() -> list[float]:
        return [float(text.split()[0]) for text in cells()]

    button = head.find_element(By.TAG_NAME, "button")
    button.click()
    assert values() == sorted(values()) and head.get_attribute("aria-sort") == "ascending"
    button.click()
    assert values() == sorted(values(), reverse=True) and head.get_attribute("aria-sort") == "descending"
    assert min(values()) < 0 < max(values()) and sorted(cells()) == sorted(before)
    first, _ = column(table(browser, "Differences to base in points"), "variant")
    first.find_element(By.TAG_NAME, "button").click()
    assert cells() == before and head.get_attribute("aria-sort") is None


def test_what_has_no_number_is_sorted_last(place: str, started: webdriver.Chrome, tmp_path: Path) -> None:
    rows = [["variant", "p"]] + [[f"v{p}", Cell(f"{p}", p)] for p in (9.0, 10.0, math.nan, -1.0)]
    small = html.html("?", [Section("Head", [""]), Section("Tables", [Table("Small", rows)])])
    (tmp_path / "small.html").write_text(small, encoding="utf-8")
    started.get((tmp_path / "small.html").as_uri())
    head, cells = column(table(started, "Small"), "p")
    for wanted in (["-1.0", "9.0", "10.0", "nan"], ["10.0", "9.0", "-1.0", "nan"]):
        head.find_element(By.TAG_NAME, "button").click()
        assert cells() == wanted


def test_a_keyboard_sorts_and_opens_the_answers(browser: webdriver.Chrome) -> None:
    body = browser.find_element(By.TAG_NAME, "body")
    for _ in range(60):
        body.send_keys(Keys.TAB)
        if browser.switch_to.active_element.tag_name == "button":
            break
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    assert browser.execute_script("return document.activeElement.parentElement.ariaSort") == "ascending"
    summary = browser.find_element(By.TAG_NAME, "summary")
    summary.send_keys(Keys.ENTER)
    assert browser.find_element(By.CSS_SELECTOR, ".answers").is_displayed()


def test_it_asks_nobody_and_reports_no_error(browser: webdriver.Chrome, place: str) -> None:
    browser.get_log("performance"), browser.get_log("browser")
    browser.get(place)
    table(browser, "Differences").find_element(By.TAG_NAME, "button").click()
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert {url for url in asked if not url.startswith("data:")} == {place}
    assert browser.get_log("browser") == []


def test_every_figure_and_table_has_a_name(browser: webdriver.Chrome, sections: list[Section]) -> None:
    drawn = browser.find_elements(By.CSS_SELECTOR, "svg[role=img]")
    says = [part.says for section in sections for part in section.parts if isinstance(part, Figure)]
    assert [each.accessible_name for each in drawn] == says and len(says) == FIGURES
    assert all(each.aria_role in ("img", "image", "graphics-document") and each.is_displayed() for each in drawn)
    assert len(browser.find_elements(By.TAG_NAME, "svg")) == FIGURES
    assert all(each.accessible_name for each in browser.find_elements(By.TAG_NAME, "table"))
    unnamed = browser.execute_script(
        "return [...document.querySelectorAll('th[scope]')].filter(e => !e.textContent.trim()).length"
    )
    assert unnamed == 0


def test_what_data_say_stays_text(browser: webdriver.Chrome) -> None:
    assert browser.title == f"What the data changed – {page.QUESTION}"
    assert browser.execute_script("return [document.scripts.length, document.images.length]") == [1, 0]
    details = browser.find_element(By.TAG_NAME, "details")
    summary = details.find_element(By.TAG_NAME, "summary")
    assert summary.text == HOSTILE  # a prompt
    summary.click()
    assert details.find_element(By.CSS_SELECTOR, ".answers p").text == f"{HOSTILE}\n\n`code` **stress**"
    names = [each.text for each in details.find_elements(By.TAG_NAME, "h3")]
    assert f"SFT {HOSTILE}, DPO hh" in names  # a dataset's name
    words = browser.execute_script("return [...document.querySelectorAll('svg')].map(e => e.textContent).join()")
    assert "SFT <script>" in words and browser.title != "ran"


def test_without_javascript_tables_and_figures_are_there(browser: webdriver.Chrome, place: str) -> None:
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get(place)
        assert not browser.find_elements(By.CSS_SELECTOR, "th button")  # nothing that would do nothing
        assert all(each.is_displayed() for each in browser.find_elements(By.TAG_NAME, "table"))
        assert len(browser.find_elements(By.CSS_SELECTOR, "svg[role=img]")) == FIGURES
        browser.find_element(By.TAG_NAME, "summary").click()
        assert browser.find_element(By.CSS_SELECTOR, ".answers").is_displayed()
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_it_has_every_number_of_the_markdown(browser: webdriver.Chrome, sections: list[Section]) -> None:
    shown = browser.execute_script(
        "return [...document.querySelectorAll('table')].map("
        "t => [...t.rows].map(r => [...r.cells].map(c => c.textContent)))"
    )
    tables = [part for section in sections for part in section.parts if isinstance(part, Table)]
    assert len(shown) == len(tables)
    for cells, part in zip(shown, tables, strict=True):
        found = [[numbers(text) for text in row] for row in cells]
        assert found == [[numbers(str(cell)) for cell in row] for row in part.rows]
    told = "".join(script.markdown(section, Path("study.md")) for section in sections)
    assert all(escaped(str(cell)) in told for part in tables for row in part.rows for cell in row)


def test_an_interval_is_in_the_hover_too(browser: webdriver.Chrome) -> None:
    cell = browser.find_element(By.CSS_SELECTOR, "td .interval").find_element(By.XPATH, "..")
    said = cell.get_attribute("title")
    assert said.startswith("base, capability: ") and numbers(said) == numbers(cell.text)


def test_on_paper_the_answers_are_open(browser: webdriver.Chrome) -> None:
    look(browser, 1040, media="print")
    assert browser.execute_script("return document.querySelector('.answers').getBoundingClientRect().height > 50")
    assert not browser.find_element(By.TAG_NAME, "nav").is_displayed()


def test_a_figure_in_pixels_is_whole_and_the_same_again(sections: list[Section]) -> None:
    figure = next(part for section in sections for part in section.parts if isinstance(part, Figure))
    drawn = html.png(figure)
    width = int(re.search(r'width="(\d+)', figure.svg)[1])
    assert drawn.startswith(b"\x89PNG") and int.from_bytes(drawn[16:20]) == html.SCALE * width
    assert drawn == html.png(figure)
