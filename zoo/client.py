"""This file holds the Hub's client as it is used here: with a token that is one, and errors that say what to do."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import HfApi, constants, errors, get_token

from nanochat import __version__
from nanochat.errors import InputError, ModelNotFoundError, NanochatError, SaveError

__all__ = [
    "LIBRARY",
    "LOGIN",
    "client",
    "error_text",
    "hub_errors",
    "is_unreachable",
    "require_token",
]

LIBRARY = "nanochat-ternary"
LOGIN = "run `hf auth login` with a token that may write, or pass one"
_LATER = "try again later"
_BEARER = re.compile(r"(Bearer )[^\s'\"]+")
_SHOWN = "***"


def client(token: str | None) -> HfApi:
    """The client, which tells the Hub who asks; without a token, that of ``hf auth login`` or ``HF_TOKEN`` is used."""
    return HfApi(token=require_token(token), library_name=LIBRARY, library_version=__version__)


def require_token(token: str | None) -> str | None:
    """A token as the Hub takes it: without the line end of the file that it was read from."""
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


@contextmanager
def hub_errors(
    repo: str, *, revision: str = "", writing: str = "", token: str | None = None, then: str = ""
) -> Iterator[None]:
    """Translate whatever the client raises: `ModelNotFoundError` for a download, `SaveError` for all else and the disk.

    Parameters
    ----------
    writing : str
        What it was to do with `repo` before or when it writes there, such as "upload to"; empty for a download.
    token : str or None
        What no message may show.
    then : str
        What has become of `repo`, for the end of the message.
    """
    try:
        yield
    except NanochatError:
        raise
    # The client's own exceptions are another library's in every major version.
    except Exception as error:
        if writing:
            why = _why_not_written(error, revision, _message(error, token))
            raise SaveError(f"cannot {writing} {repo}: {why}{then}") from error
        raise _not_read(error, repo, revision) from error


def is_unreachable(error: Exception) -> bool:
    """Whether the Hub could not be asked at all, or could not answer."""
    if isinstance(error, errors.HfHubHTTPError):
        return error.response.status_code >= 500
    # The names of the kinds of that other library.
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool({"TransportError", "ConnectionError"} & names)


def error_text(error: Exception) -> str:
    """What happened, on one line."""
    if isinstance(error, errors.HfHubHTTPError):
        return f"status {error.response.status_code}"
    return _message(error)


def _message(error: Exception, token: str | None = None) -> str:
    r"""The client's own words on one line, without the token, however it is written there.

    Examples
    --------
    >>> _message(ValueError("Illegal header value b'Bearer hf_x\\n'")), _message(ValueError("hf_y is wrong"), "hf_y")
    ("Illegal header value b'Bearer ***'", '*** is wrong')
    """
    text = _BEARER.sub(rf"\1{_SHOWN}", " ".join(str(error).split()))
    for secret in filter(None, (token and token.strip(), get_token())):
        for form in (secret, repr(secret)[1:-1]):
            text = text.replace(form, _SHOWN)
    return text[:300]


def _not_read(error: Exception, repo: str, revision: str) -> NanochatError:
    url = f"{constants.ENDPOINT}/{repo}"
    match error:
        case errors.GatedRepoError():
            why = f"asks you to accept its terms: do so at {url}, then run `hf auth login` or set HF_TOKEN"
        case errors.DisabledRepoError():
            why = f"was disabled by the Hub: see {url}"
        case errors.RepositoryNotFoundError():
            why = (
                f"is no directory or file here, and no model at {url}: check the name, or run `hf auth login` or set "
                "HF_TOKEN if it is private"
            )
        case errors.RevisionNotFoundError():
            why = f"has no revision {revision!r:.80}: choose a branch, tag or commit at {url}/tree/main"
        case errors.OfflineModeIsEnabled():
            why = "was not fetched completely before, and HF_HUB_OFFLINE is set: unset it, connect and try again"
        case errors.HFValidationError():
            return ModelNotFoundError(f"{repo}: {error}; pass owner/name")
        case errors.HfHubHTTPError():
            why = _why_not_read(error.response.status_code)
        case OSError(errno=int()):
            return SaveError(
                f"cannot store {repo}: {error.strerror}; free space, make {constants.HF_HUB_CACHE} writable, or choose "
                "another place with cache_dir or HF_HUB_CACHE"
            )
        case _:
            why = f"could not be fetched: {error_text(error)}; what is complete stays, so try again"
    return ModelNotFoundError(f"{repo} {why}")


def _why_not_read(status: int) -> str:
    if status >= 500:
        return f"could not be fetched: the Hub is out of order (status {status}); {_LATER}"
    reasons = {
        401: "is not for this token: run `hf auth login`, or set HF_TOKEN to one that is valid",
        403: "may not be read with this token: run `hf auth login` with one that may",
        429: f"could not be fetched: the Hub had too many requests from here; {_LATER}",
    }
    other = f"could not be fetched: status {status}; check HF_ENDPOINT, and try again"
    return reasons.get(status, other)


def _why_not_written(error: Exception, revision: str, message: str) -> str:
    match error:
        case errors.LocalTokenNotFoundError():
            return f"nobody is logged in; {LOGIN}"
        case errors.OfflineModeIsEnabled():
            return "HF_HUB_OFFLINE is set; unset it"
        case errors.RevisionNotFoundError():
            return f"there is no branch {revision!r:.80}; choose another"
    refusal: BaseException | None = error
    # The client reports some refusals as something else that failed for them.
    while refusal is not None and not isinstance(refusal, errors.HfHubHTTPError):
        refusal = refusal.__cause__
    if refusal is not None:
        return _why_refused(refusal.response.status_code, message)
    if isinstance(error, ValueError) and not isinstance(error, json.JSONDecodeError):
        return f"the client refuses it ({message}); correct that, and push again"
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        return f"{error.strerror} ({error.filename}); free space, and push again"
    return (
        f"{constants.ENDPOINT} cannot be reached ({message}); check the network and HF_ENDPOINT, and push again"
    )  # fmt: skip


def _why_refused(status: int, message: str) -> str:
    if status >= 500:
        return f"the Hub is out of order (status {status}); push again later"
    reasons = {
        401: f"the Hub does not let this token do it ({message}); {LOGIN}",
        403: f"the Hub does not let this token do it ({message}); {LOGIN}",
        404: f"it is not there, or not yours ({message}); check the name, or {LOGIN}",
        409: f"the Hub says that something of that name is there already ({message}); choose another, or push again",
        412: "it was changed by somebody else meanwhile; push again, and the change will be kept",
        413: f"a file is too large for the Hub ({message}); upload less at once",
        429: "the Hub had too many requests from here; push again in some minutes",
    }
    return reasons.get(status, f"the Hub refuses it ({message}); correct that, and push again")
