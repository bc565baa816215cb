"""This file holds a teacher's logits on disk: the largest few of each token, found again by what the teacher had read.

A directory has ``keys.npy``, a hash of each sequence, ``ids.npy`` and ``logits.npy``, what the teacher says after each
of its tokens, and ``manifest.json``. However a run puts its batches together, it finds the sequences that it reads.

Legend: S sequences, T tokens, K logits of each.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nanochat.backends.reference.ops import pieces
from nanochat.backends.torch.loss import Teaching
from nanochat.data.index import array_file, token_type
from nanochat.data.opening import open_splits
from nanochat.errors import ConfigError, InputError, TrainingError
from nanochat.files import atomic_directory, parse_json, read_bytes
from nanochat.text.codec import TextCodec
from nanochat.training.batches import Inputs, microbatches
from nanochat.training.frozen import FrozenModel
from nanochat.training.phases import stages
from nanochat.training.recipe import ENDLESS, Recipe

__all__ = ["StoredLogits", "store_logits"]

_MANIFEST = "manifest.json"
_MAX_JSON_BYTES = 1 << 16
_KEY_BYTES = 16
# Batches after the last one, which a run reads that leaves others out.
_SPARE = 8
_LOGIT_TYPE = np.dtype("<f2")


class StoredLogits:
    """What `store_logits` wrote.

    Parameters
    ----------
    directory : Path
        For messages.
    keys : uint8 array, shape (S, 16)
    ids : unsigned array, shape (S, T, K)
    logits : float16 array, shape (S, T, K)
    """

    def __init__(
        self,
        directory: Path,
        keys: NDArray[np.uint8],
        ids: NDArray[np.unsignedinteger],
        logits: NDArray[np.float16],
    ) -> None:
        self._directory = directory
        self._places = {key.tobytes(): place for place, key in enumerate(keys)}
        self._ids, self._logits = ids, logits

    @classmethod
    def open(cls, directory: Path, tokenizer: TextCodec, *, vocab_size: int) -> Self:
        """Map a directory into memory, for a run of that tokenizer and vocabulary.

        Raises
        ------
        ConfigError
            If it is another teacher's than of these, or none at all.
        """
        try:
            data = read_bytes(directory / _MANIFEST, limit=_MAX_JSON_BYTES)
            manifest = parse_json(data, str(directory / _MANIFEST))
            keys, ids, logits = (
                np.load(directory / f"{name}.npy", mmap_mode="r")
                for name in ("keys", "ids", "logits")
            )
        except (OSError, ValueError, InputError) as error:
            raise ConfigError(
                f"teacher.logits={str(directory)!r} holds no logits ({error}): pass what "
                "nanochat.training.stored_logits.store_logits wrote"
            ) from error
        if manifest.get("tokenizer") != tokenizer.fingerprint:
            raise ConfigError(
                f"teacher.logits={str(directory)!r}: their tokenizer is another than that of the data: store those of "
                "a teacher of this tokenizer"
            )
        given = f"teacher.logits={str(directory)!r} are"
        _require_same_vocabulary(given, manifest.get("vocab_size"), vocab_size)
        return cls(directory, keys, ids, logits)

    def teaching(
        self, tokens: Tensor, temperature: float, segments: Tensor | None = None
    ) -> Teaching:
        """What the teacher says after every token (B, T), for `nanochat.training.loss.terms`.

        Raises
        ------
        TrainingError
            If it has not read one of the sequences.
        """
        places = []
        for key in _keys(tokens, segments):
            if key not in self._places:
                raise TrainingError(
                    f"{self._directory} has no logits of a sequence of this batch: store those of the same recipe "
                    "(seed, data, steps and phases) and data"
                )
            places.append(self._places[key])
        ids = torch.from_numpy(self._ids[places].astype(np.int64)).to(tokens.device)
        logits = torch.from_numpy(self._logits[places].astype(np.float32)).to(tokens.device)
        return Teaching(x=logits.flatten(0, 1), head=ids.flatten(0, 1), temperature=temperature)


def store_logits(
    recipe: Recipe,
    data: Path | Mapping[str, Path],
    out: Path,
    *,
    model: str,
    count: int = 32,
    device: str = "auto",
    watch: Callable[[int, int], None] = lambda *_: None,
) -> Path:
    """Write the largest logits of a teacher for all batches of the phases that learn from one.

    A token takes 4 bytes for each of them, or 6 with more than 65,536 tokens in the vocabulary.

    Parameters
    ----------
    recipe : Recipe
        Of the run, in which `teacher.logits` may name the directory already.
    data : Path, or mapping of str to Path
        What the run trains on.
    out : Path
        The directory to write.
    model : str
        The teacher's directory, or its name in the catalog or on the Hub.
    count : int
        Logits of each token.
    watch : callable, optional
        Is told how many of how many sequences the teacher has read.

    Raises
    ------
    ConfigError
        If how many steps the run takes is not known, as with a budget.
        If the teacher has another tokenizer or vocabulary, or no phase learns from one, or several do with sequences of
        different lengths.
    """
    if recipe.steps == ENDLESS:
        raise ConfigError(
            "which batches a run with a budget reads is known when it ends: pass steps in its place"
        )
    learning = [s for s in stages(recipe) if s.recipe.objective.distillation]
    lengths = {stage.recipe.data.length for stage in learning}
    if len(lengths) != 1:
        raise ConfigError(
            "no phase has objective.distillation: give it a factor, such as 1"
            if not learning
            else f"phases that learn have sequences of {sorted(lengths)} tokens: choose one data.length"
        )
    (length,) = lengths
    layouts = {stage.layout for stage in learning}
    shards, _ = open_splits(data, recipe.model, recipe.seed, layouts)
    teacher = FrozenModel.load(
        model, shards.tokenizer, setting="model", length=length, device=device
    )
    vocab_size = teacher.config.vocab_size
    _require_same_vocabulary(f"model={model!r} is", vocab_size, recipe.model.vocab_size)
    if not 1 <= count <= vocab_size:
        raise InputError(f"count={count}: pass 1 to {vocab_size} logits")

    def batches() -> Iterator[Inputs]:
        for stage in learning:
            for step in range(stage.first, stage.end + _SPARE):
                number, size = step - stage.data_first, stage.recipe.data.batch_size
                batch = shards.batch(number, size, stage.layout, order=stage.data_order)
                yield from (inputs for _, inputs in microbatches(batch, 0, teacher.device))

    num_sequences = sum(
        (stage.end + _SPARE - stage.first) * stage.recipe.data.batch_size for stage in learning
    )
    manifest = {
        "tokenizer": shards.tokenizer.fingerprint,
        "vocab_size": vocab_size,
        "model": model,
    }
    shape, id_type = (num_sequences, length, count), token_type(vocab_size)
    with (
        atomic_directory(out) as new,
        array_file(new / "keys.npy", np.dtype(np.uint8), (num_sequences, _KEY_BYTES)) as keys,
        array_file(new / "ids.npy", id_type, shape) as ids,
        array_file(new / "logits.npy", _LOGIT_TYPE, shape) as logits,
    ):
        done = 0
        for tokens, _, segments, _ in batches():
            keys.write(b"".join(_keys(tokens, segments)))
            found = _largest(teacher, tokens, segments, count)
            ids.write(found[0].astype(id_type).data)
            logits.write(found[1].astype(_LOGIT_TYPE).data)
            done += len(tokens)
            watch(done, num_sequences)
        (new / _MANIFEST).write_text(json.dumps(manifest, indent=1))
    return out


def _require_same_vocabulary(given: str, theirs: object, ours: int) -> None:
    if theirs != ours:
        raise ConfigError(
            f"{given} of {theirs} tokens and the model that learns of {ours}: set model.vocab_size={theirs}"
        )


def _largest(
    teacher: FrozenModel, tokens: Tensor, segments: Tensor | None, count: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    x = teacher.hidden(tokens, segments).flatten(0, 1)
    found = [
        teacher.logits(x[rows]).topk(count, dim=1)
        for rows in pieces(len(x), teacher.config.vocab_size)
    ]
    ids, values = torch.cat([f.indices for f in found]), torch.cat([f.values for f in found])
    return ids.cpu().numpy(), values.cpu().numpy()


def _keys(tokens: Tensor, segments: Tensor | None) -> list[bytes]:
    """A hash of what is read of each sequence (B, T): its tokens, and which documents they are of."""
    rows = [tokens] if segments is None else [tokens, segments]
    arrays = [np.ascontiguousarray(each.cpu().numpy(), "<i8") for each in rows]
    return [
        hashlib.blake2b(b"".join(row.tobytes() for row in parts), digest_size=_KEY_BYTES).digest()
        for parts in zip(*arrays, strict=True)
    ]
