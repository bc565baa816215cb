"""The browser keeps what was said: over reloads, damage, full storage, other tabs, and in files that go elsewhere."""

import json
import time
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path

import pytest

from bench.peers.chromium import Chromium, Page
from tests.serve.pages import (
    click,
    fill,
    kept,
    open_page,
    reload,
    say,
    send,
    shown,
    shown_all,
    wait_for_end,
)
from tests.serve.stub import Stub


@pytest.fixture
def page(browser: Chromium, stub: Stub) -> Iterator[Page]:
    stub.say("fine")
    with open_page(browser, stub.url) as page:
        yield page


def test_a_page_that_is_loaded_anew_has_everything(page: Page, stub: Stub) -> None:
    stub.say("one *answer*")
    say(page, "first")
    fill(page, system="Be kind", temperature=0.3)
    click(page, "#new")
    stub.say("half", is_endless=True)
    send(page, "second")
    page.wait("document.querySelector('.assistant .content')?.textContent === 'half'")
    page.evaluate("document.getElementById('prompt').focus()")
    page.insert("not yet sent")

    reload(page)

    assert page.evaluate("document.getElementById('prompt').value") == "not yet sent"
    assert shown_all(page, "#list .name") == ["second", "first"]
    assert shown_all(page, ".content") == ["second", "half"]
    assert page.evaluate("document.querySelector('.error').hidden") is False
    click(page, "#list .name", text="first")
    assert shown_all(page, ".content") == ["first", "one answer"]
    assert page.evaluate("document.getElementById('setting-system').value") == "Be kind"
    assert page.evaluate("document.getElementById('prompt').value") == ""


def test_an_exported_file_brings_everything_back(
    browser: Chromium, page: Page, stub: Stub, tmp_path: Path
) -> None:
    browser.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    say(page, "one")
    click(page, "#new")
    say(page, "two")
    before = sorted(kept(page), key=itemgetter("id"))

    click(page, "#export")
    path = tmp_path / "conversations.json"
    end = time.monotonic() + 10
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.02)
    with open_page(browser, stub.url) as other:
        give_file(other, path.read_text(), "Conversations imported: 2.")
        give_file(other, path.read_text(), "Conversations imported: 2.")
        give_file(other, '{"some": "other file"}', "Not imported: this file")

        assert sorted(kept(other), key=itemgetter("id")) == before


def give_file(page: Page, content: str, answer: str) -> None:
    """Choose a file to import, and wait for what is said to it."""
    page.evaluate(
        "(() => { const field = document.getElementById('import-file'); const data = new DataTransfer();"
        "document.getElementById('notice').replaceChildren();"
        f"data.items.add(new File([{json.dumps(content)}], 'a.json')); field.files = data.files;"
        "field.dispatchEvent(new Event('change')) })()"
    )
    page.wait(f"document.getElementById('notice').textContent.startsWith({json.dumps(answer)})")


def test_damage_costs_only_what_is_damaged(page: Page) -> None:
    say(page, "one")
    say(page, "two")
    text = json.dumps(kept(page)[0])
    broken = json.loads(text)
    broken["messages"][1] = {"role": "assistant", "content": 7}
    place = "`nanochat${location.pathname}conversation.`"
    page.evaluate(f"localStorage.setItem({place} + 'torn', {json.dumps(text[:-9])})")
    page.evaluate(f"localStorage.setItem({place} + 'part', {json.dumps(json.dumps(broken))})")

    reload(page)

    assert "damaged, and left as they are: 2" in shown(page, "#notice")
    assert shown_all(page, "#list .name") == ["one", "one"]
    click(page, "#list .name:not([aria-current])")
    assert shown_all(page, ".content") == ["one", "two", "fine"]
    say(page, "three")
    stored = page.evaluate("Object.fromEntries(Object.entries(localStorage))")
    assert stored["nanochat/llm/conversation.torn"] == text[:-9]
    assert json.loads(stored["nanochat/llm/damaged.part"]) == broken
    assert len(json.loads(stored["nanochat/llm/conversation.part"])["messages"]) == 5


