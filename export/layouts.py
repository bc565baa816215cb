"""This file holds the layouts of model files: safetensors beside a configuration, a single file, graphs and pages.

It is the one list of the files of a model. Only files of these names are ever fetched, and the ``.safetensors`` that an
index names, so nothing that could be run is; pickled weights are not opened.
"""

import re
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import replace
from pathlib import PurePosixPath

from nanochat.export.format import Found, Layout
from nanochat.tensors import INDEX, PICKLES, SINGLE, find_tensors, is_weights

__all__ = ["GRAPH", "ONNX", "PAGE", "SAFETENSORS", "WEB", "SingleFile"]

# The graph of a folder, and what makes the folder a page.
GRAPH, PAGE = "model.onnx", "page.json"
_CONFIG = "config.json"
# What is read beside weights, and what else belongs to them.
_READ = frozenset(
    {
        _CONFIG,
        "chat_template.jinja",
        "generation_config.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
)
_MANIFEST = "nanochat.json"
# What a name may make anybody ask for.
_MOST_PARTS = 1000
_OTHERS = frozenset({"README.md", _MANIFEST, "recipe.json"})


class _Safetensors(Layout):
    """A folder with a ``config.json`` and tensors: this package's, MLX's, that of transformers."""

    name = "safetensors"
    needs = f"{_CONFIG} with safetensors"

    def find(self, names: Set[str]) -> Iterator[Found]:
        # Parts without an index could be of several models.
        if names & {SINGLE, INDEX} and _CONFIG in names:
            yield _found("", names, frozenset(filter(is_weights, names)))

    def complete(
        self,
        found: Found,
        is_there: Callable[[str], bool],
        read: Callable[[str], bytes],
        *,
        where: str,
    ) -> Found:
        """See `Layout.complete`: an index names files of tensors."""
        tensors = find_tensors(is_there, read, where=where)
        return replace(found, weights=tensors.files | ({INDEX} if tensors.homes else set()))

    def preference(self, place: str, folder: str) -> tuple[int, int]:
        """See `Layout.preference`; a folder inside of another comes after GGUF."""
        del place
        # Two bits a weight, where other folders may hold sixteen.
        return (2, int(folder.split("/")[-1] != "mlx")) if folder else (0, 0)

    def may_hold(self, name: str) -> bool:
        return "/" not in name and name.endswith(".safetensors")

    def obstacle(self, names: Set[str]) -> str | None:
        """See `Layout.obstacle`: tensors of other names, such as of one of transformers' variants, or pickles."""
        paths = map(PurePosixPath, sorted(names))
        others = [p for p in paths if p.suffix == ".safetensors" and p.name != SINGLE]
        if others:
            return (
                f"its tensors are in {others[0]}, and a model's are in model.safetensors or in what {INDEX} names, "
                f"beside {_CONFIG}: if that file is a whole model, fetch it with `hf download`, and rename it"
            )
        if not any(name.endswith(PICKLES) for name in names):
            return None
        return (
            "its weights are pickles, which can run code and are not opened: convert them to safetensors, or choose a "
            "repository that has"
        )


class SingleFile(Layout):
    """Files that are a model each, known by their suffix.

    Parameters
    ----------
    name : str
        See `Layout`.
    suffix : str
        Such as ``.gguf``, in small letters.
    types : sequence of str
        Words that a name may hold, by which a user may ask for the file, in the order in which they are preferred.
    parts : str
        Regular expression of the end of names of which each file is only a part of a model, with groups for its number,
        from 1, and how many there are.
    order : int
        Place among all layouts; see `Layout.preference`.
    """

    def __init__(
        self, name: str, suffix: str, *, types: Sequence[str] = (), parts: str = "", order: int = 1
    ) -> None:
        self.name, self.needs = name, f"{suffix} file"
        self._suffix, self._types, self._order = suffix, types, order
        self._parts = re.compile(f"{parts}$", re.IGNORECASE) if parts else None

    def find(self, names: Set[str]) -> Iterator[Found]:
        for name in sorted(names):
            if not name.lower().endswith(self._suffix):
                continue
            part = None if self._parts is None else self._parts.search(name)
            if part is None:
                yield Found(place=name, weights=frozenset({name}))
            elif int(part[1]) == 1:
                yield Found(place=name, weights=frozenset(self._all_parts(name, part)))

    def _all_parts(self, name: str, part: re.Match[str]) -> Iterator[str]:
        (start, end), count = part.span(1), min(int(part[2]), _MOST_PARTS)
        for number in range(1, count + 1):
            yield f"{name[:start]}{number:0{end - start}}{name[end:]}"

    def may_hold(self, name: str) -> bool:
        return "/" not in name and name.lower().endswith(self._suffix)

    def preference(self, place: str, folder: str) -> tuple[int, int]:
        del folder
        words = _words(place)
        known = [rank for rank, kind in enumerate(self._types) if kind in words]
        return self._order, min(known, default=len(self._types))

    def is_part(self, place: str, part: str) -> bool:
        """See `Layout.is_part`: a word of the file's name, such as the type of its tensors, stands for it."""
        return part == self.name or part.upper() in _words(place)


class _Onnx(Layout):
    """A ``model.onnx``, with what it is opened with."""

    name = "onnx"
    needs = GRAPH
    is_graph = True

    def find(self, names: Set[str]) -> Iterator[Found]:
        """See `Layout.find`; beside tensors, the folder stands for those."""
        if GRAPH in names and PAGE not in names:
            has_tensors = any(map(is_weights, names))
            more = () if has_tensors else ("genai_config.json",)
            yield _found(GRAPH if has_tensors else "", names, _graph_files(names), more)

    def preference(self, place: str, folder: str) -> tuple[int, int]:
        """See `Layout.preference`: its codes are given back only after a conversion."""
        del place, folder
        return 3, 0

    def may_hold(self, name: str) -> bool:
        return name == GRAPH


class _Web(Layout):
    """The graph of a page for browsers."""

    name = "web"
    needs = GRAPH
    is_graph = True

    def find(self, names: Set[str]) -> Iterator[Found]:
        """See `Layout.find`; the page's own files are for a browser, and its ``nanochat.json`` speaks of them."""
        if GRAPH in names and PAGE in names:
            yield _found(GRAPH, names - {_MANIFEST}, _graph_files(names))

    def preference(self, place: str, folder: str) -> tuple[int, int]:
        del place, folder
        return 4, 0

    def may_hold(self, name: str) -> bool:
        """See `Layout.may_hold`: a page has its graph in several forms."""
        return "/" not in name and name.endswith(".onnx")


SAFETENSORS, ONNX, WEB = _Safetensors(), _Onnx(), _Web()


def _graph_files(names: Set[str]) -> frozenset[str]:
    return frozenset({GRAPH, f"{GRAPH}.data"} & names)


def _found(place: str, names: Set[str], weights: Set[str], more: Sequence[str] = ()) -> Found:
    others = (_OTHERS | set(more)) & names
    return Found(place=place, weights=weights, beside=_READ & names, others=others)


def _words(name: str) -> list[str]:
    """What a file's name consists of, such as the type of its tensors.

    >>> _words("gguf/model-tq2_0.gguf")
    ['MODEL', 'TQ2_0']
    """
    return re.split(r"[-.]", PurePosixPath(name).stem.upper())
