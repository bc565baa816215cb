"""A model card is updated: what is ours changes, other keys keep their values, and the author's text every byte."""

import json
import time
from dataclasses import replace

import pytest
import yaml  # type: ignore[import-untyped]  # PyYAML has no types
from hypothesis import given
from hypothesis import strategies as st

from nanochat.errors import FormatError, InputError
from nanochat.presets import preset
from nanochat.publish import card_text
from nanochat.publish.card import BEGIN, END, own_text, update_card
from nanochat.publish.measure import BackendRow, Example
from nanochat.publish.metadata import HELD_OUT, Metadata
from nanochat.publish.options import Evaluation
from nanochat.text.front_matter import read_metadata

OURS = Metadata(name="name", licence="MIT", library="nanochat-ternary", tags=["ternary", "mhc"])
BODY = "## Size\n\n5 bytes"


def update(card: str, metadata: Metadata = OURS, body: str = BODY) -> str:
    return update_card(card, metadata, body, where="card")


def front_matter(card: str) -> dict[str, object]:
    return read_metadata(card, where="card")


def test_a_new_card_has_front_matter_a_title_and_our_part() -> None:
    card = update("")

    assert front_matter(card) == {
        "license": "mit",
        "tags": ["ternary", "mhc"],
        "library_name": "nanochat-ternary",
        "pipeline_tag": "text-generation",
    }
    assert card.endswith(f"\n# name\n\n{BEGIN}\n{BODY}\n{END}\n")


def test_a_card_keeps_everything_that_is_not_ours() -> None:
    theirs = (
        "---\n# mine\nlicense: mit # yes\nthumbnail:   'x.png'\nempty:\ntags:\n- rust # and more\n- ternary\n\n# odd\n"
        "widget: [{text: No}]\nlanguage: no\nat: 12:30\nsince: 2026-01-01\nlevel: 010\n---\r\n# Title \n\ntext\t\n"
    )

    card = update(theirs)

    assert "---\r\n# Title \n\ntext\t\n" in card
    assert front_matter(card) == {
        **front_matter(theirs),
        "tags": ["rust", "ternary", "mhc"],
        "library_name": "nanochat-ternary",
        "pipeline_tag": "text-generation",
    }
    for line in (
        "- text: 'No'\n",
        "language: 'no'\n",
        "at: '12:30'\n",
        "since: 2026-01-01\n",
        "level: '010'\n",
    ):
        assert line in card


def test_a_card_that_says_all_of_it_stays_byte_for_byte() -> None:
    once = update("").replace("license: mit", "license:   mit # mine")

    assert update(once) == once


def test_only_the_part_between_the_marks_is_replaced() -> None:
    before, after = "# Title\n\nbefore\n\n", "\n\nafter\n"
    old = f"---\nlicense: mit\n---\n{before}{BEGIN}\nold\n{END}{after}"

    card = update(old)

    assert own_text(card, where="card") == (before, after)
    assert "old" not in card
    assert card.count(BEGIN) == 1


# Text of all kinds, with what could be taken for front matter and marks.
PARTS = st.lists(
    st.one_of(
        st.text(st.characters(codec="utf-8"), max_size=20),
        st.sampled_from(
            ["\n", "\r\n", "---\n", "# T\n", f" {BEGIN}\n", f"{END}x\n", "- a\n", "\ufeff"]
        ),
    ),
    max_size=8,
).map("".join)
# What both YAML and JSON hold as it is.
WORDS = st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S"]), max_size=8)
KEYS = st.dictionaries(
    # To YAML, `no` is a negation.
    st.from_regex(r"[a-z_]{1,8}", fullmatch=True).filter(lambda key: yaml.safe_load(key) == key),
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), WORDS),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=2),
        max_leaves=5,
    ),
    max_size=4,
)


@given(text=PARTS, keys=KEYS, flow=st.booleans(), ends=st.sampled_from(["\n", "\r\n"]))
def test_updating_twice_is_updating_once_and_all_else_survives(
    text: str, keys: dict[str, object], flow: bool, ends: str
) -> None:
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in keys.items()]
    dumped = "".join(lines) if flow or not keys else yaml.safe_dump(keys, allow_unicode=True)
    theirs = f"---\n{dumped}---\n{text}".replace("\n", ends)

    try:
        once = update(theirs)
    except FormatError:
        # A text with a mark on a line of its own.
        assert BEGIN in text or END in text
        return

    assert update(once) == once
    before, after = own_text(once, where="card")
    own = text.replace("\n", ends)
    assert (before + after).startswith(own) or not own.strip()
    parsed = front_matter(once)
    assert {key: parsed[key] for key in keys} == keys


@given(text=PARTS)
def test_a_card_without_front_matter_gets_one_before_its_text(text: str) -> None:
    try:
        once = update(text)
    except FormatError:
        assert "---" in text
        return

    assert update(once) == once
    assert text in once or not text.strip() or "---" in text


