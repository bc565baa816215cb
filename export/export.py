"""This file holds the export of a model: written aside, read back, run, compared, and only then put in place."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from nanochat.bundle import Bundle
from nanochat.errors import ConfigError, FormatError, InputError, SaveError
from nanochat.export.format import Format, ModelFiles, Progress, Written
from nanochat.export.formats import FORMATS, format_named
from nanochat.files import atomic_directory, exists
from nanochat.proof.check import require_digests
from nanochat.proof.golden import tensor_digests, with_golden
from nanochat.proof.manifest import NAME, read_manifest, write_manifest
from nanochat.proof.parity import Parity, check_parity

__all__ = ["Exported", "export_model"]

_PARITY = "parity.json"


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What `export_model` has written.

    Parameters
    ----------
    path : Path
        The file or folder.
    kind : str
        The format that was asked for.
    written : Written
        What it has become.
    bundle : Bundle
        The model in it, with its golden record: that which was given, or what its options make of it.
    bytes : int
        Size of all its files.
    types : mapping
        How "ternary", "int8", "float32" and "float16" leaves are written.
    digests : int
        Tensors that were read back as they are in the model, with its configuration and tokenizer.
    parity : Parity or None
        How it compares with the model in the runtime of its users; `None` if that was not asked for, or it is this
        package, for which the digests are the proof.
    """

    path: Path
    kind: str
    written: Written
    bundle: Bundle
    bytes: int
    types: Mapping[str, str]
    digests: int
    parity: Parity | None


def export_model(
    bundle: Bundle,
    out: Path,
    *,
    kind: str,
    options: object | None = None,
    verify: bool = True,
    progress: Progress | None = None,
    announce: Callable[[str], None] = lambda _: None,
) -> Exported:
    """Write a model in a format, complete and proven or not at all.

    What is written is read back: every tensor, the configuration and the tokenizer must have the digests of the model.

    Parameters
    ----------
    out : Path
        File or folder to write or replace.
    kind : str
        Name or alias of one of `nanochat.export.formats.FORMATS`.
    options : optional
        The format's own; absent is its defaults.
    verify : bool
        Run what was written in the runtime of its users, too, and compare it with the reference, on fixed prompts. The
        report stands beside it as JSON. Without, the report of what stood there before goes.

    announce : callable
        Called with what is done next, such as "verifying", once all is written.

    Raises
    ------
    ConfigError
        If the format cannot hold the model, with the reasons.
    InputError
        If there is no such format, or `out` is a folder with other things in it, a file without the format's suffix, or
        one where the other must be.
    SaveError
        If it cannot be written, or does not compute what the model does; what stood there before is untouched.
    """
    form = format_named(kind)
    options = form.choose() if options is None else options
    _check_path(out, form)
    bundle = with_golden(form.adapt(bundle, options))
    old = _old_files(out) if not form.suffix else frozenset()
    # A file's report is its neighbour, a folder's is in it.
    folder = out.parent if form.suffix else out
    report_name = f"{out.name}.{_PARITY}" if form.suffix else _PARITY
    with atomic_directory(folder) as aside:
        new = aside / out.name if form.suffix else aside
        written = form.write(new, bundle, options, progress)
        if not form.suffix:
            write_manifest(new, bundle, kind=written.kind)
        files = [path for path in aside.rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files)
        announce("reading back")
        digests = _require_read_back(bundle, new, written, out)
        if verify:
            announce("verifying")
        artefact = form.run(new, bundle, written) if verify else None
        parity = None if artefact is None else check_parity(bundle, artefact)
        if parity is not None and not parity.ok:
            raise SaveError(
                f"{out} would not compute what {bundle.name} does, and is not written ({parity}): report this model"
            )
        if verify:
            report = {"digests": digests, "ok": True} | (parity.to_dict() if parity else {})
            (aside / report_name).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        kept = {path.relative_to(aside).as_posix() for path in files}
    for name in old - kept:
        (out / name).unlink(missing_ok=True)
    if not verify:
        (folder / report_name).unlink(missing_ok=True)
    return Exported(
        path=out,
        kind=kind,
        written=written,
        bundle=bundle,
        bytes=size,
        types=form.types(options, written),
        digests=digests,
        parity=parity,
    )


def _require_read_back(bundle: Bundle, new: Path, written: Written, out: Path) -> int:
    """Refuse a file that does not hold the model, and return how many tensors it holds."""
    assert bundle.golden is not None
    try:
        back = FORMATS[written.kind].read(ModelFiles(new))
        digests = tensor_digests(back.weights)
        require_digests(bundle.golden, digests, back.config, back.tokenizer, where=out.name)
    except FormatError as error:
        raise SaveError(
            f"{out} is not read back as it was written, and is not put in place ({error}): test the disk, and write it "
            "again"
        ) from error
    return len(digests)


def _check_path(out: Path, form: Format[object]) -> None:
    if form.suffix and out.suffix != form.suffix:
        raise InputError(
            f"{out} does not end in {form.suffix}, by which other programs know such a file: pass {out.name}"
            f"{form.suffix} or alike"
        )
    if form.suffix and out.is_dir():
        raise InputError(f"{out} is a folder, and this format is a file: pass another path")
    if exists(out.parent) and not out.parent.is_dir():
        raise SaveError(f"cannot write {out}: {out.parent} is no folder; pass another path")


def _old_files(folder: Path) -> frozenset[str]:
    """The files of an earlier export in `folder`, which the new one replaces."""
    if not exists(folder) or (folder.is_dir() and not any(folder.iterdir())):
        return frozenset()
    if not folder.is_dir():
        raise InputError(f"{folder} is a file, and this format is a folder: pass another path")
    try:
        manifest = read_manifest(folder)
    except (ConfigError, FormatError):
        manifest = None
    if manifest is None:
        raise InputError(
            f"{folder} has files that no export has written (no {NAME}): pass a new folder, or empty it"
        )
    return frozenset(manifest.files)
