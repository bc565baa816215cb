"""A person's browser shows the report: a line for each run, what switches and the pointer do, and no text as HTML."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.peers.chromium import Chromium, Page
from nanochat.training.history import read_history
from nanochat.training.report import html

REAL = Path(__file__).parents[2] / "bench" / "results" / "training"
HOSTILE = "<script>window.isRun = 1<%2Fscript><b>"
LOSS = "[data-key=loss]"
LINES = f"{LOSS} path.line"


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    with Chromium() as one:
        yield one


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of the shipped model's logs, and of a third run that went wrong."""
    folder = tmp_path_factory.mktemp("report")
    third = folder / HOSTILE
    third.mkdir()
    shutil.copy(REAL / "tiny-float.jsonl", third / "log.jsonl")
    lines = [
        {"step": 1100, "anomaly": "<i>spike</i>", "because": "<img src=x onerror=alert(1)>"},
        {"step": 1100, "sample": "<b>fn</b> main() {}"},
    ]
    with (third / "log.jsonl").open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    logs = [REAL / "tiny-float.jsonl", REAL / "tiny-ternary.jsonl", third]
    page = folder / "report.html"
    page.write_text(html([*map(read_history, logs)], made="today"))
    return page.as_uri()


@pytest.fixture
def page(browser: Chromium, address: str) -> Iterator[Page]:
    page = browser.open(address)
    page.wait(f"document.querySelectorAll('{LINES}').length === 3")
    yield page
    assert page.problems == page.complaints == []
    page.close()


def shown(page: Page, selector: str) -> list[str]:
    found: list[str] = page.evaluate(
        f"[...document.querySelectorAll({json.dumps(selector)})].map((one) => one.textContent)"
    )
    return found


def shape(page: Page) -> str:
    """The line of the first run's loss."""
    found: str = page.evaluate(f"document.querySelector('{LINES}').getAttribute('d')")
    return found


def point(page: Page, share: float) -> None:
    """Move the pointer to a place on the axis of the loss."""
    plot = f"document.querySelector('{LOSS} svg')"
    page.evaluate(f"{plot}.scrollIntoView({{ block: 'center' }})")
    x, y = page.evaluate(
        f"(({{left, right, top}}) => [left + 52 + {share} * (right - left - 66), top + 90])"
        f"({plot}.getBoundingClientRect())"
    )
    page.point(x, y)


def test_every_chart_has_a_line_for_each_run(browser: Chromium, page: Page) -> None:
    counts = page.evaluate(
        "Object.fromEntries([...document.querySelectorAll('figure')].map((one) =>"
        " [one.dataset.key, one.querySelectorAll('path.line').length]))"
    )

    assert counts.pop("stream_divergence") == 3 * 12
    assert set(counts.values()) == {3}
    assert len(counts) == 12
    assert browser.requests == []


def test_the_table_has_a_row_for_each_run_with_what_it_reached(page: Page) -> None:
    names = shown(page, "#runs tbody td:first-child")

    assert names == ["tiny-float", "tiny-ternary", HOSTILE]
    assert shown(page, "#runs .best") == ["0.9579", "0.9579"]
    assert "precision.weights" in shown(page, "#differences tbody th")


def test_what_a_log_says_is_text(page: Page) -> None:
    assert page.evaluate("typeof window.isRun") == "undefined"
    assert shown(page, "#legend button")[2] == HOSTILE
    assert shown(page, "#events td") == [
        HOSTILE,
        "1,100",
        "<i>spike</i>",
        "<img src=x onerror=alert(1)>",
    ]
    assert shown(page, "#samples pre") == ["<b>fn</b> main() {}"]
    assert shown(page, "main script, main b, main i, main img") == []


def test_an_event_is_marked_on_the_axis(page: Page) -> None:
    marks = shown(page, f"{LOSS} .mark")

    assert marks == [f"{HOSTILE}, step 1,100: <i>spike</i>. <img src=x onerror=alert(1)>"]


