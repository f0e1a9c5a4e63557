"""The tape against plain reverse-mode differentiation of the same program."""

import functools
import logging
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medinit_jax.arch.cell_blocks import (
    OPS,
    add_block,
    concat_block,
    factorized_reduce,
    head_block,
    imagenet_stem,
    patch_stem,
    simple_stem,
    subsample_block,
)
from medinit_jax.arch.program import ProgramBuilder
from medinit_jax.arch.tape import Tape, crowded, signatures
from medinit_jax.core.parallel import Parallel
from medinit_jax.hyper.pretexts.rotation import Rotation
from medinit_jax.models.network import apply_with_batch_statistics
from medinit_jax.models.resnet import resnet

BATCH, GROUP, CLASSES = 8, 2, 4
LOSS = Rotation().loss


def op(build, name, value, prefix, stride=1, norm=True):
    return build(OPS[name](16, stride, norm), (value,), prefix)


def convolutional():
    """Every convolution, both pools, squeeze-excite, sums, concatenations, a flat head."""
    build = ProgramBuilder((12, 12, 3))
    stem = build(simple_stem(16, 3, False, True, True), (0,), "stem")
    other = build(simple_stem(16, 5, False, True, False), (0,), "other")
    value = build(add_block(), (stem, other))
    for name in ("sep_conv_3x3", "dil_conv_5x5", "conv_7x1_1x7", "conv_3x3", "conv_1x1"):
        value = build(add_block(), (op(build, name, value, name), stem))
    value = build(add_block(), (value, value))
    pools = [op(build, f"{kind}_pool_3x3", value, "", 2) for kind in ("max", "avg")]
    both = build(concat_block((True, False, True)), pools)
    value = build(factorized_reduce(16), (value,), "reduce")
    value = build(concat_block((True, True)), (op(build, "cse", value, "cse"), both))
    build(head_block(False, 8, CLASSES), (value,), "classifier")
    return build.build()


def attending():
    """Patches, positions, attention, strided squeeze-excite and skips, a pooled head."""
    build = ProgramBuilder((12, 12, 3))
    stem = build(patch_stem(16, False), (0,))
    value = op(build, "msa", stem, "msa0")
    value = build(add_block(), (op(build, "cse", value, "cse"), stem))
    small = build(subsample_block(), (value,))
    value = build(add_block(), (op(build, "msa", value, "msa1", stride=2), small))
    build(head_block(True, 8, CLASSES), (value,), "classifier")
    return build.build()


def strided():
    """The stem of two calls, strided forms, without normalization in part."""
    build = ProgramBuilder((12, 12, 3))
    first, second = imagenet_stem(16, 3, False, True)
    one = build(first, (0,), "stem0")
    two = build(second, (one,), "stem1")
    value = op(build, "sep_conv_5x5", two, "sep", 2, norm=False)
    value = build(add_block(), (value, op(build, "dil_conv_3x3", two, "dil", 2)))
    value = build(add_block(), (value, op(build, "conv_5x5", two, "conv", 2)))
    build(head_block(True, 0, CLASSES), (value,), "classifier")
    return build.build()


PROGRAMS = {
    "convolutional": convolutional,
    "attending": attending,
    "strided": strided,
}


def draw(program, dtype):
    random = np.random.default_rng(0)
    parameters = {
        name: {leaf: jnp.asarray(0.5 * random.normal(size=s), dtype) for leaf, s in leaves.items()}
        for name, leaves in program.parameter_shapes().items()
    }
    images = random.normal(size=(BATCH, *program.input_shape)).astype(dtype)
    return parameters, images, np.arange(BATCH, dtype=np.int32) % CLASSES


def run(tape, program, parameters, images, targets):
    parallel = tape.parallel
    views, targets = parallel.shard((images, targets))
    loss, accuracy, gradient = tape.loss_and_gradient(
        program, parallel.copy(parameters), views, targets
    )
    return loss, accuracy, parallel.total(gradient)


def assert_equal_trees(own, expected, tolerance):
    own, expected = jax.device_get((own, expected))
    assert own.keys() == expected.keys()
    for name, leaves in expected.items():
        assert own[name].keys() == leaves.keys()
        for leaf, value in leaves.items():
            assert own[name][leaf].shape == value.shape
            error = np.linalg.norm(own[name][leaf] - value)
            assert error <= tolerance * np.linalg.norm(value), (name, leaf)


@pytest.fixture
def wide():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_gradient_is_that_of_the_whole_program(wide, name):
    program = PROGRAMS[name]()
    parameters, images, targets = draw(program, np.float64)

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def whole(parameters):
        logits = apply_with_batch_statistics(program, parameters, jnp.asarray(images), GROUP)
        return LOSS(logits, jnp.asarray(targets))

    (value, expected_accuracy), expected = whole(parameters)
    tape = Tape(Parallel(jax.devices()[:1]), GROUP, LOSS, dtype=jnp.float64)
    loss, accuracy, gradient = run(tape, program, parameters, images, targets)
    assert float(loss) == pytest.approx(float(value), rel=1e-12)
    assert float(accuracy) == float(expected_accuracy)
    assert_equal_trees(gradient, expected, 1e-10)
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {jnp.dtype("float64")}


def test_a_network_of_one_channel_sees_the_mean_of_three(wide):
    build = ProgramBuilder((6, 6, 1))
    value = build(simple_stem(8, 3, False, False, True), (0,), "stem")
    build(head_block(True, 0, CLASSES), (value,), "classifier")
    program = build.build()
    parameters, _, targets = draw(program, np.float64)
    images = np.random.default_rng(1).normal(size=(BATCH, 6, 6, 3))
    tape = Tape(Parallel(jax.devices()[:1]), GROUP, LOSS, dtype=jnp.float64)
    found = run(tape, program, parameters, images, targets)
    expected = run(tape, program, parameters, images.mean(-1, keepdims=True), targets)
    assert float(found[0]) == pytest.approx(float(expected[0]), rel=1e-12)
    assert_equal_trees(found[2], expected[2], 1e-12)


