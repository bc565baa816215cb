"""Ray Serve runs the server: replicas answer as one server does, and come and go without losing an answer."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx2
import psutil
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from nanochat.lm import Model
from tests.serve.processes import Process, counts, free_port, post, wait_until
from tests.serve.streams import Stream
from tests.serve.test_traces import collector

pytestmark = pytest.mark.long

APP = ("nanochat.serve.ray:app", "model=nanochat-tiny", "backend=numba", "threads=1", "max_rows=8")
REPLICA = "ray::ServeReplica"
SECONDS = 120


def program(name: str) -> str:
    """A program of the environment that has Ray, which the tests of `scripts/test --long` install."""
    return str(Path(sys.executable).parent / name)


@contextmanager
def in_background(*words: object, environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [*map(str, words)], env=environment, stdout=subprocess.DEVNULL, text=True
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)


class Cluster:
    """Ray on this machine, with the server on it."""

    def __init__(
        self,
        server: Process,
        head: subprocess.Popen[str],
        environment: dict[str, str],
        spans: list[ExportTraceServiceRequest],
    ) -> None:
        self.server = server
        self.spans = spans
        self._head = head
        self._environment = environment

    def deploy(self, *words: str) -> None:
        """Run the application, or renew it with other options."""
        command = [program("serve"), "run", "--non-blocking", *APP, *words]
        subprocess.run(command, env=self._environment, check=True, timeout=SECONDS)

    def replicas(self) -> list[psutil.Process]:
        children = psutil.Process(self._head.pid).children(recursive=True)
        return [child for child in children if child.name().startswith(REPLICA[:15])]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    port, server = free_port(), Process(None, free_port())  # type: ignore[arg-type]  # Ray has it
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "RAY_ADDRESS": f"127.0.0.1:{port}",
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    # Names of sockets in it must be short.
    folder = tmp_path_factory.getbasetemp().parent / "ray"
    ray = [
        program("ray"),
        "start",
        "--head",
        "--block",
        "--include-dashboard=false",
        "--num-cpus=4",
    ]
    ray += [f"--port={port}", "--object-store-memory=100000000", f"--temp-dir={folder}"]
    with collector() as (address, spans), ExitStack() as stack:
        # Spans come when a replica ends, and not before.
        environment |= {
            "OTEL_BSP_SCHEDULE_DELAY": "3600000",
            "OTEL_EXPORTER_OTLP_ENDPOINT": address,
        }
        head = stack.enter_context(in_background(*ray, environment=environment))
        serve = [program("serve"), "start", "--http-port", str(server.port)]
        began = time.monotonic()
        while subprocess.run(serve, env=environment, check=False, timeout=SECONDS).returncode:
            assert time.monotonic() - began < SECONDS
        found = Cluster(server, head, environment, spans)
        found.deploy("replicas=2")
        yield found


def wait_for_replicas(cluster: Cluster, before: set[int], count: int) -> None:
    """Wait until there are so many that answer, none of which was there before."""
    began = time.monotonic()
    while len({each.pid for each in cluster.replicas()} - before) < count:
        assert time.monotonic() - began < SECONDS
        time.sleep(0.2)


def answered(cluster: Cluster) -> dict[float, float]:
    """Tokens of each replica, by the time of its beginning: it counts for itself, and Ray asks any."""
    found = [counts(cluster.server) for _ in range(30)]
    return {each["generated_tokens_created"]: each["generated_tokens_total"] for each in found}


def test_streams_of_two_replicas_are_the_model_s_texts(cluster: Cluster, model: Model) -> None:
    prompts = [f"fn f{number}() {{" for number in range(8)]
    before = answered(cluster)

    streams = [Stream(cluster.server.url, prompt=prompt, tokens=200) for prompt in prompts]

    assert [stream.wait() for stream in streams] == ["end"] * 8
    for stream, prompt in zip(streams, prompts, strict=True):
        assert stream.texts == [model.generate(prompt, max_tokens=200, ignore_eos=True)]
    after = answered(cluster)
    assert len(after) == len(cluster.replicas()) == 2
    assert all(after[replica] > before[replica] for replica in after)


def test_a_client_that_leaves_frees_its_rows_in_the_replica(cluster: Cluster) -> None:
    with httpx2.stream(
        "POST",
        f"{cluster.server.url}/completions",
        json={"prompt": "fn", "max_tokens": 1000, "n": 8, "ignore_eos": True, "stream": True},
    ) as response:
        next(response.iter_lines())

    time.sleep(0.5)
    found = [counts(cluster.server) for _ in range(20)]
    assert {each["rows"] for each in found} == {0.0}
    assert max(each.get('cancelled_total{where="stream"}', 0) for each in found) == 1


def test_a_replica_that_is_killed_breaks_its_streams_at_once_and_no_other_request(
    cluster: Cluster,
) -> None:
    streams = [Stream(cluster.server.url, n=4).begun() for _ in range(4)]
    victim, other = cluster.replicas()
    before = {victim.pid, other.pid}

    victim.kill()
    killed = time.monotonic()
    late = [post(cluster.server, "/v1/completions", {"prompt": "x"}).status for _ in range(20)]

    ends = [stream.wait().partition(":")[0] for stream in streams]
    assert set(ends) == {"end", "broken"}
    assert all(each.ended - killed < 2 for each in streams if each.how != "end")
    assert late == [200] * 20
    wait_for_replicas(cluster, before, 1)


def test_an_update_lets_streams_end_and_refuses_nobody(cluster: Cluster) -> None:
    before = {each.pid for each in cluster.replicas()}
    stream = Stream(cluster.server.url, n=8).begun()
    statuses: list[int] = []
    is_over = threading.Event()

    def go_on() -> None:
        while not is_over.is_set():
            statuses.append(post(cluster.server, "/v1/completions", {"prompt": "x"}).status)

    asking = threading.Thread(target=go_on)
    asking.start()
    cluster.deploy("replicas=2", "queue=100")
    wait_for_replicas(cluster, before, 2)
    is_over.set()
    asking.join()

    assert stream.wait() == "end"
    assert set(statuses) == {200}
    assert len(statuses) > 10


def test_replicas_that_are_renewed_send_their_last_spans(cluster: Cluster) -> None:
    before = {each.pid for each in cluster.replicas()}
    assert post(cluster.server, "/v1/completions", {"prompt": "x"}).status == 200
    cluster.spans.clear()

    cluster.deploy("replicas=2", "queue=101")

    wait_for_replicas(cluster, before, 2)
    wait_until(lambda: bool(cluster.spans))


def test_what_cannot_be_is_said_before_a_replica_starts() -> None:
    done = subprocess.run(
        [program("python"), "-c", "from nanochat.serve.ray import app; app({'replicas': 2})"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=False,
    )

    assert "InputError: replicas=2 and no number of threads" in done.stderr
