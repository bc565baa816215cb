"""What a model writes becomes headings, lists, code and links, and nothing that it writes can do anything else."""

import json
from collections.abc import Iterator

import numpy as np
import pytest

from bench.peers.chromium import Chromium, Page
from tests.serve.pages import open_page, say, shown_all
from tests.serve.stub import Stub

# What the renderer makes.
_OWN = "A BLOCKQUOTE BUTTON CODE DEL DIV EM H3 H4 H5 H6 HR LI OL P PRE SPAN STRONG TABLE TBODY TD TH THEAD TR UL"
_HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "<script>alert(1)</script>",
    "<svg/onload=alert(1)>",
    "<iframe srcdoc='<script>parent.alert(1)</script>'></iframe>",
    "<a href='javascript:alert(1)'>x</a>",
    "[x](javascript:alert(1))",
    "[x](java\tscript:alert(1))",
    "[x]( &#106;avascript:alert(1))",
    "[x](<javascript:alert(1)>)",
    "[x](data:text/html,<script>alert(1)</script>)",
    "[x](vbscript:x) [y](file:///etc/passwd) [z](//evil.example)",
    '[x](https://a.example "onmouseover=alert(1)")',
    "![x](https://evil.example/pixel.png)",
    '![x](x" onerror="alert(1))',
    "<javascript:alert(1)> <data:text/html,x>",
    'https://a.example/"onmouseover=alert(1)',
    '```"><img src=x onerror=alert(1)>\n<img src=x onerror=alert(1)>',
    "```html\n<script>alert(1)</script>\n",
    "~~~\n</code></pre><img src=x onerror=alert(1)>",
    "`<img src=x onerror=alert(1)>",
    "| <img src=x onerror=alert(1)> | b |\n|---|---|\n| <script>alert(1)</script> | [x](javascript:alert(1)) |",
    "> <img src=x onerror=alert(1)>\n> - <script>alert(1)</script>",
    "# <img src=x onerror=alert(1)>",
    "1. <style>*{display:none}</style>\n2. <base href=//evil.example>",
    "<form action=//evil.example><input name=a autofocus onfocus=alert(1)>",
    "\u202e\u0000<img src=x onerror=alert(1)>\ufffe",
]


@pytest.fixture(scope="module")
def page(browser: Chromium, stub: Stub) -> Iterator[Page]:
    before = "window.alert = () => { window.isHarmed = true }"
    with open_page(browser, stub.url, before=before) as page:
        page.evaluate(
            "Promise.all(['markdown', 'events'].map((name) => import(`${location.pathname}page/${name}.js`)))"
            ".then((modules) => Object.assign(window, ...modules)).then(() => true)"
        )
        yield page


def html(page: Page, text: str) -> str:
    """What a text becomes, without what is not the text's: buttons, boxes, classes."""
    found: str = page.evaluate(
        "(() => { const place = document.createElement('div');"
        f"new MarkdownView(place).show({json.dumps(text)});"
        "for (const head of place.querySelectorAll('.code-head')) head.remove();"
        "for (const code of place.querySelectorAll('pre code')) code.replaceWith(code.textContent);"
        "for (const box of place.querySelectorAll('.code, .table')) box.replaceWith(box.firstChild);"
        "for (const one of place.querySelectorAll(':not(a):not(ol)'))"
        "  for (const { name } of [...one.attributes]) one.removeAttribute(name);"
        "return place.innerHTML })()"
    )
    return found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\nb", "a\nb"),
        (
            "**a** __b__ *c* _d_ ***e***",
            "<strong>a</strong> <strong>b</strong> <em>c</em> <em>d</em> <em><strong>e</strong></em>",
        ),
        ("a*b*c a_b_c 2 * 3 * 4", "a<em>b</em>c a_b_c 2 * 3 * 4"),
        ("**a *b* c** ~~d~~ ~e", "<strong>a <em>b</em> c</strong> <del>d</del> ~e"),
        ("**a*b**", "<strong>a*b</strong>"),
        ("*a **b* c", "*a *<em>b</em> c"),
        ("**unclosed `too", "**unclosed `too"),
        ("`a*b*` `` c`d `` \\`e\\`", "<code>a*b*</code> <code>c`d</code> `e`"),
        ("\\`a`b`", "`a<code>b</code>"),
        ("\\*a\\* \\\\ \\q", "*a* \\ \\q"),
        ("a & b &lt;i&gt; <i>", "a &amp; b &amp;lt;i&amp;gt; &lt;i&gt;"),
        ("[a](b) [c] [d][e] [f](", "[a](b) [c] [d][e] [f]("),
        ("***** a ****", "***** a ****"),
    ],
)
def test_a_line_is_written_as_it_is_meant(page: Page, text: str, expected: str) -> None:
    assert html(page, text) == f"<p>{expected}</p>"