def test_the_programs_hold_every_block_of_the_design_space():
    kinds = {s.kind for make in PROGRAMS.values() for c in make().calls for s in c.block.steps}
    assert kinds == {
        "add", "attention", "avg_pool", "batch_norm", "concat", "conv", "dense", "flatten", "gate",
        "gelu", "global_pool", "hard_swish", "layer_norm", "max_pool", "position", "relu",
        "squeeze", "subsample", "zeros",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["attending", "strided"])
def test_four_devices_give_what_one_gives(wide, name):
    program = PROGRAMS[name]()
    drawn = draw(program, np.float64)
    results, logits = [], []
    for count in (1, 4):
        tape = Tape(Parallel(jax.devices()[:count]), GROUP, LOSS, dtype=jnp.float64)
        results.append(run(tape, program, *drawn))
        views = tape.parallel.shard(drawn[1])
        parameters = tape.parallel.copy(drawn[0])
        logits.append(np.asarray(tape.logits(program, parameters, views)).reshape(BATCH, CLASSES))
        forward = tape.loss(program, parameters, views, tape.parallel.shard(drawn[2]))
        np.testing.assert_allclose(forward, results[-1][:2], rtol=1e-12)
    (loss_1, accuracy_1, gradient_1), (loss_4, accuracy_4, gradient_4) = results
    np.testing.assert_allclose(loss_4, loss_1, rtol=1e-12)
    np.testing.assert_allclose(accuracy_4, accuracy_1, rtol=1e-12)
    np.testing.assert_allclose(logits[1], logits[0], rtol=1e-10)
    assert_equal_trees(gradient_4, gradient_1, 1e-10)


def zeros(signature_shapes):
    return jax.tree.map(
        lambda shape: jnp.zeros(shape), signature_shapes, is_leaf=lambda x: isinstance(x, tuple)
    )


@pytest.mark.parametrize("devices", [1, 4])
def test_warming_up_compiles_what_a_run_uses(caplog, devices):
    program = attending()
    drawn = draw(program, np.float32)
    tape = Tape(Parallel(jax.devices()[:devices]), GROUP, LOSS)
    layouts = {s: program.layout(i).parameters for i, s in enumerate(signatures(program))}
    reported = []
    tape.warm_up(
        layouts,
        BATCH,
        lambda signature: zeros(dict(layouts[signature])),
        report=lambda: reported.append(1),
    )
    assert set(tape.compiled) == set(signatures(program)) and len(reported) == len(layouts)
    with caplog.at_level(logging.WARNING), jax.log_compiles():
        run(tape, program, *drawn)
    assert set(tape.compiled) == set(layouts)
    sizes = {function._cache_size() for pair in tape.compiled.values() for function in pair}
    assert sizes == {1}
    # One device: blocks are jit(forward) and jit(<lambda>). Four: all are jit(per_device), of which
    # the loss and the sums of cotangents are compiled at their first use.
    messages = [r.getMessage() for r in caplog.records if r.getMessage().startswith("Compiling")]
    if devices == 1:
        assert not [m for m in messages if "forward" in m or "lambda>)" in m]
    else:
        assert sum("per_device" in m for m in messages) <= 3
    assert messages


def test_equal_blocks_are_compiled_once():
    program = resnet("resnet34", (12, 12, 3), CLASSES, "small", 4)
    tape = Tape(Parallel(jax.devices()[:1]), GROUP, LOSS)
    for signature in signatures(program):
        tape.functions(signature)
    assert len(program.calls) == 18 and len(tape.compiled) == 9


def test_blocks_are_dropped_where_a_process_may_hold_no_more(monkeypatch, caplog):
    program = attending()
    drawn = draw(program, np.float32)
    whole, small = (Tape(Parallel(jax.devices()[:1]), GROUP, LOSS) for _ in range(2))
    expected = run(whole, program, *drawn)
    used = list(dict.fromkeys(signatures(program)))
    monkeypatch.setattr("medinit_jax.arch.tape.crowded", lambda: len(small.compiled) >= 3)
    for got, want in zip(jax.tree.leaves(run(small, program, *drawn)), jax.tree.leaves(expected),
                         strict=True):  # fmt: skip
        np.testing.assert_array_equal(got, want)
    assert len(small.compiled) <= 3 < len(used) < small.built
    # The block used last stays.
    last = list(small.compiled)[-1]
    small.functions(used[0])
    assert last in small.compiled and list(small.compiled)[-1] == used[0]
    layouts = {s: program.layout(i).parameters for i, s in enumerate(signatures(program))}
    small.compiled.clear()
    small.warm_up(layouts, BATCH, lambda signature: zeros(dict(layouts[signature])), threads=1)
    assert list(small.compiled) == list(layouts)[:3]
    assert f"{len(layouts) - 3} blocks are compiled when they are needed" in caplog.text


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="mappings are Linux's")
def test_mappings_are_counted(monkeypatch):
    for share, answer in ((0.0, True), (1.0, False)):
        monkeypatch.setattr("medinit_jax.arch.tape._MAPPINGS", share)
        assert crowded() is answer


def test_only_what_reads_the_image_alone_goes_without_its_gradient():
    program = convolutional()
    reads = [call.prefix for call, s in zip(program.calls, signatures(program), strict=True)
             if s.reads_image]  # fmt: skip
    assert reads == ["stem", "other"]
    heads = [s.head for s in signatures(program)]
    assert heads == [""] * (len(heads) - 1) + ["3"]
