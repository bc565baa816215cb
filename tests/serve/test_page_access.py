"""The page can be used without seeing it, without a pointer, in either colours, and on a phone."""

from collections.abc import Iterator

import pytest

from bench.peers.chromium import Chromium, Page
from tests.serve.access import contrasts, nameless, overflowing, tab_stops, unreached
from tests.serve.pages import click, fill, open_page, reload, say, send, shown, shown_all
from tests.serve.stub import Stub

LEAST_CONTRAST = 4.5
PHONE = 390
ANSWER = (
    "# A title\n\nSome *words*, `code` and [a link](https://x.example).\n\n"
    f'```rust\nlet line = "{"long " * 60}";\n```\n\n> a quote\n\n'
    f"| {' | '.join(['a column'] * 12)} |\n|{'---|' * 12}\n| {' | '.join(['value'] * 12)} |\n\n"
    f"1. {'w' * 300}\n   - https://x.example/{'path' * 60}\n\n---\n\n<b>{'tags' * 50}</b>"
)
PROBABLE = [
    {
        "token": "word ",
        "bytes": [*b"word "],
        "logprob": logprob,
        "top_logprobs": [{"token": "w" * 40, "bytes": None, "logprob": -2.0}] * 5,
    }
    for logprob in (-9.0, -3.0, -2.0, -1.0, -0.1)
]


@pytest.fixture(scope="module")
def page(browser: Chromium, stub: Stub) -> Iterator[Page]:
    """A page on which everything that there is can be seen."""
    with open_page(browser, stub.url, width=1300) as page:
        stub.say(ANSWER, thoughts="a thought")
        say(page, "first")
        page.evaluate("document.querySelector('.reasoning').open = true")
        stub.say("short")
        click(page, "button", text="Regenerate")
        say(page, "w" * 400)
        click(page, ".versions:not([hidden]) button", index=0)
        page.evaluate("document.querySelector('.reasoning').open = true")
        click(page, "#list button", text="✎")
        page.press("Escape")
        click(page, ".user button", text="Edit")
        click(page, "#show-settings")
        fill(page, temperature="none")
        yield page


def prefer(page: Page, scheme: str) -> None:
    """Let the system have these colours, and the page follow it."""
    page.prefer(scheme)
    page.wait(f"getComputedStyle(document.body).colorScheme === '{scheme}'")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_stand_out_from_what_is_behind_them(page: Page, scheme: str) -> None:
    prefer(page, scheme)

    found = contrasts(page)

    assert len(found) > 60
    assert [(text, ratio) for text, ratio in found if ratio < LEAST_CONTRAST] == []


def test_everything_has_a_name_and_a_place(page: Page) -> None:
    roles = [role for role, _ in page.names()]

    assert nameless(page) == []
    for landmark in ("banner", "navigation", "main", "complementary", "log", "form"):
        assert landmark in roles, landmark
    assert page.evaluate("document.documentElement.lang") == "en"
    assert (
        page.evaluate(
            "[...document.querySelectorAll('input, select, textarea')]"
            ".filter((one) => !one.labels.length && !one.ariaLabel).map((one) => one.id)"
        )
        == []
    )
    levels = page.evaluate("[...document.querySelectorAll('h1, h2, h3')].map((one) => one.tagName)")
    assert levels[:3] == ["H1", "H2", "H3"]


def test_tab_reaches_everything_and_shows_where_it_is(page: Page) -> None:
    stops = tab_stops(page)

    assert len(stops) > 40
    assert unreached(page, stops) == []
    assert [stop for stop in stops if stop.outline < 2] == []


def focused(page: Page) -> str:
    text: str = page.evaluate("document.activeElement.id || document.activeElement.textContent")
    return text


def test_the_focus_is_not_lost_with_what_had_it(browser: Chromium, stub: Stub) -> None:
    with open_page(browser, stub.url) as page:
        stub.say("one", is_endless=True)
        page.evaluate("document.getElementById('prompt').focus()")
        page.insert("a")
        for key in ("Tab", "Enter"):
            page.press(key)
        page.wait("document.activeElement.id === 'stop'")
        page.press("Enter")
        page.wait("document.activeElement.id === 'send'")
        page.evaluate("document.querySelector('.assistant .actions .waits').focus()")
        page.press("Enter")
        page.wait("document.activeElement.id === 'stop'")
        page.press("Enter")
        page.wait("document.activeElement.id === 'send'")
        page.evaluate("document.querySelector('#list button:nth-child(2)').focus()")
        for key in ("Enter", "Escape"):
            page.press(key)
        assert focused(page) == "a"
        page.evaluate("document.querySelector('.assistant .actions > button:last-of-type').focus()")
        page.press("Enter")
        assert focused(page) == "Undo"


