"""This file holds an exported ONNX file at work: it is a runner like any other, and exact."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from nanochat.backends.reference.ops import ReferenceOps
from nanochat.bundle import Bundle
from nanochat.errors import ContextLengthError, FormatError, InputError
from nanochat.export.onnx.engine import OnnxEngine
from nanochat.export.onnx.write import Target, export_onnx
from nanochat.generation.engine import Engine, Runner
from nanochat.generation.session import generate
from nanochat.proof.parity import check_parity
from tests.parity.random_models import random_bundle

TARGETS: tuple[Target, ...] = ("ort", "standard")
HYBRID: dict[str, Any] = {
    "layer_pattern": ("delta", "attention"),
    "delta_heads": 2,
    "delta_key_dim": 64,
    "delta_value_dim": 128,
}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "hybrid": HYBRID,
    "loop, experts, mHC": {
        "loop_count": 2,
        "num_experts": 3,
        "expert_width": 256,
        "num_streams": 2,
    },
}
PROMPTS = [[1, 5, 9], [1, 7, 8, 9, 10, 11, 12], [3]]


def engine(source: Bundle, folder: Path, target: Target = "ort") -> OnnxEngine:
    export_onnx(source, folder / "model.onnx", target=target)
    return OnnxEngine(folder / "model.onnx", num_threads=1)


def reference(source: Bundle) -> Engine[Any, Any, Any]:
    ops = ReferenceOps()
    return Engine(source.config, ops.prepare(source.weights), ops)


def share_close(expected: NDArray[np.float32], actual: NDArray[np.float32]) -> float:
    """Share of the rows that are equal but for the order of additions; in the others a rounding has flipped."""
    assert np.abs(actual - expected).max() <= 5e-2 * np.abs(expected).max()
    return float(np.mean(np.abs(actual - expected).max(axis=1) <= 1e-5 * np.abs(expected).max()))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("case", CASES)
def test_a_file_at_work_agrees_with_the_reference(
    case: str, target: Target, tmp_path: Path
) -> None:
    source = random_bundle(**CASES[case])

    parity = check_parity(source, engine(source, tmp_path, target))

    assert parity.ok
    assert parity.same_text
    assert parity.report.median_ratio <= 1e-5
    assert parity.runtime.startswith("onnxruntime 1.")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("case", CASES)
def test_sequences_of_different_lengths_run_together(
    case: str, target: Target, tmp_path: Path
) -> None:
    # With the first seeds, roundings flip in two of the three prompts, and stay in what is remembered of them.
    source = random_bundle(**CASES[case], seed=3)
    ours, theirs = engine(source, tmp_path, target), reference(source)
    state, expected = (each.new_state(rows=4, capacity=20) for each in (ours, theirs))
    for ids in PROMPTS:
        ours.extend(state, state.admit(), ids)
        theirs.extend(expected, expected.admit(), ids)
    before = state.fork(0), expected.fork(0)

    tokens = np.random.default_rng(0).integers(7, 300, (12, 3, 1)).tolist()
    steps = [
        (theirs.step(expected, range(3), each), ours.step(state, range(3), each)) for each in tokens
    ]

    shares = [share_close(theirs, ours) for theirs, ours in steps]
    assert np.mean(shares) >= 0.3
    # A fork is continued from where it began.
    alone = ours.step(state, before[:1], [[5]])
    assert share_close(theirs.step(expected, before[1:], [[5]]), alone) in (0.0, 1.0)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("case", CASES)
def test_a_row_has_the_same_bits_alone_and_beside_others(
    case: str, target: Target, tmp_path: Path
) -> None:
    runner = engine(random_bundle(**CASES[case]), tmp_path, target)
    alone = [runner.prefill(ids, capacity=20)[0] for ids in PROMPTS]
    state = runner.new_state(rows=3, capacity=20)
    for ids in PROMPTS[:2]:
        runner.extend(state, state.admit(), ids)

    for tokens in ([[7], [8]], [[9], [10]]):
        expected = [runner.step(one, [0], [each]) for one, each in zip(alone, tokens, strict=False)]
        np.testing.assert_array_equal(runner.step(state, [0, 1], tokens), np.concatenate(expected))
    state.release(0)
    third = state.admit()
    runner.extend(state, third, PROMPTS[2])

    expected = [runner.step(one, [0], [[11]]) for one in (alone[2], alone[1])]
    found = runner.step(state, [third, 1], [[11], [11]])
    assert third == 0
    np.testing.assert_array_equal(found, np.concatenate(expected))


@pytest.mark.parametrize("target", TARGETS)
def test_a_snapshot_is_continued_by_several_rows(target: Target, tmp_path: Path) -> None:
    runner = engine(random_bundle(**HYBRID), tmp_path, target)
    alone, _ = runner.prefill([1, 5, 9], capacity=9)
    state = runner.new_state(rows=4, capacity=9)
    first = state.admit()
    runner.extend(state, first, [1, 5, 9])
    snapshot = state.snapshot(first)
    expected = runner.decode([7], alone)[0]

    found = [runner.step(state, [first], [[7]])[0]]
    rows = [state.admit(snapshot), state.admit(snapshot)]
    found += list(runner.step(state, rows, [[7], [7]]))
    state.drop(snapshot)

    np.testing.assert_array_equal(np.stack(found), np.stack([expected] * 3))


@pytest.mark.parametrize("target", TARGETS)
def test_text_is_generated_from_it(target: Target, tmp_path: Path) -> None:
    source = random_bundle()
    runner = engine(source, tmp_path, target)

    assert isinstance(runner, Runner)
    texts = [
        [piece.token for piece in generate(r, source.tokenizer, PROMPTS, max_tokens=20)]
        for r in (runner, reference(source))
    ]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("target", TARGETS)
def test_long_prompts_are_read_in_parts(target: Target, tmp_path: Path) -> None:
    source = random_bundle(**HYBRID, context_length=600)
    runner = engine(source, tmp_path, target)
    ids = np.random.default_rng(0).integers(7, 300, 590).tolist()

    logits = runner.logits(ids)
    _, last = runner.prefill(ids, capacity=600)

    assert logits.shape == (590, 320)
    np.testing.assert_array_equal(logits[-1], last)
    # The first part alone, and the first tokens of each part after the others.
    np.testing.assert_allclose(runner.logits(ids[:256]), logits[:256], atol=1e-6)
    assert share_close(reference(source).logits(ids), logits) > 0.01


def test_keys_and_values_stay_where_they_are(tmp_path: Path) -> None:
    runner = engine(random_bundle(**HYBRID), tmp_path)
    state, _ = runner.prefill([1, 5], capacity=9)
    keys = state.sequences[0].memory["past_key_values.1.key"]
    before = keys.copy()

    runner.decode([7], state)

    assert state.sequences[0].memory["past_key_values.1.key"] is keys
    np.testing.assert_array_equal(keys[:, :, :2], before[:, :, :2])
    assert keys[:, :, 2].any()
    assert not keys[:, :, 3:].any()


def test_what_is_not_written_in_place_is_given_elsewhere(tmp_path: Path) -> None:
    runner = engine(random_bundle(**HYBRID), tmp_path)
    state, _ = runner.prefill([1, 5], capacity=9)
    memory = state.sequences[0].memory
    given = {name: memory[name] for name in ("past.0.conv", "past.0.recurrent")}
    before = {name: array.copy() for name, array in given.items()}

    runner.decode([7], state)

    for name, array in given.items():
        np.testing.assert_array_equal(array, before[name])
        assert (state.sequences[0].memory[name] != array).any()


def test_steps_do_not_overwrite_what_earlier_ones_gave(tmp_path: Path) -> None:
    runner = engine(random_bundle(), tmp_path)
    state, _ = runner.prefill([1, 5], capacity=9)

    first = runner.decode([7], state)
    before = first.copy()
    runner.decode([8], state)

    np.testing.assert_array_equal(first, before)


def test_more_tokens_than_there_is_room_for_are_refused(tmp_path: Path) -> None:
    runner = engine(random_bundle(), tmp_path)
    state, _ = runner.prefill([1, 5], capacity=2)

    with pytest.raises(ContextLengthError, match="2 tokens seen and 1 more"):
        runner.decode([7], state)
    with pytest.raises(ContextLengthError, match="context holds 64"):
        runner.logits([1] * 65)


def test_no_tokens_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no token to read"):
        engine(random_bundle(), tmp_path).prefill([], capacity=2)


def test_no_threads_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="num_threads=0"):
        OnnxEngine(tmp_path / "model.onnx", num_threads=0)


def test_files_that_it_cannot_run_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_bytes(b"no protocol buffer")
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    node = onnx.helper.make_node("Abs", ["x"], ["y"])
    opset = [onnx.helper.make_opsetid("", 20)]
    graph = onnx.helper.make_graph([node], "other", [x], [y])
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=9)
    onnx.save(model, tmp_path / "other.onnx")

    for name, reason in {
        "absent": "No such file",
        "text": "cannot load it",
        "other": "another program",
    }.items():
        with pytest.raises(FormatError, match=reason):
            OnnxEngine(tmp_path / f"{name}.onnx")


def test_a_graph_of_another_configuration_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    export_onnx(random_bundle(), path)
    model = onnx.load(path)
    entry = next(entry for entry in model.metadata_props if entry.key == "config")
    entry.value = entry.value.replace('"head_dim": 64', '"head_dim": 128')
    path.write_bytes(model.SerializeToString())

    with pytest.raises(FormatError, match=r"past_key_values\.0\.key has the shape"):
        OnnxEngine(path)
