"""Shared by the tests of diffusion."""

import jaxtyping
import pytest


@pytest.fixture
def unchecked():
    """The library as its users have it, without shape checks at run time: its own errors are to be seen."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
