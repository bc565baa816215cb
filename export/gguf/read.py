"""This file holds the reader of GGUF files: this package's, exactly as they were written, and other people's."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from nanochat.blocks.plain import plain
from nanochat.bundle import Bundle, Golden, default_generation, golden_from_json
from nanochat.checkpoint import require_legal
from nanochat.config import ModelConfig
from nanochat.errors import FormatError
from nanochat.export.format import ModelFiles
from nanochat.export.gguf.container import GgufFile
from nanochat.export.gguf.foreign.read import leaves_of, load_foreign_gguf
from nanochat.export.gguf.metadata import (
    GOLDEN,
    LOG_RATES,
    QWEN35,
    is_ours,
    read_config,
    read_licence,
)
from nanochat.export.gguf.sampling import SAMPLING, read_sampling
from nanochat.export.gguf.tensors import ARCHITECTURE, read_leaves
from nanochat.export.gguf.tokenizer import read_tokenizer
from nanochat.export.stock.architectures import obstacles, stock_architecture
from nanochat.proof.check import require_digests
from nanochat.proof.golden import tensor_digest
from nanochat.text.codec import TextCodec
from nanochat.weights import Dense, Stored, Weights, map_leaves, named_leaves

__all__ = ["read_bundle"]


def read_bundle(files: ModelFiles, file: GgufFile) -> Bundle:
    """What a file holds: equal codes and scales, float32 leaves as views of the file.

    Where it has a golden record, all that the record has digests of is compared with them; tensors, while those after
    them are read. A file of another program is read as `nanochat.export.gguf.foreign` says.
    """
    golden = None
    if is_ours(file.metadata):
        text = file.metadata.get(GOLDEN)
        golden = None if text is None else golden_from_json(str(text), f"{files.path}, {GOLDEN}")
        config, weights, tokenizer = _read_ours(files, file, golden)
    else:
        config, weights, tokenizer = load_foreign_gguf(files.path, file)
    stated = read_sampling(file.metadata)
    return Bundle(
        name=files.name,
        config=config,
        weights=weights,
        tokenizer=tokenizer,
        generation={**default_generation(tokenizer), **stated},
        generation_from=SAMPLING if stated else "",
        licence=read_licence(file.metadata),
        golden=golden,
        origin=files.origin,
    )


def _read_qwen35(
    path: Path, file: GgufFile, config: ModelConfig, check: Callable[[str, Stored], None]
) -> Weights[Stored]:
    """The leaves of a file that we wrote in the order of llama.cpp's heads."""
    rates = file.metadata.get(LOG_RATES)
    # Views are read once, here, so that all that they hold is checked.
    weights: Weights[Stored] = map_leaves(
        lambda _, leaf: plain(leaf), leaves_of(path, file, config)
    )
    names = [name for name, _ in named_leaves(weights) if name.endswith(".log_rate")]
    if not isinstance(rates, np.ndarray) or rates.shape != (len(names) * config.delta_heads,):
        raise FormatError(
            f"{path}: {LOG_RATES} is {rates!r:.80}, must be {config.delta_heads} numbers for each layer with a delta "
            "rule; export the model again with nanochat-ternary"
        )
    parts = dict(zip(names, np.split(rates.astype(np.float32), len(names)), strict=True))

    def read(name: str, leaf: Stored) -> Stored:
        if name in parts:
            assert isinstance(leaf, Dense)
            if not np.allclose(leaf.values, parts[name], rtol=1e-5, atol=1e-5):
                raise FormatError(
                    f"{path}: {LOG_RATES} and the rates of {name} are of different models; fetch the file again"
                )
            leaf = Dense(values=parts[name])
        check(name, leaf)
        return leaf

    return map_leaves(read, weights)


def _read_ours(
    files: ModelFiles, file: GgufFile, golden: Golden | None
) -> tuple[ModelConfig, Weights[Stored], TextCodec]:
    path = files.path
    architecture = file.metadata.get("general.architecture")
    config = read_config(path, file.metadata)
    # Heads for training have no place in a stock architecture.
    if architecture != ARCHITECTURE and (
        config.num_ahead
        or obstacles(config, "llama.cpp")
        or architecture != stock_architecture(config, "llama.cpp")
    ):
        raise FormatError(
            f"{path}: architecture is {architecture!r:.80}, which is not that of its configuration: "
            "export the model again with nanochat-ternary"
        )
    digests: dict[str, Future[str]] = {}
    with ThreadPoolExecutor(max_workers=1) as pool:

        def check(name: str, leaf: Stored) -> None:
            require_legal(name, leaf)
            if golden is not None:
                digests[name] = pool.submit(tensor_digest, leaf)

        if architecture == QWEN35:
            weights = _read_qwen35(path, file, config, check)
        else:
            weights = read_leaves(path, config, str(architecture), file.tensors, check)
        tokenizer = read_tokenizer(path, file.metadata, config.vocab_size)
    if golden is not None:
        found = {name: digest.result() for name, digest in digests.items()}
        require_digests(golden, found, config, tokenizer, where=str(path))
    return config, weights, tokenizer
