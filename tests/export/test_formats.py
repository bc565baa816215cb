"""An export is complete, verified and in place, or nothing of it is there."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bench.exports import Reloaded
from nanochat.errors import ConfigError, InputError, SaveError
from nanochat.export.export import export_model
from nanochat.export.formats import FORMATS, format_named, load
from nanochat.export.mhc import read_mhc
from nanochat.export.verify import verify_model
from nanochat.presets import preset
from nanochat.proof.manifest import NAME, check_files, read_manifest
from nanochat.weights import named_leaves
from tests.parity.random_models import random_bundle

ROOT = Path(__file__).parents[2]
KINDS = [name for name, form in FORMATS.items() if form.options is not None]
STREAMS = random_bundle(num_streams=2)
FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from nanochat.errors import SaveError
from nanochat.export.export import export_model
from nanochat.export.formats import format_named
from tests.parity.random_models import random_bundle
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
source = random_bundle(num_streams=2)
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
try:
    export_model(source, Path(sys.argv[1]), kind=sys.argv[2], verify=False)
except SaveError as error:
    print(error)
"""

KILLED = """
import sys, time
from pathlib import Path
from nanochat.export.export import export_model
from nanochat.export.formats import format_named
from tests.parity.random_models import random_bundle

def wait(done, total):
    print("begun", flush=True)
    time.sleep(60)

export_model(
    random_bundle(num_streams=2), Path(sys.argv[1]), kind=sys.argv[2], progress=wait
)
"""


def out(kind: str, folder: Path) -> Path:
    return folder / f"x{format_named(kind).suffix}"


class Wrong(Reloaded):
    """A runtime that computes something else."""

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        return super().logits(ids)[::-1]


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_is_verified_and_read_back_as_the_same_model(kind: str, tmp_path: Path) -> None:
    done = []

    exported = export_model(
        STREAMS,
        out(kind, tmp_path),
        kind=kind,
        progress=lambda *counts: done.append(counts),
    )

    parts = load(exported.path)
    # What this package runs itself is proven by digests.
    assert (exported.parity is None) == (exported.written.architecture == "nanochat")
    assert exported.parity is None or (exported.parity.ok and exported.parity.same_text)
    assert exported.digests == len(dict(named_leaves(STREAMS.weights)))
    assert parts.config == STREAMS.config
    assert dict(named_leaves(parts.weights)).keys() == dict(named_leaves(STREAMS.weights)).keys()
    assert done
    assert done[-1][0] == done[-1][1]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not FORMATS[kind].suffix])
def test_a_folder_has_hashes_and_its_report(kind: str, tmp_path: Path) -> None:
    export_model(STREAMS, tmp_path / "x", kind=kind)

    manifest = read_manifest(tmp_path / "x")

    assert manifest is not None
    check_files(tmp_path / "x", manifest)
    assert json.loads((tmp_path / "x" / "parity.json").read_text())["ok"]


