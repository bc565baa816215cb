"""A person's browser shows the page: what it says is what the model says, and nothing that was said is lost."""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.peers.chromium import Chromium, Page
from nanochat.lm import Model
from nanochat.serve.app import Server, application
from nanochat.serve.metrics import Metrics
from nanochat.serve.settings import Settings
from nanochat.text.chat import Message
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
from tests.serve.processes import Process, ask, free_port, running
from tests.serve.stub import Stub

TINY = ("nanochat-tiny", "--backend", "numba", "--max-rows", "2")
PREVIOUS, NEXT = "\u2039\u203a"
KEYS = "alice sk-alice\n"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@pytest.fixture
def page(browser: Chromium, server: Process) -> Iterator[Page]:
    with open_page(browser, server.page) as page:
        yield page


@pytest.fixture
def told(browser: Chromium, stub: Stub) -> Iterator[Page]:
    """A page whose answers are said by a test."""
    stub.say("fine")
    with open_page(browser, stub.url) as page:
        yield page


def count(server: Process, name: str) -> float:
    """What the server counts under a name."""
    lines = ask(server, "GET", "/metrics").body.decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def test_an_answer_is_the_one_that_the_model_gives_to_these_messages(
    browser: Chromium, page: Page, model: Model
) -> None:
    options: dict[str, Any] = {"temperature": 0.9, "top_p": 0.95, "top_k": 50, "seed": 9}
    options |= {"frequency_penalty": 0.1, "max_tokens": 300}
    fill(page, system="Be brief", stop="\\n\\n\\n\n}}}", **options)
    messages: list[Message] = [{"role": "system", "content": "Be brief"}]
    for text in ("Hello\n**there**", "and then?"):
        messages.append({"role": "user", "content": text})
        say(page, text)
        content = model.chat(messages, stop=["\n\n\n", "}}}"], **options)
        messages.append({"role": "assistant", "content": content})

    said = kept(page)[0]["messages"]

    assert [message["content"] for message in said] == [m["content"] for m in messages[1:]]
    assert shown_all(page, ".user .content") == ["Hello\n**there**", "and then?"]
    numbers = shown_all(page, ".assistant .figures")
    assert re.fullmatch(
        r"\d+ tokens, [\d,.]+ tokens/s, first after \d\.\d\d s, [1-9]\d* of the prompt's \d+ cached.*",
        numbers[1],
    ), numbers
    assert page.problems == page.complaints == []
    assert [url for url in browser.requests if not url.startswith("http://127.0.0.1:")] == []


def test_the_page_may_ask_nobody_else_and_be_framed_by_nobody(server: Process) -> None:
    for path, kind in (("/", "html"), ("/page/page.css", "css"), ("/page/page.js", "javascript")):
        answer = ask(server, "GET", path)

        assert (answer.status, answer.headers["content-type"]) == (
            200,
            f"text/{kind}; charset=utf-8",
        )
        assert answer.headers["content-security-policy"] == POLICY
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cache-control"] == "no-cache"
    assert ask(server, "GET", "/page/../app.py").status == 404
    assert ask(server, "GET", "/page/nothing.js").status == 404


def test_a_server_without_the_page_has_none() -> None:
    def paths(*, page: bool) -> set[str]:
        server = Server(settings=Settings(page=page), metrics=Metrics(version="0"))
        guard = application(server)
        return {route.path for route in guard._application.routes}  # type: ignore[attr-defined]

    assert paths(page=True) - paths(page=False) >= {"/", "/page/page.js"}
    assert not {path for path in paths(page=False) if path == "/" or path.startswith("/page")}


def test_who_stops_an_answer_frees_its_row(server: Process, page: Page) -> None:
    before = count(server, 'nanochat_cancelled_total{where="stream"}')
    page.evaluate(
        "new MutationObserver(() => document.querySelector('.assistant .content')?.textContent.length > 20"
        " && document.getElementById('stop').click())"
        ".observe(document.getElementById('log'), { childList: true, subtree: true, characterData: true })"
    )
    fill(page, seed=1, temperature=1)

    text = say(page, "Hello")

    end = time.monotonic() + 2
    while count(server, "nanochat_rows ") and time.monotonic() < end:
        time.sleep(0.02)
    assert count(server, "nanochat_rows ") == 0
    assert count(server, 'nanochat_cancelled_total{where="stream"}') == before + 1
    assert len(text) > 20
    assert shown(page, ".assistant .figures").endswith("stopped")
    assert kept(page)[0]["messages"][1]["ended"] == "stopped"


