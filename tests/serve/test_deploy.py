"""What is shipped to operate a server names what is there."""

import configparser
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from nanochat.cli.serve import serve
from nanochat.serve.metrics import Metrics
from nanochat.serve.settings import Settings
from tests.serve.processes import free_port, running
from tests.serve.test_process import refused

DEPLOY = Path(__file__).parents[2] / "deploy"
HELP = CliRunner().invoke(serve, ["--help"]).output


def flags(line: str) -> set[str]:
    return {word for word in shlex.split(line) if word.startswith("--")}


def test_the_unit_starts_a_server_with_flags_that_it_has() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]  # names have capitals
    unit.read(DEPLOY / "nanochat.service")

    command = unit["Service"]["ExecStart"]
    assert command.split()[0].endswith("/nanochat")
    assert command.split()[1] == "serve"
    assert flags(command) <= set(re.findall(r"--[a-z-]+", HELP))
    assert unit["Service"]["Type"] == "notify"
    assert unit["Service"]["NoNewPrivileges"] == "yes"
    for name in re.findall(r"NANOCHAT_SERVE_(\w+)=", unit["Service"]["Environment"]):
        assert f"--{name.lower().replace('_', '-')}" in HELP


def test_the_unit_is_not_restarted_with_settings_that_are_wrong() -> None:
    unit = (DEPLOY / "nanochat.service").read_text()
    (status,) = re.findall(r"^RestartPreventExitStatus=(\d+)$", unit, re.MULTILINE)

    code, said = refused("nanochat-tiny", "--queue", "-1")

    assert said.startswith("error: queue=-1")
    assert code == int(status)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not here")
def test_systemd_finds_nothing_wrong_with_the_unit_and_what_it_says_to_add(tmp_path: Path) -> None:
    text = (DEPLOY / "nanochat.service").read_text()
    added = re.findall(r"^#   (.*)$", text, re.MULTILINE)
    assert [line.partition("=")[0] for line in added] == [
        "[Service]",
        "LoadCredential",
        "Environment",
    ]
    path = tmp_path / "nanochat.service"
    path.write_text(text.replace("/opt/nanochat/bin/nanochat", "/bin/true") + "\n".join(added))

    done = subprocess.run(
        ["systemd-analyze", "verify", path], capture_output=True, text=True, check=False
    )

    assert "nanochat.service" not in done.stderr


def test_systemd_is_told_when_the_server_is_ready_and_when_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(str(path))
        told.settimeout(20)
        with running("nanochat-tiny", "--backend", "reference", NOTIFY_SOCKET=str(path)) as server:
            assert told.recv(100) == b"READY=1"
            server.signal()
            assert told.recv(100) == b"STOPPING=1"


def test_the_image_serves_as_nobody_and_says_whether_it_is_well() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    lines = text.replace("\\\n", " ").splitlines()
    instructions = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    of = dict(instructions)

    assert instructions[0][0] == "FROM"
    assert of["USER"] == "nanochat"
    assert json.loads(of["ENTRYPOINT"]) == ["nanochat", "serve"]
    assert json.loads(of["CMD"]) == ["nanochat-tiny"]
    assert "[serve]" in of["RUN"]
    for name in re.findall(r"NANOCHAT_SERVE_(\w+)=", text):
        assert f"--{name.lower().replace('_', '-')}" in HELP


@pytest.mark.parametrize("has_tls", [False, True], ids=["http", "https"])
def test_the_image_s_check_of_health_asks_where_variables_say(
    has_tls: bool, tmp_path: Path
) -> None:
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", "")
    (check,) = re.findall(r"^HEALTHCHECK .* CMD (\[.*\])$", text, re.MULTILINE)
    _, *words = json.loads(check)
    variables = {"NANOCHAT_SERVE_PORT": str(free_port())}
    if has_tls:
        files = {"cert": str(tmp_path / "cert.pem"), "key": str(tmp_path / "key.pem")}
        make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=other"]
        names = ["-keyout", files["key"], "-out", files["cert"]]
        subprocess.run([*make, *names], check=True, capture_output=True)
        variables |= {f"NANOCHAT_SERVE_SSL_{name.upper()}": path for name, path in files.items()}

    def is_well() -> bool:
        environment = {**os.environ, **variables}
        done = subprocess.run([sys.executable, *words], env=environment, stderr=subprocess.DEVNULL)
        return done.returncode == 0

    with running("nanochat-tiny", "--backend", "reference", **variables):
        assert is_well()
    assert not is_well()


def test_the_dashboard_shows_what_the_server_counts() -> None:
    dashboard = json.loads((DEPLOY / "grafana.json").read_text())
    known = set(re.findall(r"^# TYPE (\w+)", Metrics(version="x").text([]).decode(), re.MULTILINE))

    named = set()
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            named |= set(re.findall(r"nanochat_\w+", target["expr"]))
    assert {re.sub("_bucket$", "", name) for name in named} <= known
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_the_balancer_asks_what_a_server_answers_and_waits_as_long_as_that_may_take() -> None:
    text = (DEPLOY / "haproxy.cfg").read_text()
    seconds = re.findall(r"timeout (?:client|server) (\d+)s", text)

    assert "option httpchk GET /ready" in text
    assert {float(each) for each in seconds} == {Settings().request_timeout}
    assert set(re.findall(r"--[a-z-]+", text)) <= set(re.findall(r"--[a-z-]+", HELP))
