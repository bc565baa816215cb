"""This file holds the page to chat with as a person uses it: in a tab of headless Chromium."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bench.peers.chromium import Chromium, Page

__all__ = [
    "click",
    "fill",
    "kept",
    "open_page",
    "say",
    "send",
    "shown",
    "shown_all",
    "wait_for_end",
]

_IS_READY = "document.getElementById('model')?.length > 0"
_IS_DONE = "document.getElementById('stop').hidden"


@contextmanager
def open_page(browser: Chromium, url: str, *, before: str = "", **size: int) -> Iterator[Page]:
    """The page as on a first visit."""
    # A tab that was used has something of its own.
    forget = "sessionStorage.length || localStorage.clear();"
    page = browser.open(url, before=forget + before, **size)
    try:
        page.wait(_IS_READY)
        yield page
    finally:
        page.close()


def reload(page: Page) -> None:
    """Load the page anew, and wait until it is ready."""
    page.evaluate("window.isOld = true")
    page.reload()
    page.wait(f"!window.isOld && {_IS_READY}")


def send(page: Page, text: str) -> None:
    """Write a message, and press Enter."""
    page.evaluate("document.getElementById('prompt').focus()")
    page.insert(text)
    page.press("Enter")


def wait_for_end(page: Page) -> str:
    """What the last answer says, once it is there."""
    page.wait(_IS_DONE)
    return shown_all(page, ".assistant .content")[-1]


def say(page: Page, text: str) -> str:
    """The answer to a message."""
    send(page, text)
    return wait_for_end(page)


def fill(page: Page, **settings: object) -> None:
    """Write settings; those that are not named stay."""
    for name, value in settings.items():
        field = f"document.getElementById('setting-{name}')"
        page.evaluate(f"{field}.value = {json.dumps(str(value))}")
        page.evaluate(f"{field}.dispatchEvent(new Event('input'))")


def click(page: Page, selector: str, *, text: str = "", index: int = -1) -> None:
    """Press one of the buttons that a selector finds, and that say a text."""
    found = f"[...document.querySelectorAll({json.dumps(selector)})]"
    page.evaluate(
        f"{found}.filter((one) => one.innerText.includes({json.dumps(text)})).at({index}).click()"
    )


def shown(page: Page, selector: str) -> str:
    """Text of the first element that a selector finds."""
    text: str = page.evaluate(f"document.querySelector({json.dumps(selector)}).textContent")
    return text


def shown_all(page: Page, selector: str) -> list[str]:
    """Texts of all elements that a selector finds."""
    found: list[str] = page.evaluate(
        f"[...document.querySelectorAll({json.dumps(selector)})].map((one) => one.textContent)"
    )
    return found


def kept(page: Page) -> list[dict[str, Any]]:
    """The conversations that the browser keeps."""
    texts: list[str] = page.evaluate(
        "Object.entries(localStorage).filter(([name]) => name.includes('/conversation.')).map(([, text]) => text)"
    )
    return [json.loads(text) for text in texts]
