"""This file holds what the tokens of other people's tokenizers are for, which is spread over several of their files."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from nanochat.errors import FormatError

__all__ = ["AddedToken", "Roles", "added_tokens", "read_roles", "starting", "write_roles"]


@dataclass(frozen=True, kw_only=True)
class AddedToken:
    """A token that is found in a text before the model of the tokenizer sees it; a special one stands for no text."""

    name: str
    token: int
    special: bool


@dataclass(frozen=True, kw_only=True)
class Roles:
    """Which tokens begin and end a text, pad a batch or stop generation, and the chat template.

    Parameters
    ----------
    bos, eos, pad : int, optional
        The token of the start of a text, of its end, of padding.
    stops : frozenset of int
        Further tokens after which a model has no more to say.
    adds_bos : bool, optional
        Whether every text starts with `bos`; absent is as ``tokenizer.json`` says.
    chat_template : str
        How a conversation is written, in Jinja.
    """

    bos: int | None = None
    eos: int | None = None
    pad: int | None = None
    stops: frozenset[int] = frozenset()
    adds_bos: bool | None = None
    chat_template: str = ""


def added_tokens(data: Mapping[str, object]) -> list[AddedToken]:
    """The entries under ``added_tokens`` of a ``tokenizer.json``, checked."""
    found: list[AddedToken] = []
    # The library leaves out what has no text.
    entries = data.get("added_tokens") or []
    if not isinstance(entries, list):
        raise FormatError(f"added_tokens is {entries!r:.80}, must be a list; fetch the file again")
    for entry in entries:
        match entry:
            case {"content": str(name), "id": int(token), **others} if token >= 0:
                special = others.get("special") is True
                if name:
                    found.append(AddedToken(name=name, token=token, special=special))
            case _:
                raise FormatError(
                    f"the added token {entry!r:.80} has no content and id; fetch the file again"
                )
    return found


def read_roles(
    settings: Mapping[str, object],
    others: Mapping[str, Mapping[str, object]],
    *,
    names: Mapping[str, int],
    template: str,
) -> Roles:
    """Put together what the files of a folder say.

    Parameters
    ----------
    settings : mapping
        Content of ``tokenizer_config.json``, in which tokens have names.
    others : mapping
        Content of ``generation_config.json`` and ``config.json``, in which they are numbers, by file; the first comes
        first.
    names : mapping
        Numbers of names.
    template : str
        Content of ``chat_template.jinja``; empty is as `settings` say.
    """
    ids = {
        role: [_ids(fields.get(f"{role}_token_id"), file) for file, fields in others.items()]
        for role in ("bos", "eos", "pad")
    }
    # The first file that names any is the one that counts.
    chosen = {role: next(filter(None, found), []) for role, found in ids.items()}
    first = {role: next(iter(tokens), None) for role, tokens in chosen.items()}
    named = {role: _named(settings.get(f"{role}_token"), names) for role in first}
    bos, eos, pad = (first[role] if named[role] is None else named[role] for role in first)
    adds_bos = settings.get("add_bos_token")
    return Roles(
        bos=bos,
        eos=eos,
        pad=pad,
        stops=frozenset(chosen["eos"]),
        adds_bos=adds_bos if isinstance(adds_bos, bool) else None,
        chat_template=template or _template(settings.get("chat_template")),
    )


def write_roles(
    roles: Roles, names: Mapping[int, str], given: Mapping[str, object] | None = None
) -> bytes:
    """Content of a ``tokenizer_config.json`` that says the same, save for `Roles.stops` and tokens not in `names`.

    What the tokenizer's own file says, `given`, stays. Its class does not: transformers has some that read no more
    of a ``tokenizer.json`` than pieces and merges, and split texts in their own way.
    """
    settings = {"clean_up_tokenization_spaces": False, **(given or {})}
    tokens = {"bos_token": roles.bos, "eos_token": roles.eos, "pad_token": roles.pad}
    for key, token in tokens.items():
        name = None if token is None else names.get(token)
        if name and _content(settings.get(key)) != name:
            settings[key] = name
    if roles.adds_bos is not None:
        settings["add_bos_token"] = roles.adds_bos
    if roles.chat_template != _template(settings.get("chat_template")):
        settings["chat_template"] = roles.chat_template
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    return (json.dumps(settings, indent=2) + "\n").encode()


def starting(tokens: Mapping[str, int]) -> dict[str, object]:
    """The post-processor of a ``tokenizer.json`` that puts these tokens, by name, before a text, and no others."""
    before = [{"SpecialToken": {"id": name, "type_id": 0}} for name in tokens]
    single = [*before, {"Sequence": {"id": "A", "type_id": 0}}]
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {
            name: {"id": name, "ids": [token], "tokens": [name]} for name, token in tokens.items()
        },
    }


def _ids(value: object, file: str) -> list[int]:
    ids = value if isinstance(value, list) else [] if value is None else [value]
    tokens = [token for token in ids if type(token) is int]
    if len(tokens) < len(ids):
        raise FormatError(f"{file}: {value!r:.80} is no token or list of tokens; fetch it again")
    # Older configurations have -1 for none.
    return [token for token in tokens if token >= 0]


def _named(value: object, names: Mapping[str, int]) -> int | None:
    """The token of a name, which stands alone or in an object."""
    name = _content(value)
    return names.get(name) if isinstance(name, str) else None


def _content(value: object) -> object:
    return value.get("content") if isinstance(value, dict) else value


def _template(value: object) -> str:
    if isinstance(value, list):
        # Several, by name: the one for plain conversations is called default.
        named = [item for item in value if isinstance(item, dict)]
        value = next((item.get("template") for item in named if item.get("name") == "default"), "")
    return value if isinstance(value, str) else ""
