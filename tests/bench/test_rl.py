"""The committed logs of reinforcement learning say what its page quotes of them."""

from pathlib import Path
from xml.etree import ElementTree

from bench import rl


def test_every_kind_of_run_has_all_its_numbers() -> None:
    found = {result.what: result for result in rl.run(quick=True)}

    kinds = {what.split(", seeds")[0] for what in found}
    control = rl._NAMES["shuffled"]
    assert {"MaxRL", control} <= kinds
    assert len(found) == len(kinds) * (len(rl._MEASURES) + 1) - 1
    ours = {what: result for what, result in found.items() if what.startswith("MaxRL, seeds: 3")}
    assert [what.split(": ")[2] for what, result in ours.items() if not result.ok] == [
        "compiles and returns, unseen",
        "ordinary Rust",
    ]
    assert all(result.ok for what, result in found.items() if what.startswith(control))


def test_the_logs_can_be_drawn(tmp_path: Path) -> None:
    rl.plot([], tmp_path / "rl.svg")

    picture = ElementTree.parse(tmp_path / "rl.svg")
    assert len(picture.findall(".//{http://www.w3.org/2000/svg}polyline[@stroke-width='2']")) >= 6
