"""This file holds what clients are told when they cannot be served, in the words of OpenAI's API.

References
----------
.. [1] OpenAI, API reference, "Error codes"; the Python client chooses its exception by the status alone.
"""

import re
from dataclasses import dataclass, field

from nanochat.errors import ContextLengthError, FormatError, InputError, NanochatError
from nanochat.serve.engine import EngineEndedError, QueueFullError, StepFailedError

__all__ = ["ApiError", "as_api_error", "failure"]

# How messages of this package name the argument that they refuse, as in "top_k=-1 is not an integer ...".
_ARGUMENT = re.compile(r"([a-z_]+)(?:\[[^]]*\])?(?:=| is | id | holds )")
# Seconds after which it is worth to ask again.
_SOON = "1"


@dataclass
class ApiError(Exception):
    """A request that gets an error instead of an answer.

    Parameters
    ----------
    status : int
        Of HTTP.
    message, type, code, param : str
        See [1]_; `param` is the field of the request that is wrong.
    headers : mapping
        Of the response.
    """

    status: int
    message: str
    type: str = "invalid_request_error"
    code: str | None = None
    param: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def body(self) -> dict[str, object]:
        """What the client gets."""
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }


def as_api_error(
    error: Exception, *, context: int, fields: frozenset[str] = frozenset()
) -> ApiError:
    """What a client is told of an error: nothing of those that it cannot have caused.

    Parameters
    ----------
    context : int
        Most tokens of a prompt and its answer.
    fields : set of str
        Those that a request may have, of which the error may name one.
    """
    message = str(error)
    match error:
        case ApiError():
            return error
        case QueueFullError():
            return ApiError(
                429,
                message,
                type="rate_limit_error",
                code="queue_full",
                headers={"Retry-After": _SOON},
            )
        case EngineEndedError():
            return ApiError(
                503,
                message,
                type="server_error",
                code="engine_failed",
                headers={"Retry-After": _SOON},
            )
        case StepFailedError():
            return ApiError(500, message, type="server_error")
        case ContextLengthError():
            # Other programs look for this sentence.
            length = f"This model's maximum context length is {context} tokens. "
            return ApiError(
                400, length + message, code="context_length_exceeded", param=_param(message, fields)
            )
        case InputError() | FormatError():
            return ApiError(400, message, param=_param(message, fields))
        case NanochatError():
            # NaN in logits, no memory: nothing that a client can mend.
            return ApiError(500, message, type="server_error")
        case _:
            return ApiError(500, "the server failed; its log says how", type="server_error")


def failure(request_id: str) -> ApiError:
    """What a client is told of an error that is the server's: by which name the log has it."""
    text = f"the server failed: request {request_id}"
    return ApiError(500, text, type="server_error", code=request_id)


def _param(message: str, fields: frozenset[str]) -> str | None:
    found = _ARGUMENT.match(message)
    if found is not None and found[1] in fields:
        return found[1]
    # "message 3 has no content"
    return "messages" if "messages" in fields and re.search(r"\bmessage \d", message) else None
