"""This file holds what may be chosen about a publication on the Hub: one list, for Python and for the command line."""

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from nanochat import backends
from nanochat.errors import InputError
from nanochat.export.formats import written_names
from nanochat.zoo.hub import is_repo

__all__ = ["Evaluation", "PushOptions", "with_options"]

# A part of an address, in which two dots or a slash in front would lead elsewhere.
_BRANCH = re.compile(r"(?!.*(\.\.|//))[A-Za-z0-9_]([\w./-]{0,198}[\w-])?", re.ASCII)
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]+)*|code|multilingual")
Default = TypeVar("Default")
Owner = TypeVar("Owner")
Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A result of the model: its metric, such as "bits per byte", its value, and a data set of the Hub or words."""

    metric: str
    value: float
    dataset: str


def _option(default: Default, help: str, *, repr: bool = True, **shown: object) -> Default:
    """A field with what `nanochat models push` shows of it, in the words of `click.option`."""
    return field(default=default, repr=repr, metadata={"help": help, **shown})


@dataclass(frozen=True, kw_only=True)
class PushOptions:
    """How a model is published; of whatever is an option of the command line, its help says what it does.

    Parameters
    ----------
    evaluations : sequence of Evaluation
        Results to show.
    extra_files : sequence of Path
        Further files to upload, such as the text of the licence, which is named as one of
        `nanochat.publish.licence.LICENCE_FILES`; it is not needed here if it lies in the model's directory.
    """

    licence: str | None = _option(
        "", "SPDX identifier of the weights' licence.  [default: what the model's files say]"
    )
    formats: Sequence[str] = _option(
        (),
        "Export to this format, too, and upload it; may be given several times.",
        option="--format",
        choices=written_names(),
    )
    separate: bool = _option(
        False, "Give each format a repository of its own, OWNER/NAME-gguf and so on."
    )
    private: bool | None = _option(
        None, "Make the repository private, if it is not there.", is_flag=True
    )
    branch: str = _option("", "Branch, made if it is not there.  [default: main]")
    create_pr: bool = _option(False, "Open a pull request, and leave main as it is.")
    message: str = _option("", "Subject of the commit.")
    base_model: str = _option("", "Model that this one was made from.", metavar="OWNER/NAME")
    datasets: Sequence[str] = _option(
        (), "What it was trained on, by its name on the Hub.", option="--dataset"
    )
    languages: Sequence[str] = _option(
        (), "Language of that: a code such as en, or code.", option="--language"
    )
    backends: Sequence[str] = _option(
        (),
        "Verify and measure on this one.  [default: on all that can run here]",
        option="--backend",
        choices=tuple(backends.BACKENDS),
    )
    prompt: str = _option("Once upon a time", "What the lines of the card continue.")
    token: str | None = _option(
        None, "Access token.  [default: HF_TOKEN, or that of `hf auth login`]", repr=False
    )
    evaluations: Sequence[Evaluation] = ()
    extra_files: Sequence[Path] = ()

    def __post_init__(self) -> None:
        formats, base, branch = self.formats, self.base_model, self.branch
        if not set(formats) <= set(written_names()) or len(set(formats)) < len(formats):
            raise InputError(
                f"formats={list(formats)}: choose some of {', '.join(written_names())}, each once"
            )
        if not self.prompt.strip() or not self.prompt.isprintable():
            raise InputError(f"prompt={self.prompt!r:.80}: pass a few words on one line")
        if base and not is_repo(base):
            raise InputError(
                f"base_model={base!r:.200} is no repository of the Hub: pass OWNER/NAME"
            )
        for dataset in self.datasets:
            # Old ones have no owner.
            if not is_repo(dataset if "/" in dataset else f"owner/{dataset}"):
                raise InputError(
                    f"datasets: {dataset!r:.200} is no data set of the Hub: pass OWNER/NAME, or leave it out"
                )
        for language in self.languages:
            if not _LANGUAGE.fullmatch(language):
                raise InputError(
                    f"language {language!r:.40} is no code: pass one of ISO 639 such as en, or code, or multilingual"
                )
        if branch and not _BRANCH.fullmatch(branch):
            raise InputError(
                f"branch={branch!r:.80} is no branch: pass letters, digits and any of . _ / - between them"
            )
        if self.create_pr and branch not in ("", "main"):
            raise InputError(
                f"create_pr with branch={branch!r:.80}: the Hub opens pull requests to the main branch; leave one of "
                "them out"
            )


def with_options(
    options: Callable[Arguments, PushOptions],
) -> Callable[
    [Callable[[Owner, str, PushOptions], Result]],
    Callable[Concatenate[Owner, str, Arguments], Result],
]:
    """Let a method take the fields of `PushOptions` as keyword arguments, in place of one argument that holds them."""

    def decorate(
        method: Callable[[Owner, str, PushOptions], Result],
    ) -> Callable[Concatenate[Owner, str, Arguments], Result]:
        @wraps(method)
        def call(
            self: Owner, repo: str, *given: Arguments.args, **named: Arguments.kwargs
        ) -> Result:
            return method(self, repo, options(*given, **named))

        own = [*inspect.signature(method).parameters.values()][:2]
        fields = inspect.signature(options).parameters.values()
        call.__signature__ = inspect.Signature([*own, *fields])  # type: ignore[attr-defined]  # for help()
        return call  # type: ignore[return-value]  # repo may be named, too

    return decorate
