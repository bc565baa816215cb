"""The committed logs say what the README quotes of them."""

from pathlib import Path
from xml.etree import ElementTree

from bench import training
from bench.curves import Curve, draw_curves


def test_the_twin_saw_as_many_tokens_and_the_streams_differ() -> None:
    results = list(training.run(quick=True))

    assert [result.ok for result in results] == [True, True, True, True]
    assert 0.8 < (results[0].ratio or 0) < 1.0


def test_the_logs_can_be_drawn(tmp_path: Path) -> None:
    training.plot([], tmp_path / "tiny.svg")

    picture = ElementTree.parse(tmp_path / "tiny.svg")
    assert len(picture.findall(".//{http://www.w3.org/2000/svg}polyline")) > 6


def test_a_curve_ends_at_the_right_edge_of_its_panel(tmp_path: Path) -> None:
    draw_curves({"panel": [Curve("line", [(0, 0), (5, 10)])]}, tmp_path / "a.svg", x_label="steps")

    picture = ElementTree.parse(tmp_path / "a.svg")
    lines = picture.findall(".//{http://www.w3.org/2000/svg}polyline[@stroke-width='2']")
    assert lines[0].attrib["points"] == "56.0,256.0 356.0,56.0"