@pytest.mark.parametrize("height", [700, 400])
def test_a_phone_needs_no_scrolling_to_the_side(page: Page, height: int) -> None:
    page.resize(PHONE, height)
    try:
        # The panels follow the window a frame later.
        page.wait("!document.getElementById('show-list').hidden")
        page.wait("document.getElementById('settings-panel').hidden")
        found = overflowing(page)
        for panel in ("show-list", "show-settings"):
            click(page, f"#{panel}")
            assert page.evaluate("document.getElementById('main').inert") is True
            found += overflowing(page)
        page.press("Escape")
        focused = page.evaluate("document.activeElement.id")
    finally:
        page.resize(1300, 800)
        page.wait("innerWidth === 1300 && document.getElementById('show-list').hidden")
        click(page, "#show-settings")

    assert found == []
    assert focused == "show-settings"


def test_probabilities_can_be_read_in_both_colours(browser: Chromium, stub: Stub) -> None:
    with open_page(browser, stub.url, width=PHONE) as page:
        click(page, "#probabilities")
        stub.say("word " * 5, logprobs=PROBABLE)
        say(page, "?")
        page.evaluate("document.querySelectorAll('.token')[4].focus()")

        for scheme in ("light", "dark"):
            prefer(page, scheme)
            found = contrasts(page)
            assert [each for each in found if each[1] < LEAST_CONTRAST] == []
        assert (
            len(
                set(
                    page.evaluate(
                        "[...document.querySelectorAll('.token')].map((one) => one.className)"
                    )
                )
            )
            == 5
        )
        assert overflowing(page) == nameless(page) == []
        assert page.evaluate(
            "document.getElementById('alternatives').getBoundingClientRect().right <= innerWidth"
        )


def test_the_dialog_for_the_key_has_names_and_contrast(browser: Chromium, stub: Stub) -> None:
    with open_page(browser, stub.url, width=PHONE) as page:
        click(page, "#change-key")

        assert page.evaluate("document.activeElement.id") == "key"
        assert ("dialog", "API key") in page.names()
        assert nameless(page) == overflowing(page) == []
        page.press("Escape")
        page.wait("!document.getElementById('key-dialog').open")
        page.wait(
            "document.getElementById('change-key').click() ?? document.getElementById('key-dialog').open"
        )


def test_finished_answers_are_announced_and_no_token_is(browser: Chromium, stub: Stub) -> None:
    with open_page(browser, stub.url) as page:
        stub.say("**well** then")
        page.evaluate(
            "window.said = []; new MutationObserver(() => said.push(document.getElementById('announcer').textContent))"
            ".observe(document.getElementById('announcer'), { childList: true, subtree: true, characterData: true })"
        )
        say(page, "?")

        assert page.evaluate("said") == ["Answer: well then"]
        assert page.evaluate("document.getElementById('announcer').ariaLive") == "polite"
        assert page.evaluate("document.getElementById('log').ariaLive") == "off"


def test_shift_enter_is_a_new_line(browser: Chromium, stub: Stub) -> None:
    with open_page(browser, stub.url) as page:
        page.evaluate("document.getElementById('prompt').focus()")
        page.insert("a")
        page.press("Enter", shift=True)
        send(page, "b")

        assert shown_all(page, ".user .content") == ["a\nb"]


def test_colours_are_chosen_and_kept(browser: Chromium, stub: Stub) -> None:
    with open_page(browser, stub.url) as page:
        scheme = "getComputedStyle(document.body).colorScheme"
        prefer(page, "light")
        click(page, "#theme")
        assert page.evaluate(scheme) == "dark"
        assert page.evaluate("document.getElementById('theme').ariaPressed") == "true"
        reload(page)
        assert page.evaluate(scheme) == "dark"
        click(page, "#theme")
        assert page.evaluate(scheme) == "light"

        # As the system says, again.
        prefer(page, "dark")
        assert shown(page, "#theme") == "Dark"
