"""Parents that import this wait before they start a worker again; see `tests.serve.processes.running`."""

from nanochat.serve import workers

workers._SOON = 60.0