def test_escape_stops_and_what_came_stays(told: Page, stub: Stub) -> None:
    stub.say("as far as this", is_endless=True)
    left = stub.num_left
    send(told, "go on")
    told.wait("document.querySelector('.assistant .content')?.textContent === 'as far as this'")

    told.press("Escape")

    assert wait_for_end(told) == "as far as this"
    end = time.monotonic() + 2
    while stub.num_left == left and time.monotonic() < end:
        time.sleep(0.01)
    assert stub.num_left == left + 1
    stub.say("more")
    assert say(told, "and?") == "more"
    assert [m["content"] for m in stub.asked[-1]["messages"]] == ["go on", "as far as this", "and?"]


def test_messages_are_edited_and_asked_again_and_each_version_stays(told: Page, stub: Stub) -> None:
    stub.say("A")
    say(told, "one")
    stub.say("B")
    click(told, "button", text="Regenerate")
    wait_for_end(told)
    click(told, "button", text="Edit", index=0)
    told.evaluate("document.querySelector('.editor textarea').value = ''")
    told.insert("uno")
    told.press("Enter")
    wait_for_end(told)
    stub.say("D")
    say(told, "two")

    assert [m["content"] for m in stub.asked[-1]["messages"]] == ["uno", "B", "two"]
    assert shown_all(told, ".versions:not([hidden])") == [f"{PREVIOUS}2/2{NEXT}"]
    click(told, ".versions:not([hidden]) button", text=PREVIOUS)
    assert shown_all(told, ".content") == ["one", "B"]
    assert told.evaluate("document.activeElement.getAttribute('aria-label')") == "Next version"
    click(told, ".assistant .versions button", text=PREVIOUS)
    assert shown_all(told, ".content") == ["one", "A"]
    reload(told)
    assert shown_all(told, ".content") == ["one", "A"]
    click(told, ".user .versions button", text=NEXT)
    assert shown_all(told, ".content") == ["uno", "B", "two", "D"]


def test_probabilities_colour_the_tokens_and_tell_the_others(page: Page) -> None:
    fill(page, seed=3, max_tokens=20, temperature=1)
    click(page, "#probabilities")
    text = say(page, "Hello")

    first = page.evaluate("document.querySelector('.token').getBoundingClientRect().toJSON()")
    page.point(first["x"] + 2, first["y"] + 2)
    page.wait("!document.getElementById('alternatives').hidden")
    pointed = shown(page, "#alternatives")
    page.point(0, 0)
    page.wait("document.getElementById('alternatives').hidden")
    page.evaluate("document.querySelector('.token').focus()")
    page.press("ArrowRight")

    assert len(shown_all(page, ".token")) == 20
    assert text == kept(page)[0]["messages"][1]["content"]
    assert (
        len(
            set(
                page.evaluate(
                    "[...document.querySelectorAll('.token')].map((one) => one.className)"
                )
            )
        )
        > 2
    )
    assert re.match(r".+: \d+\.\d %(.+ \d+\.\d %|.+\d\.\d %){5}$", pointed, re.DOTALL), pointed
    assert page.evaluate("document.activeElement === document.querySelectorAll('.token')[1]")
    assert (
        page.evaluate("document.activeElement.getAttribute('aria-describedby')") == "alternatives"
    )
    assert shown(page, "#alternatives caption") != pointed.partition("%")[0]
    click(page, "#probabilities")
    assert shown_all(page, ".token") == []


def test_thoughts_stand_apart(told: Page, stub: Stub) -> None:
    stub.say("Yes", thoughts="let me *see*")

    assert say(told, "?") == "Yes"
    assert shown(told, ".reasoning > div") == "let me see"
    assert told.evaluate("document.querySelector('.reasoning').open") is False
    click(told, ".reasoning summary")
    click(told, "#probabilities")
    assert told.evaluate("document.querySelector('.reasoning').open") is True
    assert kept(told)[0]["messages"][1]["reasoning"] == "let me *see*"


def test_the_chosen_model_is_asked(told: Page, stub: Stub) -> None:
    told.evaluate("document.getElementById('model').value = 'two'")
    told.evaluate("document.getElementById('model').dispatchEvent(new Event('change'))")
    reload(told)

    say(told, "?")

    assert stub.asked[-1]["model"] == "two"
    assert shown(told, ".figures:not(:empty)").startswith("two, ")


