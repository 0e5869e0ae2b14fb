"""The page in a real browser: it draws, answers and fits, and asks nothing of any network."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from neutral_residues.report.build import write_report
from synthetic import make_comparison

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(
    (
        path
        for name in ("chromium", "chromium-browser", "google-chrome")
        if (path := shutil.which(name))
    ),
    None,
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report([make_comparison(tmp_path_factory.mktemp("work") / "comparison")]).page


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as running:
        started = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def open_page(browser: Any, page_file: Path) -> Iterator[Any]:
    """Opens the page in a context of its own, and afterwards holds what it complained of and asked
    for."""
    complaints: list[str] = []
    requests: list[str] = []
    contexts = []

    def open_(*, permissions: list[str] | None = None, script: str = "", **settings: Any) -> Any:
        context = browser.new_context(**settings)
        context.grant_permissions(permissions or [])
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        if script:
            page.add_init_script(script)
        page.goto(page_file.as_uri())
        page.wait_for_selector("html[data-ready]", timeout=60_000)
        return page

    yield open_
    for context in contexts:
        context.close()
    assert complaints == []
    assert requests
    assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []


def test_every_figure_is_drawn(open_page: Any) -> None:
    page = open_page()
    drawn = page.evaluate("""() => [...document.querySelectorAll(".canvas")].map((canvas) => ({
            id: canvas.id,
            svgs: canvas.querySelectorAll(".main-svg").length,
            traces: canvas.querySelectorAll(".scatterlayer .trace, .barlayer .trace").length,
            given: canvas.data.length,
            width: canvas.querySelector(".main-svg").getBoundingClientRect().width,
        }))""")
    # The plane, two sets through training, gates and residues by layer (of two gated methods on
    # French, of one on Italian), two sets broken down, gates after a switch; a task, twice, and the
    # KL on French.
    assert len(drawn) == (1 + 2 + 4 + 2 + 2 + 3) + (1 + 2 + 2 + 2 + 1)
    for figure in drawn:
        assert figure["svgs"] >= 1, figure
        assert figure["traces"] == figure["given"] > 0, figure
        assert figure["width"] > 200, figure


def test_headings_sort_by_pointer_and_keyboard(open_page: Any) -> None:
    page = open_page()
    table = page.locator("#s1-points")
    heading = table.locator("thead th", has_text="forgetting, mean")

    def column() -> list[float]:
        index = heading.evaluate("th => th.cellIndex")
        script = (
            "(table, index) => [...table.tBodies[0].rows].map((row) =>"
            " Number(row.cells[index].dataset.value))"
        )
        return list(table.evaluate(script, index))

    before = column()
    assert before != sorted(before)
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "ascending"
    assert column() == sorted(before)
    heading.locator("button").focus()
    page.keyboard.press("Enter")
    assert heading.get_attribute("aria-sort") == "descending"
    assert column() == sorted(before, reverse=True)
    assert table.locator("[aria-sort=ascending], [aria-sort=descending]").count() == 1


def test_hover_names_the_point(open_page: Any) -> None:
    page = open_page(viewport={"width": 1100, "height": 900})
    place = page.evaluate("""() => {
            const canvas = document.getElementById("s1-plane");
            const trace = canvas.data.find((trace) => trace.meta.curve === "neutral");
            const { xaxis, yaxis } = canvas._fullLayout;
            canvas.scrollIntoView({ block: "center", behavior: "instant" });
            const box = canvas.getBoundingClientRect();
            return [
                box.left + xaxis._offset + xaxis.d2p(trace.x[1]),
                box.top + yaxis._offset + yaxis.d2p(trace.y[1]),
            ];
        }""")
    page.mouse.move(place[0] - 3, place[1])
    page.mouse.move(*place)
    label = page.locator("#s1-plane .hoverlayer .hovertext")
    label.first.wait_for(timeout=10_000)
    text = label.first.text_content()
    for part in (
        "neutral at learning rate 0.001",
        "forgetting +0.45 ± 0.07 %",
        "2 seeds, chosen by validation",
    ):
        assert part in text


def test_buttons_change_the_axis(open_page: Any) -> None:
    page = open_page()
    figure = page.locator("figure", has=page.locator("#s1-plane"))
    title = page.locator("#s1-plane .xtitle")
    assert "mean" in title.text_content()
    figure.get_by_role("button", name="wiki").click()
    page.wait_for_function(
        "() => document.querySelector('#s1-plane .xtitle').textContent.includes('wiki')"
    )
    assert figure.locator("[aria-pressed=true]").all_text_contents() == ["wiki"]
    neutral = (
        "document.getElementById('s1-plane').data.find((trace) => trace.meta.curve === 'neutral')"
    )
    # Two seeds with 0.4 and 0.5 % on average, and one and a half times as much on wiki.
    assert page.evaluate(f"{neutral}.x[1]") == pytest.approx(0.675)
    assert page.evaluate(f"{neutral}.error_x.array[1]") == pytest.approx(1.5 * 0.1 / 2**0.5)
    assert page.locator("#s1-plane .errorbar").count() > 0


def test_the_legend_hides_a_run_everywhere(open_page: Any) -> None:
    page = open_page()
    hidden = """() => [...document.querySelectorAll(".canvas")].map((canvas) =>
        canvas.data.filter((trace) => trace.meta.curve === "lora" && trace.visible === false)
            .length)"""
    assert sum(page.evaluate(hidden)) == 0
    button = page.locator("#s1 .legend button", has_text="lora")
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    assert sum(n > 0 for n in page.evaluate(hidden)) == 1 + 2 + 2 + 3  # and tasks and KL
    button.click()
    assert sum(page.evaluate(hidden)) == 0


def test_copy_yields_markdown(open_page: Any) -> None:
    page = open_page(permissions=["clipboard-read", "clipboard-write"])
    page.locator("[data-copy=s1-points]").click()
    page.wait_for_function(
        "() => document.querySelector('[data-copy=s1-points]').textContent === 'Copied'"
    )
    lines = page.evaluate("navigator.clipboard.readText()").splitlines()
    assert lines[0].startswith("| run | learning rate |")
    assert lines[1].startswith("|---|---:|")
    assert any(
        line.startswith("| neutral | 0.001 |") and "2.1100 ± 0.0141" in line for line in lines
    )
    assert len({line.count("|") for line in lines}) == 1


@pytest.mark.parametrize("works", [True, False])
def test_copy_without_a_clipboard(open_page: Any, works: bool) -> None:
    script = f"""
        Object.defineProperty(navigator, "clipboard", {{ value: undefined }});
        window.copied = null;
        document.execCommand = () => {{
            window.copied = document.activeElement.value;
            return {str(works).lower()};
        }};
    """
    page = open_page(script=script)
    page.locator("[data-copy=s1-points]").click()
    page.wait_for_function("() => window.copied !== null")
    assert page.evaluate("window.copied").startswith("| run |")
    assert page.locator("#s1 .tools textarea").count() == (0 if works else 1)


def test_dark_mode(open_page: Any) -> None:
    look = """() => [getComputedStyle(document.body).backgroundColor,
        getComputedStyle(document.querySelector("#s1-plane .xtitle")).fill]"""
    light, dark = open_page(color_scheme="light"), open_page(color_scheme="dark")
    at_light, at_dark = light.evaluate(look), dark.evaluate(look)
    assert at_light[0] != at_dark[0]
    assert at_light[1] != at_dark[1]
    light.emulate_media(color_scheme="dark")  # on change too
    light.wait_for_function(
        "colour => getComputedStyle(document.querySelector('#s1-plane .xtitle')).fill === colour",
        arg=at_dark[1],
    )
    assert light.evaluate(look) == at_dark


def test_a_phone_needs_no_sideways_scrolling(open_page: Any) -> None:
    page = open_page(viewport={"width": 390, "height": 844})
    width = page.evaluate(
        "Math.max(document.documentElement.scrollWidth, document.body.scrollWidth)"
    )
    assert width <= 390
    assert (
        page.evaluate("document.querySelector('#s1-plane .main-svg').getBoundingClientRect().width")
        <= 390
    )


SCREENS: dict[str, dict[str, Any]] = {
    "desktop": {"viewport": {"width": 1200, "height": 900}},
    "phone": {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True},
}
COVERED = """() => [...document.querySelectorAll(".canvas")].flatMap((canvas) => {
    const boxes = (selector) => [...canvas.querySelectorAll(selector)]
        .map((element) => [element, element.getBoundingClientRect()])
        .filter(([, { width, height }]) => width && height)
        .filter(([element]) => getComputedStyle(element).opacity > 0);
    const bars = boxes(".modebar");
    return boxes(".legend, .annotation, .bartext, .point, .xtitle, .ytitle")
        .filter(([, a]) => bars.some(([, b]) =>
            a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom))
        .map(([element]) => `${canvas.id}: ${element.getAttribute("class")}`);
})"""

CLIPPED = """() => [...document.querySelectorAll(".canvas")].flatMap((canvas) => {
    const box = canvas.getBoundingClientRect();
    return [...canvas.querySelectorAll("text")]
        .map((text) => [text.textContent, text.getBoundingClientRect()])
        .filter(([, { width }]) => width)
        .filter(([, { left, right }]) => left < box.left - 1 || right > box.right + 1)
        .map(([text]) => `${canvas.id}: ${text}`);
})"""


@pytest.mark.parametrize("screen", SCREENS)
def test_nothing_covers_or_clips_legends_and_values(open_page: Any, screen: str) -> None:
    page = open_page(**SCREENS[screen])
    assert page.evaluate(CLIPPED) == []
    assert page.evaluate(COVERED) == []
    if screen == "desktop":
        for canvas in page.locator(".canvas").all():
            canvas.hover()
            assert page.evaluate(COVERED) == []


def test_on_a_phone_a_finger_scrolls_the_page(open_page: Any) -> None:
    page = open_page(**SCREENS["phone"])
    assert page.evaluate("document.getElementById('s1-plane')._fullLayout.dragmode") is False


def test_every_run_of_the_legend_shows_its_marker(open_page: Any) -> None:
    page = open_page()
    widths = page.evaluate("""() => [...document.querySelectorAll(".legend .key")].map((key) =>
        key.querySelector("path").getBoundingClientRect().width)""")
    assert len(widths) == 8 + 1
    assert min(widths) > 5


def test_every_figure_has_a_text(open_page: Any) -> None:
    page = open_page()
    labels = page.evaluate(
        "() => [...document.querySelectorAll('[role=img]')].map((element) =>"
        " element.getAttribute('aria-label'))"
    )
    assert all(labels)
    assert page.locator(".heat .t[title*='layer 1']").count() > 10
    assert (
        page.evaluate("getComputedStyle(document.querySelector('.t b.g0')).backgroundColor")
        == "rgba(0, 0, 0, 0)"
    )
