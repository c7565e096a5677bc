"""The toy, enumerated once for all tests of the theory."""

import pytest

from evidence.theory.toy import Exact, build_toy, enumerate_toy


@pytest.fixture(scope="session")
def exact() -> Exact:
    return enumerate_toy(build_toy())
