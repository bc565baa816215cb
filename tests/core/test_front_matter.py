"""What a card says of a model's use is found, whatever else it says."""

import pytest

from nanochat.text.front_matter import Usage, read_usage

OWN = "---\nlibrary_name: nanochat-ternary\n"


@pytest.mark.parametrize(
    ("card", "usage"),
    [
        ("", Usage()),
        ("# Title\n\n> quoted\n\nIt writes\nRust.\n\nMore.", Usage(summary="It writes Rust.")),
        (OWN + "---\n", Usage(chats=False)),
        (OWN + "tags: [conversational]\n---\n", Usage(chats=True)),
        ("---\ntags: [a]\n---\r\n# T\r\n\r\nText\r\n", Usage(summary="Text")),
        ("---\nwidget:\n- text: fn main\n---\n", Usage(example="fn main")),
        ("---\nwidget: [{text: 7}]\n---\n", Usage()),
        ("---\n: :\n  - {\n---\nText", Usage(summary="Text")),
        ("\udcff", Usage(summary="?")),
        ("---\nx: !!int ''\n---\nText", Usage(summary="Text")),
        ("---\nx: !!bool x\n---\nText", Usage(summary="Text")),
        ("---\nx: !!timestamp x\n---\nText", Usage(summary="Text")),
    ],
)
def test_usage(card: str, usage: Usage) -> None:
    assert read_usage(card.encode(errors="replace")) == usage
