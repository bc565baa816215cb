"""An option that cannot be is refused when it is chosen, before there is anything to publish."""

from typing import Any

import pytest

from nanochat.errors import InputError
from nanochat.publish.options import PushOptions
from nanochat.publish.push import repositories


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"formats": ["tar"]}, "choose some of nanochat"),
        ({"formats": ["gguf", "gguf"]}, "each once"),
        ({"languages": ["English"]}, "ISO 639"),
        ({"base_model": "base"}, "base_model='base' is no repository"),
        ({"base_model": " "}, "base_model=' ' is no repository"),
        ({"datasets": ["a/b", ""]}, "datasets: '' is no data set"),
        ({"datasets": ["my notes"]}, "datasets: 'my notes' is no data set"),
        ({"create_pr": True, "branch": "next"}, "leave one of them out"),
        ({"prompt": "two\nlines"}, "on one line"),
    ],
)
def test_an_option_that_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        PushOptions(**options)


@pytest.mark.parametrize(
    "repo",
    ["name", "a/b/c", "https://huggingface.co/a/b", "../x", "a/b--c", "a/b.", f"a/{'b' * 96}"],
)
def test_what_is_no_repository_is_refused(repo: str) -> None:
    with pytest.raises(InputError, match="pass OWNER/NAME"):
        repositories(repo, PushOptions())


@pytest.mark.parametrize(
    "branch", ["../..", "a/../../b", "/main", "-d", "a\0b", "a b", "a/", "a//b", "x.", "é", "b\n"]
)
def test_what_is_no_branch_is_refused(branch: str) -> None:
    with pytest.raises(InputError, match=r"branch=.* is no branch: pass letters"):
        PushOptions(branch=branch)


@pytest.mark.parametrize("branch", ["main", "v1.0-rc_2", "refs/pr/1", "a"])
def test_names_of_branches_are_taken(branch: str) -> None:
    PushOptions(branch=branch)
