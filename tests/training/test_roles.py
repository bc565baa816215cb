"""Every parameter has the role whose rule updates it."""

import pytest

from nanochat.shapes import shapes
from nanochat.training.roles import role_of
from nanochat.weights import named_leaves
from tests.training.runs import recipe

MODEL = {
    "num_layers": 2,
    "layer_pattern": ["attention", "delta"],
    "num_experts": 4,
    "expert_width": 128,
    "coefficients": "dynamic",
    "loop_count": 2,
    "num_ahead": 1,
    "ahead_kind": "sequential",
    "tie_embeddings": False,
}
SPECS = dict(named_leaves(shapes(recipe(model=MODEL).model)))


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("embedding", "embedding"),
        ("head", "head"),
        ("norm", "norms"),
        ("layers.0.mixer.q", "matrices"),
        ("layers.0.mixer.q_norm", "norms"),
        ("layers.0.mixer_site.norm", "norms"),
        ("layers.0.mixer_site.mhc.read", "streams"),
        ("layers.0.mixer_site.mhc.mix", "streams"),
        ("layers.0.mixer_site.mhc.gates", "streams"),
        ("layers.0.mixer_site.mhc.projection", "projections"),
        ("layers.0.network.router", "router"),
        ("layers.0.network.networks.3.down", "matrices"),
        ("layers.1.mixer.gate", "matrices"),
        ("layers.1.mixer.k_conv", "convolutions"),
        ("layers.1.mixer.beta", "gates"),
        ("layers.1.mixer.log_rate", "gates"),
        ("layers.1.mixer.time_bias", "gates"),
        ("layers.1.mixer.norm", "norms"),
        ("exit.weight", "exits"),
        ("exit.norm", "exits"),
        ("ahead.0.mixer.o", "matrices"),
        ("ahead.0.network.router", "router"),
        ("joins.0.token", "matrices"),
        ("joins.0.token_norm", "norms"),
    ],
)
def test_a_parameter_has_the_role_of_what_it_is(name: str, role: str) -> None:
    assert role_of(name, SPECS[name]) == role
