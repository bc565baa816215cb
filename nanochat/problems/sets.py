"""This file holds sets of problems: where they come from, what identifies one, and which may not be trained on."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from nanochat.errors import FormatError, InputError, counted
from nanochat.problems import multipl_e, tests_module
from nanochat.problems.own import own_problems, read_problems
from nanochat.problems.problem import Problem, Split
from nanochat.problems.rows import Row, read_rows
from nanochat.problems.soundness import is_trivial
from nanochat.problems.templates import template_problems
from nanochat.rust.lexer import code_tokens

__all__ = ["ProblemSet", "forbidden_for_training", "load", "measured_with"]

_OWN = {"own": own_problems, "templates": template_problems}
_HUB = re.compile(r"([\w.-]+/[\w.-]+?)(?:@([\w.-]+))?(?::([\w.-]+))?")
_KNOWN_SETS = re.compile(r"human.?eval|mbpp|multipl.?e", re.IGNORECASE)
_KNOWN_IDS = re.compile(r"(human.?eval|mbpp|rust|python)[_/]\d+", re.IGNORECASE)


@dataclass(frozen=True)
class ProblemSet:
    """Problems under one name, no two of them with the same id."""

    name: str
    problems: tuple[Problem, ...]

    @cached_property
    def identity(self) -> str:
        """The SHA-256 of the problems, in whatever order they are; the name does not matter."""
        rows = sorted(json.dumps(asdict(problem), sort_keys=True) for problem in self.problems)
        return hashlib.sha256("\n".join(rows).encode()).hexdigest()

    def select(
        self,
        *,
        levels: Collection[int] = (),
        splits: Collection[Split] = (),
        nontrivial: bool = False,
    ) -> "ProblemSet":
        """Those of the problems that are of some levels and splits, under the same name; of all, if none is named.

        With `nontrivial`, those are left out whose right answer is a literal or a parameter.
        """
        kept = (
            problem
            for problem in self.problems
            if (not levels or problem.level in levels)
            and (not splits or problem.split in splits)
            and not (nontrivial and is_trivial(problem))
        )
        return ProblemSet(self.name, tuple(kept))


def load(text: str, *, untested: Literal["refuse", "leave out"] = "refuse") -> ProblemSet:
    """The set of problems that a text names.

    Parameters
    ----------
    text : str
        ``own`` or ``templates``, which are this project's, or the path of a file: functions of Rust
        (`nanochat.problems.own`), or lines of JSON in the form of MultiPL-E (`nanochat.problems.multipl_e`) or with
        modules of tests (`nanochat.problems.tests_module`), whichever fields they have. Or such rows of the Hub's data
        set ``owner/name``, with ``@revision`` and ``:configuration`` behind it, of the split ``test``; the name of the
        set tells the commit. A directory of that name is read in the same way.
    untested : {"refuse", "leave out"}
        What becomes of problems that have no tests.

    Raises
    ------
    InputError
        If there is no such set.
    FormatError
        If the file has another form, or problems without tests.
    """
    if text in _OWN:
        return ProblemSet(text, _OWN[text]())
    if (hub := _HUB.fullmatch(text)) and not Path(text).is_file():
        name, found_rows = _hub_rows(hub[1], hub[2], hub[3])
        problems = _problems(found_rows, name, untested)
    else:
        name, content = _read(text)
        if name.endswith(".rs"):
            problems = [*read_problems(content, name)]
        else:
            problems = _problems([*read_rows(content, name)], name, untested)
    if len({problem.id for problem in problems}) < len(problems):
        raise FormatError(f"{text}: two problems have the same name: name each one differently")
    return ProblemSet(name, tuple(problems))


def forbidden_for_training(problems: ProblemSet, known: Iterable[ProblemSet] = ()) -> str | None:
    """Why a set must not be trained on; nothing if it may be.

    Parameters
    ----------
    problems : ProblemSet
        What would be trained on.
    known : iterable of ProblemSet
        Sets that models are measured with. A problem is one of theirs if its signature is, whatever its comment says.
    """
    if _KNOWN_SETS.search(problems.name):
        return f"{problems.name} is a set that models are measured with: train on others"
    signatures = {
        _signature(problem): (other.name, problem.id)
        for other in known
        for problem in other.problems
    }
    for problem in problems.problems:
        if _KNOWN_IDS.match(problem.id):
            return f"{problem.id} is of a set that models are measured with: leave it out"
        if found := signatures.get(_signature(problem)):
            return f"{problem.id} of {problems.name} is {found[1]} of {found[0]}: leave it out"
        if problem.split != "train":
            return f"{problem.id} of {problems.name} is held out: select the split train"
    return None


def measured_with() -> list[ProblemSet]:
    """What models are measured with of this project's own sets: all that is not of the split ``train``."""
    return [load(name).select(splits=("held-out", "other-types", "other-names")) for name in _OWN]


def _read(text: str) -> tuple[str, str]:
    """The name of a file, and what it holds."""
    path = Path(text)
    try:
        return path.name, path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise InputError(
            f"there are no problems at {text}: pass a file, owner/name of the Hub, or one of {', '.join(_OWN)}"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(
            f"{text} cannot be read: {error}; pass a file of Rust or of JSON lines"
        ) from error


def _hub_rows(
    source: str, revision: str | None, configuration: str | None
) -> tuple[str, list[Row]]:
    """The name of a data set with its commit, and its rows."""
    from nanochat.data.hub import hub_rows, pinned

    commit = pinned(source, revision)
    name = (
        source + (f"@{commit}" if commit else "") + (f":{configuration}" if configuration else "")
    )
    rows = hub_rows(source + (f":{configuration}" if configuration else ""), commit, split="test")
    found = (record for chunk in rows for record in chunk.records(Counter()))
    return name, [
        Row(fields=dict(record.fields), place=record.place)
        for record in found
        if not isinstance(record.fields, str)
    ]


def _problems(
    rows: Sequence[Row], name: str, untested: Literal["refuse", "leave out"]
) -> list[Problem]:
    found = [_problem(row) for row in rows]
    problems = [problem for problem in found if problem is not None]
    if len(problems) < len(found) and untested == "refuse":
        places = [row.place for row, problem in zip(rows, found, strict=True) if problem is None]
        raise FormatError(
            f"{name}: {counted(len(places), 'problem')} of {len(rows)} without tests, which all bodies would pass "
            f"({', '.join(places[:3])}{', ...' * (len(places) > 3)}): leave them out"
        )
    return problems


def _problem(row: Row) -> Problem | None:
    if row.has(multipl_e.FIELDS):
        return multipl_e.problem_of(row)
    if row.has(tests_module.FIELDS):
        return tests_module.problem_of(row)
    # Where all but one are there, that one is missing.
    forms = (multipl_e.FIELDS, tests_module.FIELDS)
    nearest = max(forms, key=lambda fields: sum(name in row.fields for name in fields))
    missing = [name for name in nearest if name not in row.fields]
    raise FormatError(
        f"{row.place}: there is no field {' and no field '.join(missing)}: pass rows with {', '.join(forms[0])}, or "
        f"with {', '.join(forms[1])}"
    )


def _signature(problem: Problem) -> tuple[str, ...]:
    return tuple(token.text for token in code_tokens(problem.prompt))
