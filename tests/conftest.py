"""Test settings: two CPU devices, a persistent compilation cache, strict rank promotion, shapes checked at run time.

Everything that must be set before JAX starts is set here, before its first import.
"""

import os
import pathlib
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "--xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
os.environ.setdefault("MPLBACKEND", "agg")

import jax
import jaxtyping
import pytest

# One folder per Python: the two versions carry different JAX releases, whose entries don't mix.
CACHE = pathlib.Path(__file__).parent.parent / ".jax_cache" / f"{sys.version_info[0]}.{sys.version_info[1]}"
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
jax.config.update("jax_numpy_rank_promotion", "raise")

jaxtyping.install_import_hook("jaxnets", "beartype.beartype")


@pytest.fixture(params=["nojit"] if jax.config.jax_disable_jit else ["jit", "nojit"])
def jit(request):
    """`jax.jit` and its absence: under JAX_DISABLE_JIT=1 only the latter, so that no test runs twice the same way."""
    if request.param == "jit":
        yield jax.jit
    else:
        with jax.disable_jit():
            yield lambda f, **_: f


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture
def unchecked():
    """The library as its users have it, without shape checks at run time: its own errors are to be seen."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