@pytest.mark.parametrize(
    ("text", "address", "label"),
    [
        ("[a *b*](https://x.example/c_d_e)", "https://x.example/c_d_e", "a b"),
        ("[a](<https://x.example/a b>)", "https://x.example/a%20b", "a"),
        ("[a](https://x.example/(b) 'title')", "https://x.example/(b)", "a"),
        ("[`]`](mailto:a@x.example)", "mailto:a@x.example", "]"),
        (
            "(see https://x.example/a_b_c?d=1.)",
            "https://x.example/a_b_c?d=1",
            "https://x.example/a_b_c?d=1",
        ),
        ("<https://x.example>", "https://x.example/", "https://x.example"),
        ("![a picture](https://x.example/a.png)", "https://x.example/a.png", "a picture"),
    ],
)
def test_a_link_leads_there_in_a_tab_of_its_own(
    page: Page, text: str, address: str, label: str
) -> None:
    links = page.evaluate(
        "(() => { const place = document.createElement('div');"
        f"new MarkdownView(place).show({json.dumps(text)});"
        "return [...place.querySelectorAll('a')].map((one) => [one.href, one.textContent, one.target, one.rel]) })()"
    )

    assert links == [[address, label, "_blank", "noopener noreferrer"]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# a #\n### b\n#c", "<h3>a</h3><h5>b</h5><p>#c</p>"),
        (
            "- a\n- b\n  - c\n\n  d\n",
            "<ul><li><p>a</p></li><li><p>b</p><ul><li><p>c</p></li></ul><p>d</p></li></ul>",
        ),
        (
            "3. a\n4. b\n   ```\n   c\n   ```",
            '<ol start="3"><li><p>a</p></li><li><p>b</p><pre>c</pre></li></ol>',
        ),
        ("a\n- b\nc\n\nd", "<p>a</p><ul><li><p>b\nc</p></li></ul><p>d</p>"),
        ("- a\n- - -\n---", "<ul><li><p>a</p></li></ul><hr><hr>"),
        (
            "> a\n> > b\nc",
            "<blockquote><p>a</p><blockquote><p>b</p></blockquote></blockquote><p>c</p>",
        ),
        ("a\n1990. b", "<p>a\n1990. b</p>"),
        ("```rust\nfn a() {\n\n    b\n}\n```\nc", "<pre>fn a() {\n\n    b\n}</pre><p>c</p>"),
        ("````\n```\n````\n~~~\na", "<pre>```</pre><pre>a</pre>"),
        ("    fn a() {\n        b", "<p>    fn a() {\n        b</p>"),
        (
            "| a | b |\n|---|--:|\n| `c` | d\\|e |\n| f |\n\ng",
            "<table><thead><tr><th>a</th><th>b</th></tr></thead>"
            "<tbody><tr><td><code>c</code></td><td>d|e</td></tr><tr><td>f</td><td></td></tr></tbody></table><p>g</p>",
        ),
        ("a | b\n--", "<p>a | b\n--</p>"),
        ("", ""),
    ],
)
def test_blocks_are_what_they_look_like(page: Page, text: str, expected: str) -> None:
    assert html(page, text) == expected


def test_a_text_that_grows_looks_in_the_end_as_if_it_had_come_at_once(page: Page) -> None:
    text = (
        "# A\n\nb **c**\n- d\n  1. e\n\n```py\nf = 1\n\ng\n```\n> h\n> i\n\n"
        "| j | k |\n|:-:|---|\n| l | m |\n\nn [o](https://p.example)"
    )

    grown, whole = page.evaluate(
        "(() => { const text = " + json.dumps(text) + ";"
        "const [grown, whole] = [1, text.length].map((start) => {"
        "  const place = document.createElement('div'); const view = new MarkdownView(place);"
        "  for (let end = start; end <= text.length; end++) view.show(text.slice(0, end));"
        "  return place.innerHTML });"
        "return [grown, whole] })()"
    )

    assert grown == whole


