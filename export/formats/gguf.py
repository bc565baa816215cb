"""This file holds GGUF: one file, of an architecture of llama.cpp's where it computes the model, else of our own.

Other people's files are read, too, if their matrices are ternary.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from nanochat.bundle import Bundle
from nanochat.config import ModelConfig
from nanochat.errors import BackendError
from nanochat.export.format import OURS, Format, ModelFiles, Progress, Written, option
from nanochat.export.layouts import SingleFile
from nanochat.proof.parity import Artefact

if TYPE_CHECKING:
    from nanochat.export.gguf.container import GgufFile

__all__ = ["FORMAT", "GgufOptions"]

# Our own architecture, which stock llama.cpp does not know.
_OWN = "nanochat"
# Tokens that llama.cpp is given room for.
_CONTEXT = 512


@dataclass(frozen=True, kw_only=True)
class GgufOptions:
    """What may be chosen of a GGUF file; see `nanochat.export.gguf.write.write_gguf`."""

    outtype: Literal["tq2_0", "tq1_0", "q2_0", "f16"] = option(
        "tq2_0", help="type of ternary matrices; q2_0 is for GPUs, f16 for everything"
    )
    tables: Literal["q8_0", "f16"] | None = option(
        None, help="type of embedding and head", default_help="the one that is exact"
    )
    runtime: Literal["auto", "llama.cpp", "nanochat"] = option(
        "auto",
        help="who must run it, unmodified",
        default_help="auto, the format's own where it can",
    )
    mhc: bool = option(
        False, help="write the coefficients of static mHC to an .mhc file beside it, too"
    )


class GgufFormat(Format[GgufOptions]):
    """See the module."""

    name = "gguf"
    title = "GGUF"
    # Fast to open first, of few bits before many, and dense last.
    layout = SingleFile(
        "gguf",
        ".gguf",
        types=(
            *("TQ2_0", "PQ2_0", "Q2_0", "Q2_0_G64", "Q2_G64", "I2_S", "PTQ1_0", "TQ1_0", "Q1_0"),
            *("F16", "BF16", "F32"),
        ),
        parts=r"-(\d{5})-of-(\d{5})\.gguf",
    )
    suffix = ".gguf"
    file_suffixes = (suffix,)
    options = GgufOptions
    library = tag = "gguf"

    # The library that knows the types of GGUF takes long to load, so what needs it is imported when it is used.

    def refusal(self, files: ModelFiles) -> str | None:
        return None if files.is_file(self.suffix) else f"no {self.suffix} file"

    def read(self, files: ModelFiles) -> Bundle:
        """See `Format.read`; what a golden record has digests of is compared with them on the way."""
        from nanochat.export.gguf.read import read_bundle

        return read_bundle(files, _file(files))

    def licence(self, files: ModelFiles) -> str:
        from nanochat.export.gguf.metadata import read_licence

        return read_licence(_file(files).metadata)

    def config(self, files: ModelFiles) -> ModelConfig:
        """See `Format.config`; other people's files say it by their tensors, too."""
        from nanochat.export.gguf.metadata import is_ours, read_config

        metadata = _file(files).metadata
        return read_config(files.path, metadata) if is_ours(metadata) else self.read(files).config

    def header_config(self, files: ModelFiles) -> ModelConfig:
        """See `Format.header_config`."""
        from nanochat.export.gguf.header import header_config

        return header_config(files.path)

    def generation(self, files: ModelFiles) -> tuple[Mapping[str, object], str]:
        """See `Format.generation`: keys that llama.cpp reads, too."""
        from nanochat.export.gguf.sampling import SAMPLING, read_sampling

        found = read_sampling(_file(files).metadata)
        return found, SAMPLING if found else ""

    def require_as_written(self, files: ModelFiles, bundle: Bundle) -> None:
        """See `Format.require_as_written`: keys that llama.cpp and others read."""
        from nanochat.export.gguf.metadata import require_as_recomputed

        require_as_recomputed(files.path, _file(files), bundle)

    def library_of(self, files: ModelFiles) -> str:
        """See `Format.library_of`: of a file that only this package runs, the lines for llama.cpp would not be true."""
        own = _file(files).metadata.get("general.architecture") == _OWN
        return OURS if own else self.library

    def adapt(self, bundle: Bundle, options: GgufOptions) -> Bundle:
        from nanochat.export.gguf.tokenizer import new_tokenizer
        from nanochat.export.gguf.write import adapted

        # Refused before anything is computed.
        new_tokenizer(bundle.tokenizer, bundle.config.vocab_size)
        return adapted(bundle, tables=options.tables, runtime=options.runtime)

    def write(
        self, path: Path, bundle: Bundle, options: GgufOptions, progress: Progress | None
    ) -> Written:
        from nanochat.export.gguf.write import write_gguf
        from nanochat.export.mhc import write_mhc

        if options.mhc:
            write_mhc(path.with_suffix(".mhc"), bundle.config, bundle.weights)
        architecture = write_gguf(
            path,
            bundle,
            outtype=options.outtype,
            tables=options.tables,
            runtime=options.runtime,
            progress=progress,
        )
        return Written(kind=self.name, architecture=architecture)

    def run(self, path: Path, bundle: Bundle, written: Written) -> Artefact | None:
        if written.architecture == _OWN:
            return None
        from nanochat.export.gguf.llama_cpp import LlamaCpp

        try:
            return LlamaCpp(path, context=min(bundle.config.context_length, _CONTEXT))
        except BackendError as error:
            self.say_not_run("llama.cpp", error)
            return None

    def types(self, options: GgufOptions, written: Written) -> Mapping[str, str]:
        del written
        return {
            "ternary": options.outtype.upper(),
            "int8": (options.tables or "q8_0").upper(),
            "float32": "F32",
            "float16": "F16",
            "bfloat16": "BF16",
        }

    def file_name(self, name: str, options: GgufOptions) -> str:
        return f"{name}-{options.outtype.upper()}{self.suffix}"


def _file(files: ModelFiles) -> "GgufFile":
    from nanochat.export.gguf.parts import read_whole

    return files.once(read_whole)


FORMAT = GgufFormat()