def test_a_full_storage_is_said_and_the_conversation_goes_on(page: Page) -> None:
    page.evaluate("localStorage.setItem('filler', 'x'.repeat(5 * 2**20 - 500))")

    assert say(page, "one " * 200) == "fine"
    assert "is lost when the page is closed: the browser's storage for this page is full" in shown(
        page, "#notice"
    )
    assert say(page, "two") == "fine"
    page.evaluate("localStorage.removeItem('filler')")
    say(page, "three")
    assert len(kept(page)[0]["messages"]) == 6


def test_two_tabs_know_of_each_other(browser: Chromium, page: Page, stub: Stub) -> None:
    say(page, "one")
    other = browser.open(stub.url)
    try:
        other.wait("document.querySelector('#list .name') !== null")
        click(other, "#list .name")
        assert say(other, "two") == "fine"
        page.wait("document.querySelectorAll('.content').length === 4")

        assert shown_all(page, ".content") == ["one", "fine", "two", "fine"]
    finally:
        other.close()


# The only conversation, as the browser keeps it.
NAME = "Object.keys(localStorage).find((name) => name.includes('/conversation.'))"
RECORD = f"localStorage.getItem({NAME})"
SAID_IN_BOTH = ["one", "half", "two", "fine"]


def test_what_two_tabs_say_at_the_same_time_is_kept(
    browser: Chromium, page: Page, stub: Stub
) -> None:
    stub.say("half", is_endless=True)
    send(page, "one")
    page.wait("document.querySelector('.assistant .content')?.textContent === 'half'")
    other = browser.open(stub.url)
    try:
        other.wait("document.querySelector('#list .name') !== null")
        click(other, "#list .name")
        stub.say("fine")
        say(other, "two")
        page.press("Escape")
        wait_for_end(page)

        # One tab may save before it has heard of the other, which then says so again.
        end = time.monotonic() + 10
        while (said := [m["content"] for m in kept(page)[0]["messages"]]) != SAID_IN_BOTH:
            assert time.monotonic() < end, said
            time.sleep(0.02)
        other.wait("document.querySelectorAll('.content').length === 4")
    finally:
        other.close()


def test_what_a_tab_saved_before_it_heard_of_another_s_answer_costs_no_text(
    browser: Chromium, page: Page, stub: Stub
) -> None:
    say(page, "one")
    other = browser.open(stub.url)
    try:
        other.wait("document.querySelector('#list .name') !== null")
        click(other, "#list .name")
        say(other, "two")
        whole = kept(other)[0]["messages"]
        assert [m["content"] for m in whole] == ["one", "fine", "two", "fine"]
        # Another process keeps what a tab saves, and tells the others of it in a while.
        other.evaluate("window.told = 0; addEventListener('storage', () => { window.told += 1; })")
        # As a tab saves that knows of the last answer's beginning only.
        page.evaluate(f"""(() => {{
            const record = JSON.parse({RECORD});
            record.messages[3].content = '';
            localStorage.setItem({NAME}, JSON.stringify(record));
        }})()""")

        other.wait(f"window.told && JSON.parse({RECORD}).messages[3].content === 'fine'")
        assert kept(other)[0]["messages"] == whole
    finally:
        other.close()


def test_what_is_deleted_comes_back_if_that_was_a_mistake(page: Page) -> None:
    say(page, "one")
    say(page, "two")

    click(page, ".user button", text="Delete")
    assert shown_all(page, ".content") == ["one", "fine"]
    click(page, "#notice button", text="Undo")
    assert shown_all(page, ".content") == ["one", "fine", "two", "fine"]
    click(page, "#list button", text="×")
    assert (kept(page), shown_all(page, ".content")) == ([], [])
    click(page, "#notice button", text="Undo")

    assert shown_all(page, ".content") == ["one", "fine", "two", "fine"]
    assert len(kept(page)) == 1


def test_a_conversation_is_called_as_a_person_likes(page: Page) -> None:
    say(page, "one")
    click(page, "#list button", text="✎")
    page.insert("My plan")
    page.press("Enter")

    assert shown_all(page, "#list .name") == ["My plan"]
    reload(page)
    assert shown_all(page, "#list .name") == ["My plan"]
    assert page.evaluate("document.title") == "My plan – nanochat"
