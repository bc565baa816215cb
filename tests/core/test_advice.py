"""What a message advises can be done: names in it exist, and whoever follows it arrives."""

import ast
import dataclasses
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import click
import pytest

from nanochat import cli
from nanochat.cli import export
from nanochat.cli.recipe import change_of
from nanochat.errors import ConfigError, NanochatError
from nanochat.export.export import export_model
from nanochat.export.formats import format_named
from nanochat.export.transform import unroll, with_exit_threshold
from nanochat.lm import Model, from_pretrained
from nanochat.rl.recipe import SETTINGS
from nanochat.training.recipe import Recipe
from nanochat.training.settings import TRAINING
from tests.core.foreign_tokenizers import llama_3
from tests.core.test_chat_template import tokenizer
from tests.parity.random_models import random_bundle, random_model

ROOT = Path(__file__).parents[2]


@cache
def sources() -> list[tuple[str, ast.Module]]:
    folders = ("nanochat", "backends", "export", "zoo")
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    links = [ROOT / "nanochat" / name for name in folders[1:]]
    return [
        (path.relative_to(ROOT).as_posix(), ast.parse(path.read_text(encoding="utf-8")))
        for path in paths
        if not any(link in path.parents for link in links)
    ]


@cache
def messages() -> list[tuple[str, str]]:
    """Where an exception is raised, and its text, without what is filled in."""
    found = []
    for path, tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.Raise) and node.exc is not None:
                parts = [n.value for n in ast.walk(node.exc) if isinstance(n, ast.Constant)]
                text = " ".join(part for part in parts if isinstance(part, str))
                found.append((f"{path}:{node.lineno}", text))
    return found


@cache
def commands() -> dict[str, click.Command]:
    """Every command of both programs, by what a user types."""
    found: dict[str, click.Command] = {"nanochat-export": export.export}

    def walk(name: str, command: click.Command) -> None:
        found[name] = command
        if isinstance(command, click.Group):
            context = click.Context(command)
            for verb in command.list_commands(context):
                inner = command.get_command(context, verb)
                assert inner is not None
                walk(f"{name} {verb}", inner)

    walk("nanochat", cli._nanochat)
    return found


@cache
def names() -> set[str]:
    """What a caller may pass by name: parameters of functions, and fields of what has any."""
    found: set[str] = set()
    for _, tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.Lambda):
                given = node.args
                found |= {a.arg for a in (*given.posonlyargs, *given.args, *given.kwonlyargs)}
            elif isinstance(node, ast.ClassDef):
                found |= {
                    n.target.id
                    for n in node.body
                    if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)
                }
    return found


# Keys of other people's files, which are not for the caller to pass; and what Ray Serve is told.
OTHERS = {"hidden_size", "num_attention_heads", "max_gen_toks"} | {"replicas"}


def test_there_are_hundreds() -> None:
    assert len(messages()) > 500


def test_options_in_messages_exist() -> None:
    options = [p for c in commands().values() for p in c.params]
    # A flag that is switched off has another name.
    known = {option for p in options for option in (*p.opts, *p.secondary_opts)}
    named = {
        (where, option) for where, text in messages() for option in re.findall(r"--[a-z-]+", text)
    }

    assert len(named) > 20
    assert sorted((where, option) for where, option in named if option not in known) == []


def test_commands_in_messages_exist() -> None:
    named = {
        (where, command.strip())
        for where, text in messages()
        for command in re.findall(r"`(nanochat(?:-export)?(?: [a-z]+){0,2})", text)
    }

    assert len(named) > 4
    unknown = [
        (where, words)
        for where, words in named
        if not any(
            words == name or (words.startswith(f"{name} ") and not isinstance(c, click.Group))
            for name, c in commands().items()
        )
    ]
    assert unknown == []


