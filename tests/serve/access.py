"""This file holds what a page must be for people who do not see it, or use no pointer, as scripts that find what fails.

References
----------
.. [1] W3C, Web Content Accessibility Guidelines 2.2: 1.4.3 contrast, 2.4.7 focus visible, 4.1.2 name, role, value.
"""

from typing import NamedTuple

from bench.peers.chromium import Page

__all__ = ["Stop", "contrasts", "nameless", "overflowing", "tab_stops", "unreached"]

_CONTROLS = (
    "button",
    "checkbox",
    "combobox",
    "link",
    "listbox",
    "option",
    "searchbox",
    "textbox",
)
# Where a name tells one from another.
_REGIONS = ("article", "complementary", "dialog", "form", "group", "log", "navigation", "region")
_MOST_STOPS = 200

_CONTRASTS = """
(() => {
  const numbers = (colour) => (colour.match(/[\\d.]+/g) ?? []).map(Number);
  const over = (front, back) => {
    const alpha = front[3] ?? 1;
    return [0, 1, 2].map((channel) => front[channel] * alpha + back[channel] * (1 - alpha));
  };
  const behind = (element) => {
    if (!element) return [255, 255, 255];
    const own = numbers(getComputedStyle(element).backgroundColor);
    return (own[3] ?? 1) === 1 ? own : over(own, behind(element.parentElement));
  };
  const luminance = (colour) => {
    const linear = colour.map((value) => value / 255)
      .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  };
  const contrast = (colour, element) => {
    const back = behind(element);
    const [a, b] = [luminance(over(numbers(colour), back)), luminance(back)];
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  };
  const isSeen = (element) =>
    element.checkVisibility({ visibilityProperty: true }) && !element.closest(".visually-hidden, :disabled");
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    if (!node.data.trim() || !isSeen(element)) continue;
    found.push([node.data.trim(), contrast(getComputedStyle(element).color, element)]);
  }
  for (const field of document.querySelectorAll("input, select, textarea")) {
    if (!isSeen(field)) continue;
    found.push([`${field.id}, filled`, contrast(getComputedStyle(field).color, field)]);
    const hint = getComputedStyle(field, "::placeholder");
    if (field.placeholder) found.push([field.placeholder, contrast(hint.color, field)]);
  }
  return found;
})()
"""
# What scrolls to the side is read with arrow keys, once the focus is there.
_SCROLLS = "(['auto', 'scroll'].includes(getComputedStyle(one).overflowX) && one.scrollWidth > one.clientWidth)"
_REACHABLE = (
    "[...document.querySelectorAll('body *')].filter((one) => one.checkVisibility({ visibilityProperty: true })"
    " && !one.disabled && !one.closest('[inert]') && (one.matches("
    "\"a[href], button, input, select, textarea, summary, [tabindex='0']\")"
    f" || {_SCROLLS}))"
)
_DESCRIBE = "((one) => `${one.tagName} ${one.id || one.className} ${one.ariaLabel ?? one.textContent.slice(0, 20)}`)"


class Stop(NamedTuple):
    """Where the focus is: its number among all that can be used, what it is, and its outline's width in pixels."""

    number: int
    what: str
    outline: float


def contrasts(page: Page) -> list[tuple[str, float]]:
    """Each text that can be seen, and its contrast with what is behind it."""
    return [(text, ratio) for text, ratio in page.evaluate(_CONTRASTS)]


def nameless(page: Page) -> list[str]:
    """Roles of things that have no name for screen readers."""
    return [
        role for role, name in page.names() if role in (*_CONTROLS, *_REGIONS) and not name.strip()
    ]


def tab_stops(page: Page) -> list[Stop]:
    """What Tab goes to, from the beginning of the page to its end."""
    page.evaluate(f"window.reachable = {_REACHABLE}")
    page.evaluate("window.reachable[1].focus()")
    page.press("Tab", shift=True)
    found: list[Stop] = []
    for _ in range(_MOST_STOPS):
        stop = Stop(
            *page.evaluate(
                "((one, style) => [window.reachable.indexOf(one),"
                f"{_DESCRIBE}(one), style.outlineStyle === 'none' ? 0 : parseFloat(style.outlineWidth)])"
                "(document.activeElement, getComputedStyle(document.activeElement))"
            )
        )
        # Behind the last one is the browser, or the first.
        if found and stop.number <= 0:
            break
        found.append(stop)
        page.press("Tab")
    return found


def unreached(page: Page, stops: list[Stop]) -> list[str]:
    """What can be used and is not among those stops."""
    names: list[str] = page.evaluate(f"window.reachable.map({_DESCRIBE})")
    reached = {stop.number for stop in stops}
    return [name for number, name in enumerate(names) if number not in reached]


def overflowing(page: Page) -> list[str]:
    """What has to be scrolled to the side, other than code and tables."""
    found: list[str] = page.evaluate(
        "[...document.querySelectorAll('html, body *')].filter((one) => !one.matches('pre, .table, input'))"
        f".filter((one) => one.tagName === 'HTML' ? one.scrollWidth > innerWidth : {_SCROLLS}).map({_DESCRIBE})"
    )
    return found
