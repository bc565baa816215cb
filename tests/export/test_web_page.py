"""A person's browser runs the page: headless Chromium, the model that ships with the package, Python's own server."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.peers.chromium import Chromium, Page
from bench.peers.web import FileServer, WebPage, wait_for_model
from nanochat.backends.reference.ops import ReferenceOps
from nanochat.bundle import Bundle
from nanochat.errors import BackendError
from nanochat.generation.engine import Engine
from nanochat.proof.parity import check_parity, greedy
from nanochat.text import chat
from tests.export.pages import BUSY, QUICK, begin, copy_page, shown, tiny, write, write_page
from tests.export.texts import ODD_STRINGS

PROMPT = "pub fn main() {\n    let"
NUM_TOKENS = 40
# What the model's card shows.
EXAMPLE = "impl fmt::Display for Point {"
# What a person may still see after the button was pressed: a text of a quarter of a second.
LAST_CHARACTERS = 200


@pytest.fixture(scope="module")
def source() -> Bundle:
    return tiny()


@pytest.fixture(scope="module")
def folder(source: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_page(tmp_path_factory.mktemp("web") / "page", source)


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[FileServer]:
    with FileServer(folder) as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    with Chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def page(browser: Chromium, server: FileServer) -> Page:
    page = browser.open(server.url + QUICK)
    wait_for_model(page)
    return page


@pytest.fixture(scope="module")
def expected(source: Bundle) -> str:
    """The prompt, and what the reference writes after it."""
    ops = ReferenceOps()
    reference = Engine(source.config, ops.prepare(source.weights), ops)
    ids = [*source.tokenizer.opening, *source.tokenizer.encode(PROMPT)]
    return PROMPT + source.tokenizer.decode(greedy(reference, ids, num_tokens=NUM_TOKENS))


def test_a_first_visit_writes_what_the_reference_does_and_a_second_needs_no_server(
    folder: Path, expected: str
) -> None:
    with Chromium() as browser:
        with FileServer(folder) as server:
            page = browser.open(server.url)
            page.wait("document.getElementById('status')?.textContent.startsWith('Loading')")
            wait_for_model(page)

            text = write(page, PROMPT, temperature=0, max_tokens=NUM_TOKENS)

            found = re.search(r"^40 tokens, (\d+) tokens/s", shown(page, "speed"))
            assert text == expected
            assert found is not None, shown(page, "speed")
            assert int(found[1]) > 0
            assert "2-bit weights, WebGPU: " in shown(page, "reasons")
            assert page.problems == []
            assert all(url.startswith(server.url) for url in browser.requests), browser.requests

        page.go(server.url)
        wait_for_model(page)

        assert write(page, PROMPT, temperature=0, max_tokens=NUM_TOKENS) == expected


def test_the_page_says_what_the_model_knows_and_shows_a_prompt(
    browser: Chromium, server: FileServer, folder: Path
) -> None:
    page = browser.open(server.url + QUICK)
    wait_for_model(page)

    assert shown(page, "summary").startswith("A ternary language model of 5.8M parameters")
    assert shown(page, "chat") == "Chat (it was not trained to)"
    assert page.evaluate("document.getElementById('prompt').value") == EXAMPLE
    page.evaluate("document.getElementById('generate').click()")
    page.wait(f"!{BUSY}", seconds=60)
    assert shown(page, "log").startswith(EXAMPLE)
    assert len(shown(page, "log")) > len(EXAMPLE)
    assert "python -m http.server" in (folder / "README.md").read_text()


def test_a_text_stops_where_it_shall(page: Page, expected: str) -> None:
    part = expected[len(PROMPT) :]
    stop = part[20:23]
    fill(page, "stop-at", stop)
    try:
        text = write(page, PROMPT, temperature=0, max_tokens=NUM_TOKENS)
    finally:
        fill(page, "stop-at", "")

    assert text == PROMPT + part[: part.index(stop)]
    assert shown(page, "speed").endswith("the text to stop at came")


def test_top_p_leaves_the_most_probable_token_only(page: Page, expected: str) -> None:
    try:
        text = write(page, PROMPT, temperature=1, max_tokens=NUM_TOKENS, top_p=0.01)
    finally:
        fill(page, "top-p", "1")

    assert text == expected


def fill(page: Page, field: str, value: str) -> None:
    page.evaluate(f"document.getElementById('{field}').value = {json.dumps(value)}")


def test_the_choice_is_told_with_what_else_was_tried(page: Page) -> None:
    assert re.match(
        r"float32 weights, WASM, 1 thread: \d+ tokens/s when it was tried\. onnxruntime-web 1\.30\.0\.",
        shown(page, "info"),
    )
    assert page.evaluate("crossOriginIsolated") is True


def test_the_button_stops_the_text_at_once(page: Page) -> None:
    begin(page, "", temperature=0, max_tokens=900)
    page.wait("document.getElementById('log').textContent.length > 20")

    click = "document.getElementById('stop').click()"
    seen = page.evaluate(f"{click}, document.getElementById('log').textContent.length")
    page.wait(f"!{BUSY}")

    assert len(shown(page, "log")) - seen < LAST_CHARACTERS
    assert shown(page, "speed").endswith("stopped")


def test_the_same_seed_writes_the_same_text(page: Page) -> None:
    texts = [write(page, PROMPT, temperature=1, max_tokens=20, seed=seed) for seed in (1, 2, 1)]

    assert texts[0] == texts[2] != texts[1]


def test_the_page_tokenizes_as_the_package_does(page: Page, source: Bundle) -> None:
    texts = json.dumps(ODD_STRINGS)

    ids = page.evaluate(f"{texts}.map((text) => nanochat.encode(text))")
    back = page.evaluate(f"{json.dumps(ids)}.map((tokens) => nanochat.decode(tokens))")

    expected = [source.tokenizer.encode(text) for text in ODD_STRINGS]
    assert [
        text for text, found, own in zip(ODD_STRINGS, ids, expected, strict=True) if found != own
    ] == []
    assert back == ODD_STRINGS


def test_a_conversation_is_the_packages(page: Page, source: Bundle) -> None:
    messages: list[chat.Message] = [
        {"role": "user", "content": "Hello <|end|>"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "é"},
    ]

    ids = page.evaluate(f"nanochat.chat({json.dumps(messages)})")

    assert ids == chat.render(messages, source.tokenizer)


def test_a_prompt_longer_than_the_context_is_refused_in_words(page: Page) -> None:
    write(page, "fn " * 1100, max_tokens=1)

    assert re.search(
        r"the prompt has \d+ tokens, and the model sees 1024: shorten it", shown(page, "error")
    )


def test_a_text_ends_where_the_context_does(page: Page) -> None:
    write(page, "fn " * 1020, temperature=0, max_tokens=100)

    assert shown(page, "speed").endswith("the model's context is full")
    assert page.evaluate("document.getElementById('error').hidden") is True


def test_special_tokens_end_the_text(
    browser: Chromium, folder: Path, source: Bundle, expected: str, tmp_path: Path
) -> None:
    # Any token may be the one; this is the first of the last line that the reference writes.
    end = source.tokenizer.encode(expected)[-20]
    other = json.dumps({"eos_token_id": [1, end]}).encode()
    copy_page(tmp_path / "p", folder, source, {"generation_config.json": other}, known=True)
    with FileServer(tmp_path / "p") as server:
        page = browser.open(server.url + QUICK)
        wait_for_model(page)

        text = write(page, PROMPT, temperature=0, max_tokens=NUM_TOKENS)

        ids = source.tokenizer.encode(expected[len(PROMPT) :])
        assert text == PROMPT + source.tokenizer.decode(ids[: ids.index(end)])
        assert shown(page, "speed").endswith("the model ended the text")


def test_damage_is_named_on_the_page(
    browser: Chromium, folder: Path, source: Bundle, tmp_path: Path
) -> None:
    data = bytearray((folder / "model.onnx.data").read_bytes())
    data[1000] ^= 1
    copy_page(tmp_path / "p", folder, source, {"model.onnx.data": bytes(data)}, known=False)

    with FileServer(tmp_path / "p") as server, pytest.raises(BackendError) as caught:
        wait_for_model(browser.open(server.url + QUICK))

    assert "model.onnx.data is damaged" in str(caught.value)


def test_a_missing_file_is_named_on_the_page(
    browser: Chromium, folder: Path, source: Bundle, tmp_path: Path
) -> None:
    copy_page(tmp_path / "p", folder, source, {}, known=False)
    (tmp_path / "p" / "model.float32.onnx").unlink()

    with FileServer(tmp_path / "p") as server, pytest.raises(BackendError) as caught:
        wait_for_model(browser.open(server.url + QUICK))

    assert "model.float32.onnx cannot be fetched (status 404)" in str(caught.value)


def test_a_way_that_computes_something_else_is_refused(
    browser: Chromium, folder: Path, source: Bundle, tmp_path: Path
) -> None:
    details = json.loads((folder / "page.json").read_text())
    # As far off as activations that are not rounded.
    details["alone"] = [[1.01 * score for score in row] for row in details["alone"]]
    changes = {"page.json": json.dumps(details).encode()}
    copy_page(tmp_path / "p", folder, source, changes, known=True)

    with FileServer(tmp_path / "p") as server, pytest.raises(BackendError) as caught:
        wait_for_model(browser.open(server.url + QUICK))

    assert "it computes something else: 0 of" in str(caught.value)


def test_a_model_whose_widened_weights_do_not_fit_runs_with_the_packed_ones(
    browser: Chromium, folder: Path, source: Bundle, tmp_path: Path
) -> None:
    details = json.loads((folder / "page.json").read_text()) | {"float32_bytes": 2**32}
    changes = {"page.json": json.dumps(details).encode()}
    copy_page(tmp_path / "p", folder, source, changes, known=True)

    with FileServer(tmp_path / "p") as server:
        page = browser.open(f"{server.url}?device=wasm&threads=1")
        wait_for_model(page)

    assert shown(page, "info").startswith("2-bit weights, WASM, 1 thread")
    assert "float32 weights, WASM, 1 thread: needs 12.0 GiB of the " in shown(page, "reasons")


def test_a_browser_without_simd_is_told_so(browser: Chromium, server: FileServer) -> None:
    page = browser.open(server.url + QUICK, before="WebAssembly.validate = () => false")

    with pytest.raises(BackendError, match="no WebAssembly with SIMD: use a newer one"):
        wait_for_model(page)


def test_a_page_that_is_not_isolated_works_and_says_what_it_lacks(
    browser: Chromium, server: FileServer, tmp_path: Path, folder: Path, source: Bundle
) -> None:
    copy_page(tmp_path / "p", folder, source, {}, known=False)
    without = (
        "Object.defineProperty(navigator, 'serviceWorker', {value: undefined});"
        # What it lacks is told where it would use it.
        "Object.defineProperty(navigator, 'hardwareConcurrency', {value: 2})"
    )
    with FileServer(tmp_path / "p") as server:
        page = browser.open(server.url + QUICK, before=without)
        wait_for_model(page)

        assert page.evaluate("crossOriginIsolated") is False
        assert "threads: browsers give them to cross-origin isolated pages only" in shown(
            page, "reasons"
        )
        assert "Not kept for use without a server" in shown(page, "reasons")


@pytest.mark.parametrize("weights", ["float32", "2-bit"])
def test_both_forms_of_the_weights_compute_the_model(
    folder: Path, source: Bundle, weights: str
) -> None:
    with WebPage(folder, query=f"?device=wasm&threads=1&weights={weights}") as artefact:
        parity = check_parity(source, artefact)

    assert parity.ok, parity
    assert parity.same_text, parity
