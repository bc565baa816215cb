"""Functions that a model completes, many at once."""

from dataclasses import replace

import pytest

from nanochat.errors import ContextLengthError, InputError
from nanochat.evaluation.completing import Completion, Drawing, Request, complete, seed_of
from nanochat.lm import Model
from nanochat.rust.completion import end_of_function

REQUESTS = [
    Request("larger", "fn larger(a: i32, b: i32) -> i32 {", range(6)),
    Request("new", "/// Makes one.\npub fn new() -> Self {", range(6)),
    Request("is_empty", "pub fn is_empty(&self) -> bool {", range(6)),
]
DRAWING = Drawing(num_samples=6, temperature=1.0, top_p=1.0, max_tokens=24)


@pytest.fixture(scope="module")
def model() -> Model:
    """The model that ships, on the backend that is at hand everywhere."""
    return Model.from_pretrained("nanochat-tiny", backend="numba", num_threads=1)


def drawn(model: Model, requests: list[Request], drawing: Drawing = DRAWING) -> list[Completion]:
    """All samples, in order."""
    found = complete(model.engine, model.tokenizer, requests, drawing)
    return sorted(found, key=lambda one: (one.id, one.sample))


def test_a_sample_does_not_depend_on_the_others(model: Model) -> None:
    together = drawn(model, REQUESTS)

    alone = [
        one
        for request in sorted(REQUESTS)
        for number in request.samples
        for one in drawn(model, [request._replace(samples=[number])])
    ]

    assert together == alone


def test_a_sample_ends_in_the_token_that_closes_its_function(model: Model) -> None:
    prompts = {request.id: request.prompt for request in REQUESTS}
    found = drawn(model, REQUESTS)

    closed = [one for one in found if one.finish == "closed"]
    assert closed
    for one in found:
        last = model.tokenizer.decode(one.tokens[-1:])
        end = end_of_function(prompts[one.id], one.text)
        assert (end is not None) == (one.finish == "closed")
        assert end is None or end > len(one.text) - len(last)


def test_what_is_not_closed_has_all_its_tokens(model: Model) -> None:
    found = drawn(model, REQUESTS)

    assert {len(one.tokens) for one in found if one.finish == "length"} == {24}


def test_log_probabilities_are_those_of_the_chosen_tokens(model: Model) -> None:
    (one,) = drawn(model, [REQUESTS[0]._replace(samples=[3])])
    ids = [*model.encode_prompt(REQUESTS[0].prompt), *one.tokens]

    losses = model.engine.losses(ids)[-len(one.tokens) :]

    assert one.logprobs == pytest.approx([-loss for loss in losses], abs=1e-5)


def test_greedy_samples_are_one() -> None:
    with pytest.raises(InputError, match="2 samples at temperature 0 are all the same"):
        Drawing(num_samples=2, temperature=0)


def test_a_prompt_that_fills_the_context_is_named(model: Model) -> None:
    long = Request("long", "// word\n" * 2000 + "fn f() {", [0])

    with pytest.raises(ContextLengthError, match=r"the prompt of long has .* leave it out"):
        drawn(model, [long])


def test_near_the_end_of_the_context_there_are_fewer_tokens(model: Model) -> None:
    context = model.config.context_length
    prompt = "fn f() {"
    while len(model.encode_prompt(prompt)) < context - 8:
        prompt = f"// a\n{prompt}"
    left = context - len(model.encode_prompt(prompt))

    found = drawn(model, [Request("late", prompt, range(4))], replace(DRAWING, num_samples=4))

    assert all(len(one.tokens) <= left for one in found)


def test_what_stands_before_a_prompt_is_read_and_closes_nothing(model: Model) -> None:
    before = 'fn open() {\n    let text = "{{{";\n\n'
    whole = REQUESTS[0]._replace(samples=range(3))
    with_it = whole._replace(before=before)

    found = drawn(model, [with_it])

    (ids,) = {one.tokens for one in drawn(model, [with_it._replace(samples=[1])])}
    assert ids == found[1].tokens
    assert [one.text for one in found] != [one.text for one in drawn(model, [whole])]
    losses = model.engine.losses([*model.encode_prompt(before + whole.prompt), *ids])
    assert found[1].logprobs == pytest.approx([-loss for loss in losses[-len(ids) :]], abs=1e-5)
    for one in found:
        end = end_of_function(whole.prompt, one.text)
        assert (end is not None) == (one.finish == "closed")


def test_neighbouring_seeds_have_nothing_in_common() -> None:
    seeds = {seed_of(run, "p", sample) for run in range(100) for sample in range(100)}

    assert len(seeds) == 10_000
