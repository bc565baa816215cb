"""This file holds a whole format of model files, for CONTRIBUTING.md: a model directory in one zip archive.

Copied to ``export/formats/toy.py`` it is one of the formats: nothing else names it. `tests/export/test_new_format.py`
does that.
"""

import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nanochat.bundle import Bundle
from nanochat.export import formats
from nanochat.export.directory import save_model
from nanochat.export.format import OWN_TYPES, Format, ModelFiles, Progress, Written, option
from nanochat.export.layouts import SingleFile

__all__ = ["FORMAT"]


@dataclass(frozen=True, kw_only=True)
class ToyOptions:
    """What may be chosen when a model is written: an option of the command line for each field."""

    packing: Literal["deflated", "stored"] = option("deflated", help="how the archive is packed")


class ToyFormat(Format[ToyOptions]):
    """See the module."""

    name = "toy"
    title = "Toy archive"
    layout = SingleFile("toy", ".toy")
    suffix = ".toy"
    file_suffixes = (".toy",)
    options = ToyOptions

    def refusal(self, files: ModelFiles) -> str | None:
        """See `Format.refusal`."""
        return None if files.is_file(self.suffix) else "no .toy file"

    def read(self, files: ModelFiles) -> Bundle:
        """See `Format.read`; what is mapped outlives the folder."""
        with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(files.path) as archive:
            archive.extractall(folder)
            return formats.load(Path(folder), name=files.name, origin=files.origin)

    def licence(self, files: ModelFiles) -> str:
        """See `Format.licence`."""
        return self.read(files).licence

    def write(
        self, path: Path, bundle: Bundle, options: ToyOptions, progress: Progress | None
    ) -> Written:
        """See `Format.write`."""
        packing = zipfile.ZIP_STORED if options.packing == "stored" else zipfile.ZIP_DEFLATED
        with (
            tempfile.TemporaryDirectory() as folder,
            zipfile.ZipFile(path, "w", packing) as archive,
        ):
            save_model(folder, bundle)
            files = sorted(Path(folder).iterdir())
            for done, file in enumerate(files, 1):
                archive.write(file, file.name)
                if progress is not None:
                    progress(done, len(files))
        return Written(kind=self.name, architecture=self.name)

    def types(self, options: ToyOptions, written: Written) -> Mapping[str, str]:
        """See `Format.types`."""
        del options, written
        return OWN_TYPES


FORMAT = ToyFormat()
