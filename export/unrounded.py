"""This file holds a reference that computes with activations as they are, as runtimes do that round none."""

import numpy as np

from nanochat import ternary
from nanochat.backends.reference import Leaf, ReferenceOps
from nanochat.weights import Dense, Int8, Latent, Stored, Ternary, Weights, map_leaves

__all__ = ["UnroundedOps"]


class UnroundedOps(ReferenceOps):
    """`ReferenceOps` on dense weights of the same values, four bytes for each; what is dense it does not round."""

    name = "reference without rounded activations"

    def prepare(self, weights: Weights[Stored]) -> Weights[Leaf]:
        """Dequantise all leaves."""
        return map_leaves(_dense, weights)


def _dense(name: str, leaf: Stored) -> Leaf:
    match leaf:
        case Ternary():
            codes = ternary.unpack(leaf.packed, columns=leaf.columns, name=name)
            return ternary.dequantize(codes, leaf.scales)
        case Int8():
            return ternary.dequantize(leaf.codes, leaf.scales[:, None])
        case Dense():
            return leaf.values.astype(np.float32)
        case Latent():
            raise AssertionError