def test_a_run_is_hidden_and_shown_by_its_entry_in_the_legend(page: Page) -> None:
    page.evaluate("document.querySelectorAll('#legend button')[1].click()")
    page.wait(f"document.querySelectorAll('{LINES}').length === 2")
    page.evaluate("document.querySelectorAll('#legend button')[1].click()")
    page.wait(f"document.querySelectorAll('{LINES}').length === 3")


def test_the_axis_can_be_tokens(page: Page) -> None:
    page.evaluate("document.querySelector('[value=tokens]').click()")

    page.wait(f"document.querySelector('{LOSS} svg').textContent.includes('2M')")
    point(page, 0.5)
    page.wait(
        f"/^2\\.2[3-8]\\d*M tokens/.test(document.querySelector('{LOSS} .reading').textContent)"
    )


def test_a_logarithmic_axis_has_other_lines(page: Page) -> None:
    before = shape(page)

    page.evaluate("document.getElementById('log').click()")

    page.wait(f"document.querySelector('{LINES}').getAttribute('d') !== {json.dumps(before)}")


def test_smoothing_shows_the_raw_line_faintly_behind(page: Page) -> None:
    before = shape(page)

    page.evaluate(
        "const slider = document.getElementById('smoothing'); slider.value = 50;"
        "slider.dispatchEvent(new Event('input'))"
    )

    page.wait(f"document.querySelectorAll('{LINES}.raw').length === 3")
    assert page.evaluate(f"document.querySelectorAll('{LINES}:not(.raw)').length") == 3
    # The first is the raw one.
    assert shape(page) == before


def test_the_pointer_reads_the_values_of_all_runs(page: Page) -> None:
    lines = [json.loads(t) for t in (REAL / "tiny-float.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["loss"] for line in lines if "loss" in line}

    point(page, 0.5)

    page.wait(f"!document.querySelector('{LOSS} .reading').hidden")
    (head,) = shown(page, f"{LOSS} .reading th")
    step = int(head.removeprefix("step ").replace(",", ""))
    assert shown(page, f"{LOSS} .reading .name") == ["tiny-float", "tiny-ternary", HOSTILE]
    value = float(shown(page, f"{LOSS} .reading .number")[0])
    assert value in [pytest.approx(losses[near], rel=1e-4) for near in range(step - 3, step + 4)]


def test_arrow_keys_read_values_as_the_pointer_does(page: Page) -> None:
    page.evaluate(f"document.querySelector('{LOSS} svg').focus()")

    page.press("ArrowRight")

    page.wait(f"!document.querySelector('{LOSS} .reading').hidden")
    page.press("Escape")
    page.wait(f"document.querySelector('{LOSS} .reading').hidden")


def test_a_part_of_the_axis_is_chosen_by_dragging(page: Page) -> None:
    plot = f"document.querySelector('{LOSS} svg')"
    page.evaluate(
        f"for (const [kind, x] of [['down', 150], ['move', 200], ['up', 250]])"
        f" {plot}.dispatchEvent(new PointerEvent(`pointer${{kind}}`, {{ pointerType: 'mouse', pointerId: 1,"
        f" clientX: {plot}.getBoundingClientRect().left + x }}))"
    )

    page.wait("!document.getElementById('whole').hidden")
    page.evaluate("document.getElementById('whole').click()")
    page.wait("document.getElementById('whole').hidden")


@pytest.mark.parametrize("width", [360, 1400])
def test_the_page_is_as_wide_as_its_window(width: int, page: Page) -> None:
    page.resize(width, 800)

    page.wait(f"window.innerWidth === {width}")
    wide = page.evaluate("document.documentElement.scrollWidth")
    assert wide == page.evaluate("document.documentElement.clientWidth")


def test_a_run_that_has_just_begun_has_a_page(browser: Chromium, tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").touch()
    (tmp_path / "report.html").write_text(html([read_history(tmp_path)], made="today"))

    page = browser.open((tmp_path / "report.html").as_uri())

    page.wait("document.body?.innerText.includes('The logs hold no numbers yet.')")
    assert page.problems == page.complaints == []
