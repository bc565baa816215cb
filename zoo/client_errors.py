"""This file holds the errors of the Hub's client in words that say what to do."""

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants, errors

from nanochat.errors import ModelNotFoundError, NanochatError, SaveError
from nanochat.zoo.access_token import mask

__all__ = ["in_words", "is_unreachable", "reading_errors"]

_LATER = "try again later, or set HF_HUB_OFFLINE if it was fetched before"


@contextmanager
def reading_errors(repo: str, *, revision: str = "") -> Iterator[None]:
    """Translate what the client raises while it reads from a repository.

    Raises
    ------
    ModelNotFoundError
        If the Hub refuses or cannot be reached.
    SaveError
        If the disk refuses.
    """
    url = f"{constants.ENDPOINT}/{repo}"
    try:
        yield
    except NanochatError:
        raise
    except errors.GatedRepoError as error:
        raise ModelNotFoundError(
            f"{repo} asks you to accept its terms: do so at {url}, then run `hf auth login` or set HF_TOKEN"
        ) from error
    except errors.DisabledRepoError as error:
        raise ModelNotFoundError(f"{repo} was disabled by the Hub: see {url}") from error
    except errors.RepositoryNotFoundError as error:
        raise ModelNotFoundError(
            f"{repo} is no directory here and no model at {url}: check the name, or run `hf auth login` or set "
            "HF_TOKEN if it is private"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ModelNotFoundError(
            f"{repo} has no revision {revision!r:.80}: choose a branch, tag or commit at {url}/tree/main"
        ) from error
    except errors.OfflineModeIsEnabled as error:
        raise ModelNotFoundError(
            f"{repo} was not fetched completely before, and HF_HUB_OFFLINE is set: unset it, connect and try again"
        ) from error
    except errors.HFValidationError as error:
        raise ModelNotFoundError(f"{repo}: {error}; pass owner/name") from error
    except errors.HfHubHTTPError as error:
        raise ModelNotFoundError(f"{repo} {_refusal(error)}") from error
    # The client's own exceptions are another library's in every major version.
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise SaveError(
                f"cannot store {repo}: {error.strerror}; free space, make {constants.HF_HUB_CACHE} writable, or choose "
                "another place with cache_dir or HF_HUB_CACHE"
            ) from error
        raise ModelNotFoundError(
            f"{repo} could not be fetched: {in_words(error)}; what is complete stays, so try again"
        ) from error


def is_unreachable(error: Exception) -> bool:
    """Whether the Hub could not be asked at all, or could not answer."""
    if isinstance(error, errors.HfHubHTTPError):
        return error.response.status_code >= 500
    # The client's own exceptions are another library's in every major version; these are the names of its kinds.
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool({"TransportError", "ConnectionError"} & names)


def _refusal(error: errors.HfHubHTTPError) -> str:
    status = error.response.status_code
    if status == 401:
        return "is not for this token: run `hf auth login`, or set HF_TOKEN to one that is valid"
    if status == 403:
        return "may not be read with this token: run `hf auth login` with one that may"
    if status == 429:
        return f"could not be fetched: the Hub had too many requests from here; {_LATER}"
    if status >= 500:
        return f"could not be fetched: the Hub is out of order (status {status}); {_LATER}"
    return f"could not be fetched: {in_words(error)}; check HF_ENDPOINT, and try again"


def in_words(error: Exception) -> str:
    """What happened, on one line."""
    if isinstance(error, errors.HfHubHTTPError):
        return f"status {error.response.status_code}"
    return mask(" ".join(str(error).split()))[:300]