@pytest.mark.parametrize(
    "card",
    [
        "---\nlicense: [mit\n---\n",
        "---\n- a list\n---\n",
        "---\ntags: [a]\ntags: [b]\n---\n",
        "---\na: &x [1]\ntags: *x\nb: !!python/object:os.system {}\n---\n",
        "---\na: 2021-02-31\n---\n",
        "---\n? [a]\n: b\n---\n",
        f"---\na: {'[' * 5000}\n---\n",
        f"---\na: {'[' * 450}{']' * 450}\n---\n",
        "---\nmodel-index: 5\n---\n",
        f"{BEGIN}\nno end\n",
        f"{END}\n{BEGIN}\n",
        f"{BEGIN}\n{BEGIN}\n{END}\n",
    ],
)
def test_a_card_that_cannot_be_updated_is_refused_with_the_fix(card: str) -> None:
    result = replace(OURS, evaluations=[Evaluation(metric="loss", value=1.0, dataset="x")])

    with pytest.raises(FormatError, match=r"^card: .*(correct|remove|write)"):
        update(card, result)


@pytest.mark.parametrize(
    ("said", "licence"),
    [
        ("license: apache-2.0", "MIT"),
        ("license: other\nlicense_name: house", "MIT"),
        ("license: mit", "House-1.0"),
    ],
)
def test_a_card_with_another_licence_is_refused(said: str, licence: str) -> None:
    with pytest.raises(InputError, match="correct the one that is wrong"):
        update(f"---\n{said}\n---\n", replace(OURS, licence=licence, licence_file="LICENSE"))


@pytest.mark.parametrize(
    ("said", "licence"),
    [
        ("license: MIT", "mit"),
        ("license: gpl-3.0", "GPL-3.0-or-later"),
        ("license: other\nlicense_name: house-1.0\nlicense_link: x", "House 1.0"),
        ("license: gpl-3.0-only", "GPL-3.0-only"),
    ],
)
def test_a_card_with_the_same_licence_keeps_its_words(said: str, licence: str) -> None:
    theirs = f"---\n{said}\n---\n"

    card = update(theirs, replace(OURS, licence=licence, licence_file="LICENSE"))

    assert front_matter(theirs).items() <= front_matter(card).items()


def test_a_licence_that_the_hub_does_not_know_has_a_name_and_a_link() -> None:
    card = update(
        "---\nlicense: unknown\n---\n", replace(OURS, licence="House 1.0", licence_file="LICENSE")
    )

    fields = front_matter(card)
    assert [fields[key] for key in ("license", "license_name", "license_link")] == [
        "other",
        "house-1.0",
        "LICENSE",
    ]


def test_results_of_others_stay_and_ours_are_replaced() -> None:
    theirs = (
        "---\nmodel-index:\n- name: x\n  results:\n  - task: {type: text-generation}\n    dataset: {type: ai2_arc, "
        "name: ARC}\n    metrics: [{type: accuracy, value: 0.5}]\n---\n"
    )

    def measured(value: float) -> Metadata:
        return replace(
            OURS, evaluations=[Evaluation(metric="bits per byte", value=value, dataset="text")]
        )

    card = update(update(theirs, measured(2.0)), measured(1.5))

    index = front_matter(card)["model-index"]
    assert isinstance(index, list)
    (entry,) = index
    found = [(m["type"], m["value"]) for r in entry["results"] for m in r["metrics"]]
    assert entry["name"] == "x"
    assert found == [("accuracy", 0.5), ("bits_per_byte", 1.5)]


def test_results_on_two_data_sets_that_the_hub_does_not_know_stay_two() -> None:
    results = [Evaluation(metric="loss", value=1.0, dataset=name) for name in ("mine", "yours")]

    index = front_matter(update("", replace(OURS, evaluations=results)))["model-index"]

    assert isinstance(index, list)
    assert [r["dataset"]["name"] for r in index[0]["results"]] == ["mine", "yours"]


def test_a_tag_that_is_no_longer_true_goes() -> None:
    once = update("---\ntags: [rust, moe]\n---\n", replace(OURS, untrue_tags=["moe", "looplm"]))

    assert front_matter(once)["tags"] == ["rust", "ternary", "mhc"]


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("[rust, moe, 'x']", ["rust", "x", "ternary", "mhc"]),
        ("[moe]", ["ternary", "mhc"]),
        ("[]", ["ternary", "mhc"]),
        ("", ["ternary", "mhc"]),
        ("rust # mine", ["rust", "ternary", "mhc"]),
        ("[mhc, 5, ~, ternary]", ["mhc", 5, None, "ternary"]),
        ("[no, mhc]", ["no", "mhc", "ternary"]),
    ],
)
def test_a_list_keeps_its_order_and_what_is_not_ours(theirs: str, ours: list[object]) -> None:
    card = update(f"---\ntags: {theirs}\nlicense: mit\n---\n", replace(OURS, untrue_tags=["moe"]))

    assert front_matter(card)["tags"] == ours
    assert list(front_matter(card))[:2] == ["tags", "license"]


