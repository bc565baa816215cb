"""Models in the files of other programs compute on every backend what they compute on the reference."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nanochat.backends.reference.ops import ReferenceOps
from nanochat.bundle import Bundle
from nanochat.export import formats
from nanochat.generation.engine import Engine
from nanochat.model import forward
from nanochat.ops import Ops
from nanochat.proof.tolerances import TOLERANCES, rms_error
from tests.core.foreign_tokenizers import write_llama_3
from tests.export import public_ggufs
from tests.export.folder_models import build, keep_ternary, save_unpacked
from tests.export.public_ggufs import make_ternary, qwen35_model, write_qwen35
from tests.export.test_folders_rotated import WIDTHS
from tests.export.test_folders_rotated import save as save_pack
from tests.export.test_foreign_rotary import written
from tests.export.test_public_ggufs import write_rotated
from tests.parity.backends import backends_under_test, loaded
from tests.parity.lockstep import LockstepOps

AnyOps = Ops[Any, Any, Any]

# Files are written one weight after the other.
FEW = {"num_hidden_layers": 2, "intermediate_size": 256, "linear_num_value_heads": 4}
IDS: list[int] = np.random.default_rng(0).integers(0, 300, 12).tolist()


@contextmanager
def qwen35_of(sizes: Mapping[str, int]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in sizes.items():
            patch.setitem(public_ggufs.CONFIG, name, value)
        yield


def qwen35_gguf(folder: Path) -> Path:
    with qwen35_of(FEW):
        model = qwen35_model()
        make_ternary(model)
        return write_qwen35(folder / "x.gguf", model, "PQ2_0")


def rotated_gguf(folder: Path) -> Path:
    with qwen35_of(FEW):
        write_rotated(folder / "x.gguf", qwen35_model(), 256)
    return folder / "x.gguf"


def minicpm_gguf(folder: Path) -> Path:
    return written(folder / "x.gguf", "minicpm, long", kind="TQ2_0")


def rotated_pack(folder: Path) -> Path:
    with qwen35_of(WIDTHS):
        save_pack(folder)
    return write_llama_3(folder)


def unpacked_folder(folder: Path) -> Path:
    model = build("qwen3")
    keep_ternary(model)
    return write_llama_3(save_unpacked(model, folder))


WRITERS: dict[str, Callable[[Path], Path]] = {
    # Its value heads, and so columns of a matrix, have another order than ours.
    "qwen35 GGUF": qwen35_gguf,
    "rotated GGUF": rotated_gguf,
    "minicpm GGUF": minicpm_gguf,
    "rotated MLX pack": rotated_pack,
    "unpacked folder": unpacked_folder,
}

every_file = pytest.mark.parametrize("name", WRITERS)


@pytest.fixture(scope="module", params=[n for n in backends_under_test() if n != "reference"])
def other(request: pytest.FixtureRequest) -> Iterator[AnyOps]:
    yield from loaded(request.param)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    return {
        name: formats.load(write(tmp_path_factory.mktemp("public")))
        for name, write in WRITERS.items()
    }


@every_file
def test_logits_of_a_file_are_those_of_the_reference(
    other: AnyOps, bundles: dict[str, Bundle], name: str
) -> None:
    config, weights = bundles[name].config, bundles[name].weights

    found, expected = (
        Engine(config, ops.prepare(weights), ops).logits(IDS) for ops in (other, ReferenceOps())
    )

    assert rms_error(found, expected) <= TOLERANCES["logits"].limit


@every_file
def test_numbers_of_a_file_drift_little_from_one_rounding_to_the_next(
    other: AnyOps, bundles: dict[str, Bundle], name: str
) -> None:
    config, lockstep = bundles[name].config, LockstepOps(other, equalize="roundings")
    weights = lockstep.prepare(bundles[name].weights)

    logits = forward(lockstep.tokens(np.array([IDS])), weights, config, lockstep)

    lockstep.compare("project", logits)
    lockstep.check()
