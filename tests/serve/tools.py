"""This file holds what the tests of tools share: functions that are declared, and what a model shall say of them."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from nanochat.lm import Model
from tests.core.tool_models import BARE, HERMES, LISTED, MARKED, Parrot

__all__ = ["ASKED", "CHAT", "HI", "NOW", "TEMPLATES", "WEATHER", "Place", "Weather", "check", "say"]
__all__ += ["told", "tool"]

CHAT = "/v1/chat/completions"
TEMPLATES = {"hermes": HERMES, "marked": MARKED, "listed": LISTED, "bare": BARE}


class Place(BaseModel):
    """Where."""

    model_config = ConfigDict(extra="forbid", strict=True)
    name: str = Field(max_length=6)
    near: list[Literal["a", "é"]] = Field(max_length=2)


class Weather(BaseModel):
    """The weather at a place."""

    model_config = ConfigDict(extra="forbid", strict=True)
    place: Place
    unit: Literal["c", "f"]
    days: int = Field(ge=1, le=9)
    note: str | None = Field(max_length=5)


def tool(name: str, parameters: Any = None) -> Any:
    function = {"name": name, "description": f"It is {name}."}
    return {
        "type": "function",
        "function": function if parameters is None else {**function, "parameters": parameters},
    }


NOW = tool("now")
WEATHER = tool("weather", Weather.model_json_schema())
HI: Any = [{"role": "user", "content": "Hi"}]
ASKED: dict[str, Any] = {"messages": HI, "tools": [WEATHER, NOW], "max_tokens": 200, "seed": 5}


def say(model: Model, text: str) -> None:
    assert isinstance(model.engine, Parrot)
    model.engine.script = model.tokenizer.encode(text + "<|eot_id|>", specials=True)


def told(message: Any) -> list[tuple[str, str]]:
    return [(call.function.name, call.function.arguments) for call in message.tool_calls or []]


def check(calls: list[tuple[str, str]]) -> None:
    """That arguments are of their schemas."""
    for name, arguments in calls:
        assert name in ("weather", "now")
        if name == "weather":
            Weather.model_validate_json(arguments)
        else:
            assert arguments == "{}"
