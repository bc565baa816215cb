"""This file holds the card of a staged repository: everything that it says is measured, counted or run first."""

import datetime
import logging
import shlex

from nanochat.errors import FormatError, InputError
from nanochat.export.source import Source
from nanochat.loading import load_golden, load_source
from nanochat.publish.card import Metadata, own_text, update_card
from nanochat.publish.card_body import BackendRow, Facts, render, tags, untrue_tags
from nanochat.publish.measure import (
    NUM_DECODED,
    able_backends,
    example_lines,
    measure,
    processor,
    run_examples,
)
from nanochat.publish.options import Options
from nanochat.publish.repository import Repository
from nanochat.publish.staging import LICENCE_FILES
from nanochat.publish.training_log import RECIPE
from nanochat.publish.upload import Present
from nanochat.text.tokenizer import Tokenizer

__all__ = ["describe", "require_updatable"]

_LOCAL = "README.md of the model"
_LOGGER = logging.getLogger(__name__)


def describe(
    repository: Repository, options: Options, present: Present, *, licence: str, card: bytes
) -> str:
    """The card of a repository, which updates the one that is there, or else `card`.

    Raises
    ------
    InputError, FormatError
        As for `nanochat.publish.publish.publish`.
    """
    repo, name = repository.destination.repo, repository.destination.repo.partition("/")[2]
    source = load_source(repository.place, name=name, licence=licence)
    lines = example_lines(repo, source, options.prompt)
    training = repository.training
    evaluations = [*training.evaluations, *(() if repository.base else options.evaluations)]
    licence_files = [
        n for n in LICENCE_FILES if (repository.folder / n).exists() or n in present.files
    ]
    metadata = Metadata(
        name=name,
        licence=licence,
        licence_file=licence_files[0] if licence_files else "",
        library=repository.library,
        tags=tags(source.config, repository.kinds),
        untrue_tags=untrue_tags(source.config),
        languages=options.languages,
        datasets=options.datasets,
        base_model=repository.base or options.base_model,
        relation="quantized" if repository.base else "",
        evaluations=evaluations,
    )
    facts = Facts(
        config=source.config,
        tokenizer=_tokenizer(source),
        formats=repository.formats,
        backends=_measure(repository, source, options),
        examples=run_examples(lines, repository.folder, repo),
        num_decoded=NUM_DECODED,
        machine=processor(),
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        command=_command(repository, options),
        recipe=training.recipe,
        recipe_file=RECIPE if (repository.folder / RECIPE).exists() else "",
        evaluations=evaluations,
    )
    text, where = _base(repo, present, card)
    return update_card(text, metadata, render(facts), where=where)


def require_updatable(
    repo: str, options: Options, present: Present, *, licence: str, card: bytes
) -> None:
    """Refuse a card that `describe` could not update, before there is anything to describe.

    Raises
    ------
    InputError, FormatError
        As for `describe`.
    """
    metadata = Metadata(
        name=repo,
        licence=licence,
        # Whether there is one has been asked.
        licence_file=LICENCE_FILES[0],
        library="",
        languages=options.languages,
        evaluations=options.evaluations,
    )
    text, where = _base(repo, present, card)
    update_card(text, metadata, "", where=where)
    if present.card and card:
        _say_which_stays(_text(card, _LOCAL), text, repo)


def _base(repo: str, present: Present, card: bytes) -> tuple[str, str]:
    """The card that is updated, and what it is."""
    if present.card:
        where = f"README.md of {repo}"
        return _text(present.card, where), where
    return _text(card, _LOCAL), _LOCAL


def _measure(repository: Repository, source: Source, options: Options) -> list[BackendRow]:
    golden = load_golden(repository.place)
    assert golden is not None
    able = able_backends(source)
    for name in options.backends:
        if name not in able:
            raise InputError(
                f"backends={list(options.backends)}: choose some that can run here, {', '.join(able)}"
            )
    chosen = dict.fromkeys(options.backends, True) or able
    where = repository.destination.repo
    return [
        measure(repository.place, source, golden, name, where=where)
        if is_quick
        else BackendRow(backend=name, error=None, tokens_per_second=None)
        for name, is_quick in chosen.items()
    ]


def _tokenizer(source: Source) -> str:
    count = f"Its tokenizer has {source.tokenizer.vocab_size:,} tokens"
    # Of others it is not known.
    covers = " and covers any text, byte by byte" if isinstance(source.tokenizer, Tokenizer) else ""
    return f"{count}{covers}."


def _command(repository: Repository, options: Options) -> str:
    words = ["nanochat", "models", "push", "DIR", repository.base or repository.destination.repo]
    words += [word for form in options.formats for word in ("--format", form)]
    words += ["--separate"] if options.separate else []
    words += [word for backend in options.backends for word in ("--backend", backend)]
    return shlex.join(words)


def _text(card: bytes, where: str) -> str:
    try:
        return card.decode()
    except UnicodeDecodeError as error:
        raise FormatError(f"{where}: it is no text in UTF-8; convert it") from error


def _say_which_stays(mine: str, theirs: str, repo: str) -> None:
    ours, others = (own_text(text, where="README.md") for text in (mine, theirs))
    if [part.strip() for part in ours] != [part.strip() for part in others]:
        _LOGGER.warning(
            "README.md of the model differs from the card of %s, which is kept: to replace it, run "
            "`hf upload %s PATH/README.md README.md`, and push again",
            repo,
            repo,
        )
