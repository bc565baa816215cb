"""A licence is one that can be found, by its name or by its text."""

import pytest

from nanochat.errors import InputError
from nanochat.publish.licence import choose_licence


@pytest.mark.parametrize("licence", ["unknown", "other", "", "MIT\nx: y", "Apache 2", "House-1.0"])
def test_what_is_no_licence_that_can_be_found_is_refused(licence: str) -> None:
    with pytest.raises(InputError, match="SPDX"):
        choose_licence("", licence, has_text=False)