def test_settings_in_messages_and_documents_exist() -> None:
    documents = [ROOT / "README.md", *(ROOT / "docs").iterdir(), *(ROOT / "zoo").rglob("*.md")]
    texts = [path.read_text(encoding="utf-8") for path in documents]
    texts += [
        node.value
        for _, tree in sources()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    advised = r"--set ([a-z][a-z_.]*\b)(?:=([\w.-]*\w))?"
    named = {found for text in texts for found in re.findall(advised, text)}

    assert {("steps", "1000"), ("precision.products", "auto"), ("data.length", "")} <= named
    for name, value in named:
        fields: dict[str, object] = {}
        # A value that a message fills in is a count.
        change = change_of(f"{name}={value or 1}")
        try:
            TRAINING.change(fields, *change)
        except ConfigError:
            SETTINGS.change(fields, *change)
        assert fields


def test_what_messages_say_to_pass_is_a_parameter_or_a_field() -> None:
    named = {
        (where, name)
        for where, text in messages()
        for name in re.findall(r"\b([a-z][a-z_0-9]*)=", text)
    }

    assert len(named) > 50
    fields = {field.name for field in dataclasses.fields(Recipe)}
    unknown = [n for n in sorted(named) if n[1] not in names() | fields | OTHERS]
    assert unknown == []


MODEL = random_model()


def foreign(**options: Any) -> Model:
    """A model with somebody else's tokenizer, and no chat template."""
    size = llama_3().get_vocab_size()
    bundle = random_bundle(vocab_size=size, num_streams=1, **options)
    return Model.from_bundle(
        dataclasses.replace(bundle, tokenizer=tokenizer("")), backend="reference"
    )


def number(message: str, pattern: str) -> int:
    found = re.search(pattern, message)
    assert found is not None, message
    return int(found[1])


def saved(folder: Path) -> Path:
    MODEL.save_pretrained(folder / "model")
    return folder / "model"


def closed(folder: Path) -> Model:
    model = from_pretrained(saved(folder), backend="reference")
    model.close()
    return model


def busy() -> Any:
    session = MODEL.session(rows=1)
    session.add([1, 2], max_tokens=2)
    return session


LOOP: dict[str, Any] = {"num_layers": 3, "loop_count": 2, "loop_prelude": 1, "loop_coda": 1}
TEMPLATE = "{{ messages[0].content }}"

# A mistake, the advice that is followed, and what it says to do.
ADVICE: dict[str, tuple[Callable[[Path], Any], str, Callable[[Path, str], Any]]] = {
    "empty prompt": (
        lambda _: MODEL.generate(""),
        r'pass some text; "\n" lets the model begin freely',
        lambda _, __: MODEL.generate("\n", max_tokens=2),
    ),
    "too many tokens": (
        lambda _: MODEL.generate("to be", max_tokens=999),
        "pass max_tokens=",
        lambda _, said: MODEL.generate("to be", max_tokens=number(said, r"max_tokens=(\d+) or")),
    ),
    "long prompt": (
        lambda _: MODEL.generate("7" * 99),
        "shorten it to",
        lambda _, said: MODEL.generate([9] * number(said, r"it to (\d+) tokens"), max_tokens=1),
    ),
    "a misspelt option": (
        lambda _: MODEL.generate("to be", max_token=3),  # type: ignore[call-overload]
        "did you mean max_tokens",
        lambda _, __: MODEL.generate("to be", max_tokens=3),
    ),
    "no chat template": (
        lambda _: foreign().chat("to be"),
        "pass one as chat_template",
        lambda _, __: foreign().chat("to be", chat_template=TEMPLATE, max_tokens=2),
    ),
    "no chat template, by hand": (
        lambda _: foreign().chat("to be"),
        "generate with special=True",
        lambda _, __: foreign().generate("<|eot_id|>to be", special=True, max_tokens=2),
    ),
    "a template that fails": (
        lambda _: MODEL.chat("to be", chat_template="{{ nothing.at.all }}"),
        "pass another as chat_template",
        lambda _, __: MODEL.chat("to be", chat_template=TEMPLATE, max_tokens=2),
    ),
    "a budget of thoughts without thoughts": (
        lambda _: MODEL.chat("to be", thinking_budget=5),
        "leave it out, or pass a template that does as chat_template",
        lambda _, __: MODEL.chat(
            "to be", chat_template=TEMPLATE + "<think>", thinking_budget=5, max_tokens=2
        ),
    ),
    "a model that always thinks": (
        lambda _: MODEL.chat("to be", chat_template=TEMPLATE + "<think>", thinking=False),
        "pass thinking_budget=0",
        lambda _, __: MODEL.chat(
            "to be", chat_template=TEMPLATE + "<think>", thinking_budget=0, max_tokens=2
        ),
    ),
    "several answers": (
        lambda _: MODEL.chat("to be", n=2),
        "leave n out, and call it for each",
        lambda _, __: [MODEL.chat("to be", seed=seed, max_tokens=2) for seed in range(2)],
    ),
    "threads of a backend that has none": (
        lambda p: from_pretrained(saved(p), backend="reference", num_threads=1),
        "leave num_threads out, or choose",
        lambda p, __: from_pretrained(saved(p), backend="numba", num_threads=1),
    ),
    "embeddings of a graph": (
        lambda p: from_pretrained(saved(p), backend="onnx").embed("to be"),
        "load the model with another backend, such as numba",
        lambda p, __: from_pretrained(saved(p), backend="numba").embed("to be"),
    ),
    "narrow keys of a graph": (
        lambda p: from_pretrained(saved(p), backend="onnx", kv_cache="int8"),
        "leave kv_cache out, or choose another backend",
        lambda p, __: from_pretrained(saved(p), backend="numba", kv_cache="int8"),
    ),
    "a closed model": (
        lambda p: closed(p).generate("to be"),
        "load it again with from_pretrained",
        lambda p, __: from_pretrained(p / "model", backend="reference"),
    ),
    "a busy session": (
        lambda _: busy().pieces([[1]]),
        "use `add` and `step`",
        lambda _, __: (lambda s: (s.add([3], max_tokens=1), s.step()))(busy()),
    ),
    "a loop for llama.cpp": (
        lambda p: export_model(
            random_bundle(**LOOP),
            p / "x.gguf",
            kind="gguf",
            options=format_named("gguf").choose(runtime="llama.cpp"),
        ),
        "can be unrolled",
        lambda p, __: export_model(
            unroll(random_bundle(**LOOP)),
            p / "x.gguf",
            kind="gguf",
            options=format_named("gguf").choose(runtime="llama.cpp"),
        ),
    ),
    "adaptive depth in a graph": (
        lambda p: export_model(random_bundle(**LOOP, exit_threshold=0.5), p / "x", kind="onnx"),
        "pass exit_threshold=1",
        lambda p, __: export_model(
            with_exit_threshold(random_bundle(**LOOP, exit_threshold=0.5), 1.0),
            p / "x",
            kind="onnx",
        ),
    ),
    "an export over the model": (
        lambda p: export_model(random_bundle(), saved(p).parent, kind="onnx", verify=False),
        "pass a new folder",
        lambda p, __: export_model(random_bundle(), p / "new", kind="onnx", verify=False),
    ),
    "a file's suffix": (
        lambda p: export_model(random_bundle(), p / "x.bin", kind="gguf", verify=False),
        "pass x.bin.gguf",
        lambda p, __: export_model(random_bundle(), p / "x.bin.gguf", kind="gguf", verify=False),
    ),
}


@pytest.mark.parametrize("name", ADVICE)
def test_whoever_follows_a_message_arrives(name: str, tmp_path: Path) -> None:
    mistake, advice, remedy = ADVICE[name]

    with pytest.raises((NanochatError, TypeError)) as error:
        mistake(tmp_path)
    message = str(error.value)
    assert advice in message

    remedy(tmp_path, message)
