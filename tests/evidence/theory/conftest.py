"""The toy and its laws, enumerated once for all tests of the theory."""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from torch import Tensor

from evidence.theory.check import Check
from evidence.theory.checks import run
from evidence.theory.law import Law, enumerate_laws, objective_gradients
from evidence.theory.toy import Masks, Toy, all_masks, build_toy


@dataclass(frozen=True, kw_only=True)
class Exact:
    toy: Toy
    masks: Masks
    laws: Sequence[Law]
    gradients: Tensor


@pytest.fixture(scope="session")
def exact() -> Exact:
    toy = build_toy()
    masks = all_masks(toy, toy.exploration)
    laws = enumerate_laws(toy, masks, toy.exploration)
    return Exact(toy=toy, masks=masks, laws=laws, gradients=objective_gradients(toy, masks, toy.exploration))


@pytest.fixture(scope="session")
def quick() -> dict[str, Check]:
    """The checks that need no trained model, as `run` makes them."""
    return {check.id: check for check in run(seed=0, quick=True)}
