"""This file holds access tokens of the Hub: what one must look like, and how none gets into a message."""

import re

from huggingface_hub import get_token

from nanochat.errors import InputError

__all__ = ["mask", "require_token"]

_BEARER = re.compile(r"(Bearer )[^\s'\"]+")
_SHOWN = "***"


def require_token(token: str | None) -> str | None:
    """A token as the Hub takes it: without the line end of the file that it was read from.

    Parameters
    ----------
    token : str or None
        `None` is the one of ``hf auth login`` or ``HF_TOKEN``.

    Raises
    ------
    InputError
        If it is no text that a request can carry.
    """
    if token is None:
        return None
    stripped = token.strip() if isinstance(token, str) else ""
    # Never with its value.
    if not stripped or not stripped.isascii() or not stripped.isprintable() or " " in stripped:
        raise InputError(
            "the token is empty, or holds what no token does: pass one of huggingface.co/settings/tokens, or none to "
            "use that of `hf auth login` or HF_TOKEN"
        )
    return stripped


def mask(text: str, token: str | None = None) -> str:
    r"""A text without the token, however it is written there.

    Examples
    --------
    >>> mask("Illegal header value b'Bearer hf_x\\n'"), mask("hf_y is wrong", "hf_y")
    ("Illegal header value b'Bearer ***'", '*** is wrong')
    """
    text = _BEARER.sub(rf"\1{_SHOWN}", text)
    for secret in (token, get_token()):
        for form in (secret, repr(secret)[1:-1]) if secret else ():
            text = text.replace(form, _SHOWN)
    return text
