"""What was read of a prompt is kept in a file, and whoever goes on from it writes what it would have written."""

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from nanochat.errors import BackendError, FormatError, InputError, SaveError
from nanochat.generation.cache import PromptCache, save_cache
from nanochat.lm import Model
from nanochat.ops import Storage
from tests.parity.backends import backends_under_test
from tests.parity.random_models import random_bundle

SHAPES: dict[str, dict[str, Any]] = {
    "attention": {"num_streams": 2},
    "delta": {
        "layer_pattern": ("delta", "attention"),
        "delta_heads": 2,
        "delta_key_dim": 24,
        "delta_value_dim": 128,
    },
    "loop": {"num_layers": 3, "loop_prelude": 1, "loop_coda": 1, "loop_count": 2},
}
# More than a page of positions.
PROMPT = "fn main() { wörld(1234); } " * 9 + "}"
SAMPLED: Any = {"max_tokens": 12, "temperature": 1.0, "seed": 3}


def model(
    backend: str = "reference",
    kind: str = "attention",
    kv_cache: Storage = "float32",
    *,
    seed: int = 0,
) -> Model:
    bundle = random_bundle(seed=seed, context_length=400, tie_embeddings=False, **SHAPES[kind])
    return Model.from_bundle(bundle, backend=backend, kv_cache=kv_cache)


def read_tokens(model: Model, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Where a model notes how many tokens each of its steps reads."""
    counts: list[int] = []
    draw = model.engine.draw

    def counted(state: Any, rows: Any, tokens: Any, *args: Any, **options: Any) -> Any:
        counts.append(sum(map(len, tokens)))
        return draw(state, rows, tokens, *args, **options)

    monkeypatch.setattr(model.engine, "draw", counted)
    return counts


@pytest.mark.parametrize("kv_cache", get_args(Storage))
@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("backend", backends_under_test())
def test_a_text_goes_on_from_a_file_as_if_all_had_been_read(
    backend: str, kind: str, kv_cache: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (model(backend, kind, kv_cache) for _ in range(2))
    prompt = PROMPT + " to be"
    expected = second.generate(prompt, **SAMPLED)
    # Tokens of both texts must begin alike.
    begun = len(first.encode_prompt(PROMPT))
    assert first.encode_prompt(prompt)[:begun] == first.encode_prompt(PROMPT)

    number = first.save_cache(tmp_path / "prompt.npz", PROMPT)

    cache = second.load_cache(tmp_path / "prompt.npz")
    counts = read_tokens(second, monkeypatch)
    text = second.generate(prompt, cache=cache, **SAMPLED)
    assert number == begun == len(cache.ids) > 130
    assert counts[0] == len(second.encode_prompt(prompt)) - begun
    if backend != "torch":
        assert text == expected
    # What does not begin so is read, whole.
    assert second.generate("to be", cache=cache, **SAMPLED) == second.generate("to be", **SAMPLED)


def test_several_texts_go_on_from_one_cache(tmp_path: Path) -> None:
    source = model("numba")
    prompts = [PROMPT + " to be", PROMPT + " or not", "to be"]
    expected = source.generate(prompts, n=2, **SAMPLED)
    source.save_cache(tmp_path / "c", PROMPT)

    cache = source.load_cache(tmp_path / "c")

    assert source.generate(prompts, n=2, cache=cache, **SAMPLED) == expected
    assert "".join(source.stream(prompts[0], cache=cache, **SAMPLED)) == source.generate(
        prompts[0], **SAMPLED
    )
    system: Any = [{"role": "system", "content": PROMPT}, {"role": "user", "content": "Hi"}]
    answer = source.chat(system, **SAMPLED)
    source.save_cache(tmp_path / "s", f"<|bos|><|system|>{PROMPT}<|end|>", special=True)
    kept = source.load_cache(tmp_path / "s")
    assert source.chat(system, cache=kept, **SAMPLED) == answer


def test_only_who_made_a_cache_can_use_it(tmp_path: Path) -> None:
    path = tmp_path / "c"
    model().save_cache(path, PROMPT)

    for other, name in (
        (model(seed=1), "model"),
        (model("numba"), "backend"),
        (model(kv_cache="int8"), "kv_cache"),
    ):
        with pytest.raises(InputError, match=f"was made with {name}=.*save the cache again"):
            other.load_cache(path)
        with pytest.raises(InputError, match=f"the cache was made with {name}="):
            other.generate("to be", cache=model().load_cache(path))


def test_what_is_no_cache_is_refused(tmp_path: Path) -> None:
    source, path = model(), tmp_path / "c"
    source.save_cache(path, PROMPT)
    whole = path.read_bytes()
    middle = len(whole) // 2
    damaged = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]

    for content in (b"", b"text", whole[:-9], damaged, whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(FormatError, match="no prompt cache, or damaged"):
            source.load_cache(path)
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(FormatError, match="no prompt cache, or damaged"):
        source.load_cache(path)
    with path.open("wb") as file:
        np.savez(file, about=np.array('{"format": 2}'))
    with pytest.raises(FormatError, match="no prompt cache of this version"):
        source.load_cache(path)
    with pytest.raises(InputError, match="none: no such file; save_cache writes one"):
        source.load_cache(tmp_path / "none")
    with pytest.raises(InputError, match=r"pass what model\.load_cache\(path\) returns"):
        source.generate("to be", cache=str(path))  # type: ignore[call-overload]
    with pytest.raises(SaveError, match="c"):
        source.save_cache(path / "below", PROMPT)


def test_arrays_of_another_shape_are_refused_and_no_row_is_lost(tmp_path: Path) -> None:
    source = model()
    source.save_cache(tmp_path / "c", PROMPT)
    cache = source.load_cache(tmp_path / "c")
    session = source.session(rows=1)

    for arrays in (cache.arrays[1:], (cache.arrays[0][:, 1:], *cache.arrays[1:])):
        with pytest.raises(FormatError, match="use a cache with the model, backend and kv_cache"):
            session.restore(replace(cache, arrays=arrays))
    session.restore(cache)

    assert list(session.pieces([[*cache.ids, 9]], max_tokens=1))
    wrong: Any = 5
    with pytest.raises(InputError, match="5 is no prompt cache"):
        session.restore(wrong)
    with pytest.raises(InputError, match="prefix_cache=False: make it with as much capacity"):
        source.session(rows=1, prefix_cache=False).restore(cache)
    with pytest.raises(InputError, match="pass it to its `restore`"):
        session.add([1, 2], cache=cache)


def test_a_runtime_of_graphs_says_that_it_cannot(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="load the model with another, such as numba"):
        model("onnx").save_cache(tmp_path / "c", PROMPT)


def test_a_file_stays_what_it_was_if_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c"
    model().save_cache(path, PROMPT)
    before = path.read_bytes()
    cache: PromptCache = model().load_cache(path)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(SaveError, match="No space left"):
        save_cache(path, cache)
    assert path.read_bytes() == before
