"""Compiler options by platform."""

import jax
import jax.numpy as jnp
import pytest

from medinit_jax.core import compiler


@pytest.fixture(autouse=True)
def fresh():
    compiler.options.cache_clear()
    yield
    compiler.options.cache_clear()


def convolve(x, kernel):
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def test_convolutions_on_cpus_are_not_given_to_ynnpack():
    x, kernel = jnp.ones((2, 8, 8, 16)), jnp.ones((3, 3, 16, 16))
    assert compiler.options()
    compiled = compiler.jit(convolve).lower(x, kernel).compile().as_text()
    assert "convolution" in compiled
    assert "ynn_fusion" not in compiled


def test_arguments_reach_jit():
    assert compiler.jit(lambda n: n + 1, static_argnums=0)(2) == 3


def test_what_xla_flags_say_stays(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_experimental_ynn_fusion_type=eltwise")
    assert compiler.options() == {}


def test_an_option_that_xla_does_not_know_is_left_out(monkeypatch):
    monkeypatch.setattr(compiler, "_LIBRARY", "xla_cpu_no_such_option")
    assert compiler.options() == {}


def test_other_platforms_keep_their_defaults(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert compiler.options() == {}
