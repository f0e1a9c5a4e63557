"""The contrastive loss over two processes of two devices each: the gradient is that of one."""

import json
import os
import socket
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest
from jaxlib import _jax

from medinit_jax.swcl.supcon import supcon

IMAGES, LENGTH = 8, 6
SCRIPT = """
    import json, sys
    import jax
    place, rank = sys.argv[1], int(sys.argv[2])
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(place, 2, rank)
    import numpy as np
    from jax.sharding import NamedSharding, PartitionSpec
    from medinit_jax.core.parallel import AXIS, Parallel
    from medinit_jax.swcl.supcon import gathered_supcon

    given = np.load(sys.argv[3])
    parallel = Parallel(jax.devices())
    assert parallel.size == 4 and jax.local_device_count() == 2
    split = NamedSharding(parallel.mesh, PartitionSpec(AXIS))

    def place_on(array):
        return jax.make_array_from_callback(array.shape, split, lambda index: array[index])

    loss = parallel.sharded(lambda z, y: gathered_supcon(z, y, chunk=3))
    pull = jax.jit(jax.value_and_grad(loss), out_shardings=(None, split))
    value, gradient = pull(place_on(given["z"]), place_on(given["labels"]))
    rows = {str(s.index[0].start): np.asarray(s.data).tolist() for s in gradient.addressable_shards}
    print(json.dumps({"value": float(value.addressable_data(0)), "rows": rows}))
"""


@pytest.mark.skipif(
    not hasattr(_jax, "make_gloo_tcp_collectives"), reason="this jaxlib was built without gloo"
)
def test_the_gradient_over_two_processes_is_that_of_one(tmp_path):
    rng = np.random.default_rng(0)
    z = rng.normal(size=(IMAGES, 2, LENGTH)).astype(np.float32)
    z /= np.linalg.norm(z, axis=-1, keepdims=True)
    labels = rng.integers(0, 3, (IMAGES, 2)).astype(np.int32)
    np.savez(tmp_path / "given.npz", z=z, labels=labels)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{free.getsockname()[1]}"
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    started = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                textwrap.dedent(SCRIPT),
                place,
                str(rank),
                tmp_path / "given.npz",
            ],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [one.communicate(timeout=120) for one in started]
    finally:
        for one in started:
            one.kill()
    assert [one.returncode for one in started] == [0, 0], outputs
    found = [json.loads(out.splitlines()[-1]) for out, _ in outputs]
    value, gradient = jax.jit(jax.value_and_grad(supcon))(z, labels)
    rows = {int(start): part for one in found for start, part in one["rows"].items()}
    assert sorted(rows) == [0, 2, 4, 6]
    joined = np.concatenate([np.array(rows[start]) for start in sorted(rows)])
    np.testing.assert_allclose(joined, gradient, 0, 1e-6 * float(np.abs(gradient).max()))
    for one in found:
        assert one["value"] == pytest.approx(float(value), rel=1e-6)