def test_a_file_has_its_report_beside_it(tmp_path: Path) -> None:
    export_model(STREAMS, tmp_path / "x.gguf", kind="gguf")

    report = json.loads((tmp_path / "x.gguf.parity.json").read_text())

    assert report == {"digests": len(dict(named_leaves(STREAMS.weights))), "ok": True}
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("kind", ["gguf", "hf"])
def test_what_computes_something_else_is_not_put_in_place(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(format_named(kind), "run", lambda path, *_: Wrong(path))

    with pytest.raises(SaveError, match="would not compute what random does, and is not written"):
        export_model(STREAMS, out(kind, tmp_path), kind=kind)

    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.skipif(sys.platform == "win32", reason="limits on file sizes are POSIX only")
def test_a_full_disk_leaves_nothing(kind: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", FULL_DISK, str(out(kind, tmp_path)), kind]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("cannot write ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", KINDS)
def test_what_stood_there_survives_a_kill(kind: str, tmp_path: Path) -> None:
    path = out(kind, tmp_path)
    export_model(random_bundle(), path, kind=kind, verify=False)
    command = [sys.executable, "-c", KILLED, str(path), kind]

    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        process.kill()

    assert verify_model(path, backend="reference").golden == pytest.approx(0, abs=1e-5)
    assert load(path).config.num_streams == 1


def test_a_new_export_replaces_the_files_of_the_old_one(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    export_model(random_bundle(), folder, kind="mlx", verify=False)
    (folder / "README.md").write_text("my card")
    old = {path.name for path in folder.iterdir()}

    export_model(STREAMS, folder, kind="onnx", verify=False)

    names = {path.name for path in folder.iterdir()}
    assert "model.safetensors" in old - names
    assert {"model.onnx", "README.md", NAME} <= names
    assert load(folder).config == STREAMS.config


@pytest.mark.parametrize("kind", ["gguf", "hf"])
def test_an_export_that_was_not_verified_has_no_report_of_an_earlier_one(
    kind: str, tmp_path: Path
) -> None:
    path = out(kind, tmp_path)
    export_model(STREAMS, path, kind=kind)
    assert list(tmp_path.rglob("*parity.json"))

    export_model(STREAMS, path, kind=kind, verify=False)

    assert not list(tmp_path.rglob("*parity.json"))


def test_a_folder_where_a_file_must_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").mkdir()

    with pytest.raises(InputError, match="is a folder, and this format is a file"):
        export_model(STREAMS, tmp_path / "x.gguf", kind="gguf")


def test_a_folder_with_other_things_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")

    with pytest.raises(InputError, match="no export has written"):
        export_model(STREAMS, tmp_path, kind="hf")

    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_where_a_folder_must_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").touch()

    with pytest.raises(InputError, match="is a file, and this format is a folder"):
        export_model(STREAMS, tmp_path / "x", kind="hf")


@pytest.mark.parametrize(
    ("kind", "runtime"), [("gguf", "llama.cpp"), ("mlx", "mlx-lm"), ("hf", "transformers")]
)
def test_a_runtime_that_cannot_run_the_model_is_refused_with_the_reasons(
    kind: str, runtime: Any, tmp_path: Path
) -> None:
    source = random_bundle(num_streams=2, attention_gate=True)

    with pytest.raises(ConfigError, match=r"num_streams=2.*attention_gate=true"):
        export_model(
            source,
            out(kind, tmp_path),
            kind=kind,
            options=format_named(kind).choose(runtime=runtime),
        )

    assert not list(tmp_path.iterdir())


def test_a_runtime_of_another_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"choose auto, llama\.cpp or nanochat"):
        export_model(
            STREAMS,
            tmp_path / "x.gguf",
            kind="gguf",
            options=FORMATS["gguf"].choose(runtime="mlx-lm"),
        )


def test_tables_in_float16_are_those_of_the_file(tmp_path: Path) -> None:
    options = FORMATS["gguf"].choose(tables="f16")

    exported = export_model(STREAMS, tmp_path / "x.gguf", kind="gguf", options=options)

    assert exported.digests
    assert load(tmp_path / "x.gguf").config.table_format == "dense"


def test_a_sidecar_stands_beside_the_file(tmp_path: Path) -> None:
    export_model(
        STREAMS,
        tmp_path / "x.gguf",
        kind="gguf",
        options=FORMATS["gguf"].choose(mhc=True),
        verify=False,
    )

    sites = read_mhc(tmp_path / "x.mhc")

    assert len(sites) == 2 * STREAMS.config.num_layers


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_of_an_export_keeps_the_licence(kind: str, tmp_path: Path) -> None:
    export_model(STREAMS, out(kind, tmp_path), kind=kind, verify=False)

    again = load(out(kind, tmp_path), name="random")

    assert again.licence == STREAMS.licence == "MIT"


def test_an_export_is_a_source_again(tmp_path: Path) -> None:
    export_model(STREAMS, tmp_path / "x.gguf", kind="gguf", verify=False)

    again = load(tmp_path / "x.gguf", name="random", licence="MIT")

    assert again.golden == STREAMS.golden


@pytest.mark.parametrize(
    ("kind", "runtime"), [("gguf", "llama.cpp"), ("mlx", "mlx-lm"), ("hf", "transformers")]
)
def test_the_plain_preset_runs_in_stock_runtimes(kind: str, runtime: str, tmp_path: Path) -> None:
    # Fewer layers only, so that it is soon done.
    config = vars(replace(preset("tiny-plain"), num_layers=2))
    form = format_named(kind)

    exported = export_model(
        random_bundle(**config),
        tmp_path / f"model{form.suffix}",
        kind=kind,
        options=form.choose(runtime=runtime),
    )

    assert exported.parity is not None
    assert exported.parity.ok
    assert exported.parity.runtime.startswith(runtime)


def test_what_takes_long_is_announced(tmp_path: Path) -> None:
    work: list[str] = []
    for verify in (True, False):
        export_model(
            STREAMS, tmp_path / "model.gguf", kind="gguf", verify=verify, announce=work.append
        )

    assert work == ["reading back", "verifying", "reading back"]