def test_a_setting_that_is_none_is_said_before_anything_is_sent(told: Page, stub: Stub) -> None:
    asked = len(stub.asked)
    fill(told, temperature="warm", seed="1.5", schema="{")

    send(told, "a message")

    assert len(stub.asked) == asked
    assert told.evaluate("document.getElementById('prompt').value") == "a message"
    assert shown(told, "#setting-temperature-problem") == "warm is no number: write one such as 0.7"
    assert shown(told, "#setting-seed-problem") == "1.5 is no whole number: write one such as 40"
    assert shown(told, "#setting-schema-problem").startswith("this is no JSON")
    assert told.evaluate("document.activeElement.id") == "setting-temperature"
    fill(told, temperature=0, seed=5, schema='{"type": "object"}', stop="a\\n\n\\\\")
    told.evaluate("document.getElementById('prompt').focus()")
    told.press("Enter")
    wait_for_end(told)
    assert {
        name: stub.asked[-1][name] for name in ("temperature", "seed", "stop", "response_format")
    } == {
        "temperature": 0,
        "seed": 5,
        "stop": ["a\n", "\\"],
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": {"type": "object"}},
        },
    }
    assert "top_p" not in stub.asked[-1]


def test_an_answer_keeps_to_a_schema(page: Page) -> None:
    fill(page, schema='{"type": "array", "items": {"enum": [1, 2]}, "maxItems": 3}', max_tokens=30)

    answer = say(page, "Hello")

    assert set(json.loads(answer)) <= {1, 2}


def test_what_the_server_refuses_is_said_in_its_words(page: Page) -> None:
    fill(page, schema='{"type": "hiccup"}', max_tokens=5)
    say(page, "Hello")

    assert "the JSON schema cannot be used: Invalid type: hiccup" in shown(page, ".error p")
    fill(page, schema="")
    click(page, ".error button")
    wait_for_end(page)
    assert page.evaluate(
        "document.querySelector('.error').hidden || document.querySelector('.error p').textContent"
    ) in (True, "")
    assert len(kept(page)[0]["messages"]) == 2
    assert kept(page)[0]["messages"][1]["content"]


def test_an_answer_that_breaks_off_is_tried_again(told: Page, stub: Stub) -> None:
    stub.say("", thoughts="hm", breaks=True)
    say(told, "?")
    assert shown(told, ".error p").startswith("The answer broke off")
    stub.say("half", thoughts="ah", breaks=True)
    click(told, ".error button")
    assert wait_for_end(told) == "half"
    assert shown(told, ".assistant .reasoning > div") == "ah"
    stub.say("whole")
    click(told, ".error button")

    assert wait_for_end(told) == "whole"
    assert [message["content"] for message in kept(told)[0]["messages"]] == ["?", "half", "whole"]
    assert shown_all(told, ".error:not([hidden])") == []


def test_a_key_is_asked_for_and_a_wrong_one_again(browser: Chromium, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(KEYS)
    words = ("--api-key-file", tmp_path / "keys", "--root-path", "/llm")
    with running(*TINY, *words) as server:
        page = browser.open(server.page)
        try:
            page.wait("document.getElementById('key-dialog')?.open === true")
            assert shown(page, "#key-reason").startswith("a key is needed for this server")
            page.insert("sk-wrong")
            page.press("Enter")
            page.wait(
                "document.getElementById('key-reason').textContent.startsWith('this is no key')"
            )
            page.insert("sk-alice")
            page.press("Enter")
            page.wait("document.getElementById('model').length === 1")
            fill(page, max_tokens=5)
            assert say(page, "Hello")

            assert page.evaluate("Object.values(sessionStorage).includes('sk-alice')") is True
            assert page.evaluate("Object.values(localStorage).includes('sk-alice')") is False
            click(page, "#change-key")
            page.evaluate("document.getElementById('remember-key').click()")
            page.insert("sk-alice")
            page.press("Enter")
            assert page.evaluate("Object.values(sessionStorage).includes('sk-alice')") is False
            assert page.evaluate("Object.values(localStorage).includes('sk-alice')") is True
        finally:
            page.close()


def test_a_server_that_goes_and_comes_back_costs_no_text(browser: Chromium) -> None:
    words = (*TINY, "--port", free_port())
    with running(*words) as server, open_page(browser, server.page) as page:
        fill(page, max_tokens=5, seed=1)
        first = say(page, "Hello")
        server.process.kill()
        server.wait()

        say(page, "Are you there?")

        assert shown(page, ".error:not([hidden]) p").startswith("The server does not answer")
        page.evaluate("document.getElementById('prompt').focus()")
        page.insert("what I write meanwhile")
        status = "document.getElementById('status').textContent"
        page.wait(f"{status}.startsWith('The server does not answer')")
        with running(*words):
            page.wait(f"{status} === 'The server answers.'")
            click(page, ".error:not([hidden]) button")
            assert wait_for_end(page)

        assert shown_all(page, ".content")[0:3] == ["Hello", first, "Are you there?"]
        assert page.evaluate("document.getElementById('prompt').value") == "what I write meanwhile"
        assert len(kept(page)[0]["messages"]) == 4
        assert page.problems == []