def test_no_mixture_of_marks_fails_or_makes_anything_else(page: Page) -> None:
    rng = np.random.default_rng(0)
    parts = [
        *"*_`~[]()!<>|#-+ \n\\:ab1.",
        "\n\n",
        "```",
        "https://x.example",
        "](",
        "- ",
        "> ",
        "**",
        "\n",
    ]
    texts = ["".join(rng.choice(parts, rng.integers(1, 60))) for _ in range(500)]

    tags = page.evaluate(
        f"(() => {{ const tags = new Set(); for (const text of {json.dumps(texts)}) {{"
        "  const places = [0, 1].map(() => document.createElement('div'));"
        "  const [whole, grown] = places.map((place) => new MarkdownView(place));"
        "  whole.show(text);"
        "  for (let end = 1; end <= text.length; end++) grown.show(text.slice(0, end));"
        "  if (places[0].innerHTML !== places[1].innerHTML) throw new Error(JSON.stringify(text));"
        "  for (const { tagName } of places[0].querySelectorAll('*')) tags.add(tagName); }"
        "return [...tags] })()"
    )

    assert {"A", "BLOCKQUOTE", "CODE", "EM", "LI", "P", "PRE", "STRONG"} <= set(tags)
    assert set(tags) <= set(_OWN.split())


def test_only_the_block_that_grows_is_made_anew(page: Page) -> None:
    kept = page.evaluate(
        "(() => { const place = document.createElement('div'); const view = new MarkdownView(place);"
        "view.show('a\\n\\n```\\nb'); const [first, code] = place.children;"
        "const text = code.querySelector('code').firstChild;"
        "view.show('a\\n\\n```\\nb\\nc\\n```\\n\\nd');"
        "return [place.children[0] === first, place.children[1] === code, code.contains(text), text.data,"
        "  place.children.length] })()"
    )

    assert kept == [True, True, True, "b\nc", 3]


@pytest.mark.parametrize(
    "text",
    [
        "[" * 50_000,
        "*a " * 30_000,
        "`" * 50_000 + "a",
        "> " * 20_000,
        "- " * 20_000,
        "![](" * 20_000,
        "[a](b(" * 10_000,
        "**a" * 20_000 + "a** " * 20_000,
        "*a " * 30_000 + "b_ " * 30_000,
        "a_" * 40_000,
        "|" * 30_000 + "\n" + "-|" * 30_000,
        "".join("`" * n + "a" for n in range(300)),
        "https://" * 8_000,
        "-" + " " * 50_000 + "a",
    ],
    ids=lambda text: text[:8],
)
def test_no_text_takes_long(page: Page, text: str) -> None:
    seconds = page.evaluate(
        "(() => { const begin = performance.now(); const place = document.createElement('div');"
        f"new MarkdownView(place).show({json.dumps(text)});"
        "return (performance.now() - begin) / 1000 })()"
    )

    assert seconds < 2


def test_hostile_texts_are_texts(browser: Chromium, page: Page, stub: Stub) -> None:
    for text in _HOSTILE:
        stub.say(text)
        say(page, "?")

    inside = "document.querySelectorAll('.assistant .content *')"
    tags = page.evaluate(f"[...{inside}].map((one) => one.tagName)")
    attributes = page.evaluate(
        f"[...{inside}].flatMap((one) => [...one.attributes]).map(({{name}}) => name)"
    )
    addresses = page.evaluate(f"[...{inside}].map((one) => one.href).filter((one) => one)")

    assert len(shown_all(page, ".assistant .content")) == len(_HOSTILE)
    assert set(tags) <= set(_OWN.split())
    assert set(attributes) <= {
        "aria-label",
        "class",
        "href",
        "rel",
        "role",
        "scope",
        "start",
        "tabindex",
        "target",
        "title",
        "type",
    }
    assert addresses
    assert all(address.startswith("https://") for address in addresses)
    assert page.evaluate("window.isHarmed") is None
    assert page.problems == page.complaints == []
    assert "<img src=x onerror=alert(1)>" in shown_all(page, ".assistant .content")[0]
    assert [url for url in browser.requests if "evil" in url] == []


def test_events_are_read_whatever_their_pieces(page: Page) -> None:
    stream = ": ping\n\ndata: a\r\ndata: é\r\n\r\nevent: x\rdata:b\r\rdata: c\n\ndata: never ended"
    script = (
        "(async () => { const found = [];"
        f"const bytes = new TextEncoder().encode({json.dumps(stream)});"
        "for (const size of [1, 2, 3, 1000]) {"
        "  const body = new ReadableStream({ start(control) {"
        "    for (let at = 0; at < bytes.length; at += size) control.enqueue(bytes.slice(at, at + size));"
        "    control.close(); } });"
        "  const all = []; for await (const data of events(body)) all.push(data); found.push(all); }"
        "return found })()"
    )

    assert page.evaluate(script) == [["a\né", "b", "c"]] * 4
