"""What the library logs reaches standard error, moving where that can be seen."""

import io
import logging

import pytest

from nanochat.cli import output
from nanochat.cli.output import NoticeHandler

ERASE_LINE, HIDE_CURSOR, SHOW_CURSOR = "\x1b[2K", "\x1b[?25l", "\x1b[?25h"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def everything(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "nanochat")


def replace(
    monkeypatch: pytest.MonkeyPatch, out: io.StringIO, err: io.StringIO
) -> tuple[io.StringIO, io.StringIO]:
    """Let standard output and standard error be these; in the test, since pytest sets them before it."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("nanochat.cli.output._inside_line", False)
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setattr("sys.stderr", err)
    return out, err


def record(text: str, progress: str = "") -> logging.LogRecord:
    return logging.makeLogRecord({"msg": text, "progress": progress})


def test_a_pipe_gets_a_line_at_the_begin_and_one_at_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, err = replace(monkeypatch, io.StringIO(), io.StringIO())
    handler = NoticeHandler()

    handler.handle(record("compiling ...", "begin"))
    handler.handle(record("compiled", "end"))

    assert err.getvalue() == "compiling ...\ncompiled\n"


def test_what_a_record_repeats_moves_no_cursor(monkeypatch: pytest.MonkeyPatch) -> None:
    _, err = replace(monkeypatch, io.StringIO(), io.StringIO())

    NoticeHandler().handle(record("a name: \x1b[2J"))

    assert err.getvalue() == "a name: \N{REPLACEMENT CHARACTER}[2J\n"


def test_a_terminal_gets_a_sign_that_makes_room_for_the_next_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, err = replace(monkeypatch, Terminal(), Terminal())
    handler = NoticeHandler()

    handler.handle(record("compiling ...", "begin"))
    handler.handle(record("compiled", "end"))

    assert "compiling ..." in err.getvalue()
    assert err.getvalue().endswith(f"{ERASE_LINE}compiled\n")


def test_a_sign_moves_on_below_other_notices_until_its_end_or_a_result(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, err = replace(monkeypatch, Terminal(), Terminal())
    handler = NoticeHandler()
    handler.handle(record("compiling ...", "begin"))

    handler.handle(record("runs on numba"))

    shown = err.getvalue()
    assert shown.rfind("compiling ...") > shown.rfind("runs on numba") >= 0
    assert shown.rfind(SHOW_CURSOR) < shown.rfind(HIDE_CURSOR)

    output.write("fn main")

    shown = err.getvalue()
    assert shown.rfind(SHOW_CURSOR) > shown.rfind(HIDE_CURSOR)
    assert out.getvalue() == "fn main"


def test_where_its_end_is_not_told_a_wait_is_a_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _, err = replace(monkeypatch, Terminal(), Terminal())

    with caplog.at_level(logging.WARNING, "nanochat"):
        NoticeHandler().handle(record("compiling ...", "begin"))

    assert err.getvalue() == "compiling ...\n"


def test_what_others_wrote_does_not_steer_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    output.note("\x1b]0;title\x07text")

    assert capsys.readouterr().err == "\ufffd]0;title\ufffdtext\n"


def test_a_sign_whose_wait_never_ended_gives_the_cursor_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, err = replace(monkeypatch, Terminal(), Terminal())
    handler = NoticeHandler()
    handler.handle(record("compiling ...", "begin"))

    handler.close()

    shown = err.getvalue()
    assert shown.rfind(SHOW_CURSOR) > shown.rfind(HIDE_CURSOR) >= 0


def test_a_notice_in_the_middle_of_a_line_begins_a_new_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, _ = replace(monkeypatch, Terminal(), Terminal())
    output.write("fn main")

    NoticeHandler().handle(record("compiled"))

    assert out.getvalue() == "fn main\n"


def test_a_result_in_a_pipe_is_not_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    out, _ = replace(monkeypatch, io.StringIO(), io.StringIO())
    output.write("fn main")

    NoticeHandler().handle(record("compiled"))

    assert out.getvalue() == "fn main"