@pytest.mark.parametrize(
    "item", ["- [b, c]", "- {b: c}", "- b: c"], ids=["list", "mapping", "block mapping"]
)
def test_a_list_of_something_else_than_words_is_refused(item: str) -> None:
    with pytest.raises(FormatError, match="tags of its front matter has something else than"):
        update(f"---\ntags:\n- a\n{item}\n---\n")


@pytest.mark.parametrize(
    "card",
    [
        "---\ntags: &t [a]\nmine: *t\n---\n",
        "---\nlibrary_name: &t x\nmine: *t\n---\n",
        "---\na: &a [x]\nb: &b [*a, *a]\n---\n",
    ],
)
def test_an_anchor_that_is_referred_to_is_refused_with_the_fix(card: str) -> None:
    with pytest.raises(FormatError, match="write each value out, without anchors"):
        update(card)


@pytest.mark.parametrize("form", ["[{}]", "{{<<: [{}]}}"], ids=["lists", "merged"])
def test_few_lines_that_stand_for_many_cost_nothing(form: str) -> None:
    lines = ["a0: &a0 {x: 1}"]
    lines += [f"a{n}: &a{n} {form.format(', '.join([f'*a{n - 1}'] * 10))}" for n in range(1, 9)]
    begin = time.thread_time()

    with pytest.raises(FormatError, match="anchors"):
        update("---\n" + "\n".join(lines) + "\n---\n")

    assert time.thread_time() - begin < 1


@pytest.mark.parametrize(
    "said",
    ["license: [mit, gpl-3.0]", "license: [apache-2.0, mit]", "license:\n- mit\n", "license: {a: mit}",
     "license: other\nlicense_name: [x]"],
)  # fmt: skip
def test_a_card_of_several_licences_is_refused(said: str) -> None:
    with pytest.raises(InputError, match="names no single licence: write one line, license"):
        update(f"---\n{said}\n---\n")


def test_a_result_of_another_training_goes_when_nothing_replaces_it() -> None:
    result = replace(HELD_OUT, value=1.5)
    theirs = (
        "---\nmodel-index:\n- name: x\n  results:\n  - dataset: {type: ai2_arc, name: ARC}\n"
        "    metrics: [{type: accuracy, value: 0.5}]\n---\n"
    )
    alone, beside = (
        update(update(card, replace(OURS, evaluations=[result]))) for card in ("", theirs)
    )

    assert "model-index" not in front_matter(alone)
    assert "bits_per_byte" not in beside
    assert front_matter(beside)["model-index"] == front_matter(theirs)["model-index"]


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("", ["new/base"]),
        ("base_model: old/base\n", ["new/base"]),
        ("base_model:\n- old/base\n", ["new/base"]),
        ("base_model: new/base\n", "new/base"),
        ("base_model: [other/base, new/base]\n", ["other/base", "new/base"]),
    ],
)
def test_a_base_model_that_is_given_replaces_the_one_that_is_there(
    said: str, found: object
) -> None:
    card = update(f"---\n{said}license: mit\n---\n", replace(OURS, base_model="new/base"))

    assert front_matter(card)["base_model"] == found


def test_a_base_model_that_is_not_among_several_is_refused() -> None:
    theirs = "---\nbase_model: [a/b, c/d]\n---\n"

    with pytest.raises(InputError, match="none of them: correct the one that is wrong"):
        update(theirs, replace(OURS, base_model="e/f"))

    assert front_matter(update(theirs))["base_model"] == ["a/b", "c/d"]


def test_the_text_shows_what_was_measured_and_what_was_not() -> None:
    rows = [BackendRow("numba", error=2e-7, tokens_per_second=1234.5), BackendRow("reference")]
    results = [Evaluation(metric="bits per byte", value=1.0874, dataset="held-out text")]

    speed = card_text.backends(rows, measured="On a processor")
    training = card_text.training({"steps": 1100}, results)

    assert "| numba | 2.0e-07 | 1,230 |" in speed
    assert "| reference | not measured | not measured |" in speed
    assert "| steps | 1100 |" in training
    assert "[recipe.json](recipe.json)" in training
    assert "| bits per byte | 1.087 | held-out text |" in training
    assert "5,771,648 parameters in 2,291,200 bytes" in card_text.sizes(preset("tiny"))


def test_what_a_model_writes_cannot_leave_its_place() -> None:
    wild = f"\n```\n{END}\n\x00\x1b[2J\u2028| a |\r# Title\n"

    card = update("", body=card_text.use([Example("python", "x", output=wild)]))

    assert card.count(f"\n{END}\n") == 1
    assert not {"\x00", "\x1b", "\r", "\u2028"} & set(card)


def test_without_a_recipe_nothing_is_said_of_training() -> None:
    assert card_text.training({}, []) == ""


def test_tags_say_what_the_configuration_is() -> None:
    config = replace(
        preset("tiny"), num_streams=1, loop_count=2, layer_pattern=("delta", "attention")
    )

    true, untrue = card_text.tags(config)

    assert true == ["nanochat-ternary", "ternary", "1.58-bit", "deltanet", "looplm"]
    assert untrue == ["mhc", "moe"]
