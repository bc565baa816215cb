"""This file holds the page that runs a model in a browser, whose graph is read as any other."""

from collections.abc import Mapping
from pathlib import Path

from nanochat.bundle import Bundle
from nanochat.export.format import ModelFiles, NoOptions, Progress, Written
from nanochat.export.formats.onnx import FORMAT as ONNX
from nanochat.export.formats.onnx import GraphFormat, OnnxOptions
from nanochat.export.layouts import GRAPH, PAGE, WEB

__all__ = ["FORMAT"]


class WebFormat(GraphFormat[NoOptions]):
    """See the module."""

    name = "web"
    title = "page for browsers"
    layout = WEB
    options = NoOptions

    def refusal(self, files: ModelFiles) -> str | None:
        if not files.path.is_dir():
            return "no folder"
        return next((f"no {name}" for name in (GRAPH, PAGE) if name not in files.names), None)

    def write(
        self, path: Path, bundle: Bundle, options: NoOptions, progress: Progress | None
    ) -> Written:
        del options
        from nanochat.export.web.write import write_web

        write_web(path, bundle, progress=progress)
        return Written(kind=self.name, architecture=self.name)

    def types(self, options: NoOptions, written: Written) -> Mapping[str, str]:
        del options
        return ONNX.types(OnnxOptions(), written)


FORMAT = WebFormat()
