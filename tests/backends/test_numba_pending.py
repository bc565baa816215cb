"""Activations are freed as soon as nobody needs them, without Python's search for circles of references."""

import gc
import weakref
from collections.abc import Iterator

import numpy as np
import pytest

from nanochat.backends.numba.ops import NumbaOps
from nanochat.backends.numba.pending import realize
from nanochat.presets import preset
from tests.parity.random_models import random_packed_weights

CONFIG = preset("tiny")


@pytest.fixture(autouse=True)
def _no_search_for_circles() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


def test_what_a_site_gives_is_freed_with_the_last_name_of_it() -> None:
    ops = NumbaOps()
    layer = ops.prepare(random_packed_weights(CONFIG, seed=0)).layers[0]
    site = layer.mixer_site
    assert site.mhc is not None
    streams = np.ones((1, 3, CONFIG.num_streams, CONFIG.width), np.float32)

    u, _, _ = ops.mhc_read(streams, site.mhc, mixer="lite", iterations=1, eps=1e-6)
    x = ops.rms_norm(u, site.norm, eps=1e-6)
    realize(x)
    left = [weakref.ref(u), weakref.ref(x)]
    del u, x

    assert [reference() for reference in left] == [None, None]
