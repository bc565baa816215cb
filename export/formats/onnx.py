"""This file holds ONNX: a folder for ONNX Runtime and onnxruntime-genai, whose graph this package reads back, too."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, TypeVar

from nanochat.bundle import Bundle
from nanochat.config import ModelConfig
from nanochat.export.format import Format, Found, ModelFiles, Progress, Written, option
from nanochat.export.layouts import GRAPH, ONNX, PAGE
from nanochat.proof.manifest import read_manifest
from nanochat.proof.parity import Artefact

__all__ = ["FORMAT", "GraphFormat", "OnnxOptions"]

Options = TypeVar("Options")

_SUFFIX = ".onnx"


@dataclass(frozen=True, kw_only=True)
class OnnxOptions:
    """What may be chosen of an ONNX folder; see `nanochat.export.onnx.write.export_onnx`."""

    target: Literal["ort", "standard"] = option(
        "ort", help="ONNX Runtime's fast operators, or those of the standard alone"
    )


class GraphFormat(Format[Options], Generic[Options]):
    """A graph, with its tokenizer beside it."""

    tag = "onnx"

    # ONNX takes long to load, so what needs it is imported when it is used.

    def graph(self, files: ModelFiles) -> Path:
        return files.path / GRAPH if files.path.is_dir() else files.path

    def read(self, files: ModelFiles) -> Bundle:
        """See `Format.read`; the golden record is the folder's, or that in the graph."""
        from nanochat.export.onnx.read import read_bundle

        return read_bundle(files, self.graph(files), licence=self.licence(files))

    def licence(self, files: ModelFiles) -> str:
        """See `Format.licence`: of a graph, it is that of its folder."""
        manifest = files.manifest or files.once(read_manifest, files.folder)
        return "unknown" if manifest is None else manifest.licence

    def config(self, files: ModelFiles) -> ModelConfig:
        if files.manifest is not None:
            return files.manifest.config
        from nanochat.export.onnx.read import read_config, read_graph

        graph = self.graph(files)
        return read_config(graph, files.once(read_graph, graph))

    def found(self, files: ModelFiles) -> list[Found]:
        """See `Format.found`; a graph that is named may be called anything."""
        graph = self.graph(files).name
        if graph == GRAPH:
            return super().found(files)
        return [Found(place=graph, weights={graph, f"{graph}.data"} & files.names)]

    def require_as_written(self, files: ModelFiles, bundle: Bundle) -> None:
        """See `Format.require_as_written`: nodes and constants."""
        del bundle
        from nanochat.export.onnx.read import read_graph, require_digest

        graph = self.graph(files)
        require_digest(graph, files.once(read_graph, graph))

    def adapt(self, bundle: Bundle, options: Options) -> Bundle:
        """See `Format.adapt`: heads that predict further tokens are left out, as only training uses them."""
        from nanochat.export.onnx.write import require_possible
        from nanochat.export.transform import without_ahead

        # A page has ONNX Runtime's fast operators, too.
        require_possible(bundle.config, getattr(options, "target", "ort"))
        return without_ahead(bundle)

    def run(self, path: Path, bundle: Bundle, written: Written) -> Artefact | None:
        del bundle, written
        from nanochat.export.onnx.engine import OnnxEngine

        return OnnxEngine(path / GRAPH)


class OnnxFormat(GraphFormat[OnnxOptions]):
    """See the module."""

    name = "onnx"
    title = "ONNX"
    layout = ONNX
    file_suffixes = (_SUFFIX,)
    options = OnnxOptions

    def refusal(self, files: ModelFiles) -> str | None:
        if not files.path.is_dir():
            return None if files.is_file(_SUFFIX) else f"no {_SUFFIX} file"
        if GRAPH not in files.names:
            return f"no {GRAPH}"
        if PAGE in files.names:
            return f"{PAGE} makes it a page"
        places = [found.place for found in self.layout.find(files.names)]
        return None if "" in places else f"the tensors beside {GRAPH} come first: name that file"

    def write(
        self, path: Path, bundle: Bundle, options: OnnxOptions, progress: Progress | None
    ) -> Written:
        from nanochat.export.onnx.genai import write_genai

        write_genai(path, bundle, target=options.target, progress=progress)
        return Written(kind=self.name, architecture=options.target)

    def types(self, options: OnnxOptions, written: Written) -> Mapping[str, str]:
        del written
        if options.target == "standard":
            ternary, int8 = "UINT2, DequantizeLinear", "UINT8, DequantizeLinear"
        else:
            ternary, int8 = (f"MatMulNBits, {bits} bits, blocks of 128" for bits in (2, 8))
        return {"ternary": ternary, "int8": int8, "float32": "float32", "float16": "float16"}


FORMAT = OnnxFormat()
