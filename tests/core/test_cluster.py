"""Several processes: they meet, agree, share devices, and none waits for one that failed."""

import os
import re
import socket
import subprocess
import sys

import pytest
from processes import MAIN, await_that, begin, flags_of, free_port, needs_gloo, outcome
from tiny_pretrain import CONFIGS

from medinit_jax.core import cluster
from medinit_jax.core.errors import UsageError
from medinit_jax.core.interrupt import SENTENCE
from medinit_jax.core.membership import Cluster, joined

TALK = """
    import sys
    import jax, jax.numpy as jnp, numpy as np
    from medinit_jax.core import cluster
    from medinit_jax.core.membership import Cluster, joined
    from medinit_jax.core.errors import UsageError
    from medinit_jax.core.parallel import Parallel, all_gather, all_sum, own_devices

    rank = int(sys.argv[2])
    def refused(function):
        try:
            function()
        except UsageError as error:
            return str(error)

    with joined(Cluster("", sys.argv[1], 2, rank, 60)):
        assert cluster.first() == (rank == 0) and cluster.share() == (rank, 2)
        assert cluster.everyone("number", str(rank)) == ["0", "1"]
        assert cluster.any_of(rank == 1) and not cluster.any_of(False)
        assert cluster.once(lambda: {"rank": rank}) == {"rank": 0}
        def fails():
            raise UsageError("Not so.")
        assert refused(lambda: cluster.once(fails)) == "Not so."
        news = [cluster.any_after(step, step == 2 and rank == 1) for step in (1, 2, 3)]
        assert news == [False, True, False]
        cluster.check_alike("data", {"a": 1, "b": [2]})
        told = refused(lambda: cluster.check_alike("data", {"a": 1, "b": [2 + rank]}))
        assert "b is [2] on process 0 and [3] on process 1" in told, told

        parallel = Parallel()
        assert parallel.size == 4 and parallel.process == (rank, 2)
        assert own_devices().size == 2 and own_devices().process == (0, 1)
        batch = np.arange(24, dtype=np.float32).reshape(8, 3)
        own = batch[4 * rank : 4 * rank + 4]
        mean = jax.jit(lambda x: x.mean(0), out_shardings=parallel.everywhere)
        np.testing.assert_allclose(jax.device_get(mean(parallel.spread(own))), batch.mean(0))
        parts = parallel.map(lambda x: x.sum())(parallel.shard(own))
        assert float(parallel.total(parts)) == batch.sum()
        split = parallel.split(lambda x, w: x + w * x.mean())(own, np.float32(2))
        assert split.shape == (4, 2, 3)
        for part in split.addressable_shards:
            rows = slice(2 * part.index[0].start, 2 * part.index[0].start + 2)
            np.testing.assert_allclose(part.data[0], batch[rows] + 2 * batch.mean())
        state = parallel.replicate({"a": jnp.arange(3.0), "n": np.int32(4)})
        assert state["a"].is_fully_replicated and int(state["n"]) == 4
        copies = parallel.total(parallel.copy(state["a"]))
        np.testing.assert_array_equal(jax.device_get(copies), 4 * np.arange(3.0))
        square = parallel.sharded(lambda x: all_sum((x * all_gather(x).sum()).sum()))
        assert float(jax.jit(square)(parallel.spread(own))) == batch.sum() ** 2
        for world in (parallel, Parallel([d for d in jax.devices() if d.id % 2 == 0])):
            here, there = world.own, world.local(world.replicate({"a": jnp.arange(3.0)}))
            assert here.process == (0, 1) and here.size == world.size // 2
            assert there["a"].is_fully_addressable
            apart = jax.jit(lambda tree: jax.tree.map(lambda x: x + 4 * rank, tree))(there)
            mean = world.mean_over_processes(apart)
            np.testing.assert_array_equal(jax.device_get(mean["a"]), 2 + np.arange(3.0))
            assert mean["a"].devices() == set(world.devices)
        wide = np.random.default_rng(rank).normal(size=(3, 2))
        both = [np.random.default_rng(i).normal(size=(3, 2)) for i in range(2)]
        np.testing.assert_array_equal(parallel.gather(wide), np.concatenate(both))
    print("left")
"""
MEET = """
    import sys
    import time
    from pathlib import Path
    from medinit_jax.core import cluster
    from medinit_jax.core.membership import Cluster, joined

    rank = int(sys.argv[2])
    with joined(Cluster("", sys.argv[1], 2, rank, 60, heartbeat=10)):
        (Path(sys.argv[3]) / str(rank)).touch()
        if rank == int(sys.argv[4]):
            time.sleep(500)
        cluster.meet()
"""
FAIL = """
    import sys
    from medinit_jax.core import cluster, membership
    from medinit_jax.core.membership import Cluster, joined
    from medinit_jax.core.errors import UsageError
    from medinit_jax.core.interrupt import Preempted

    membership._FAREWELL = 3.0
    rank = int(sys.argv[2])
    errors = {
        "use": UsageError("The camera is broken; mend it."),
        "disk": OSError(28, "No space left on device", "runs/a/log"),
        "defect": ZeroDivisionError("by nothing"),
        "preempted": Preempted(),
        "stopped": KeyboardInterrupt(),
    }
    with joined(Cluster("", sys.argv[1], 2, rank, 60)):
        cluster.meet()
        # Once they have met, which may take longer than that.
        membership._MEET = 1
        if rank == int(sys.argv[3]):
            raise errors[sys.argv[4]]
        cluster.meet()
"""


def in_two(script, *more):
    place = f"127.0.0.1:{free_port()}"
    return outcome([begin(script, [place, rank, *more]) for rank in range(2)])


@needs_gloo
def test_two_processes_agree_and_share_their_devices():
    for code, out, err in in_two(TALK):
        assert code == 0 and out.endswith("left\n"), err


@needs_gloo
@pytest.mark.parametrize(
    ("failing", "kind", "code", "words"),
    [
        # The first one holds the service by which they talk, the other does not.
        (0, "use", 2, "The camera is broken; mend it."),
        (1, "use", 2, "The camera is broken; mend it."),
        (0, "disk", 2, "runs/a/log could not be written (No space left on device); make room"),
        (1, "defect", 2, "by nothing"),
        (0, "stopped", 130, SENTENCE),
        (1, "preempted", 75, SENTENCE),
    ],
)
def test_none_waits_for_a_process_that_failed(failing, kind, code, words):
    found = in_two(FAIL, failing, kind)
    assert [one for one, *_ in found] == [code, code], found
    last = found[failing][2].splitlines()[-1]
    assert last.startswith(words) or (kind == "defect" and last.endswith(words))
    assert ("Traceback" in found[failing][2]) == (kind == "defect")
    told = f"Process {failing} ended, and all with it: {words}"
    assert told in found[1 - failing][2] and "Traceback" not in found[1 - failing][2]


@needs_gloo
@pytest.mark.parametrize("killed", [0, 1])
def test_a_process_that_vanishes_ends_the_others(killed, tmp_path):
    place = f"127.0.0.1:{free_port()}"
    started = [begin(MEET, [place, rank, tmp_path, killed]) for rank in range(2)]
    await_that(lambda: len(list(tmp_path.iterdir())) == 2, started)
    started[killed].kill()
    found = outcome(started, timeout=120)
    for rank, (code, _, err) in enumerate(found):
        assert code < 0 and f"Process {rank} was ended from outside" in err.splitlines()[-1]


@needs_gloo
def test_what_does_not_fit_together_is_said_by_all(tmp_path):
    """One seed is another; one process counts three."""
    config = f"--config={CONFIGS}/swcl.py:simclr"

    def run(first, second):
        return outcome(
            [begin(MAIN, [f"--workdir={tmp_path}/run", *one]) for one in (first, second)]
        )

    port = free_port()
    command = [[config, *flags_of(rank, port)] for rank in range(2)]
    for code, _, err in run(command[0], [*command[1], "--config.seed=7"]):
        assert code == 2 and "config.seed is 42 on process 0 and 7 on process 1" in err
    port = free_port()
    found = run([config, *flags_of(0, port)], [config, *flags_of(1, port, 3)])
    for code, _, err in found:
        assert code == 2 and "--processes=2, process 1 with 3; start all with the same" in err
    assert not (tmp_path / "run").exists()


@needs_gloo
def test_a_route_of_one_process_says_so_through_the_launcher(tmp_path):
    launcher = CONFIGS.parent / "launch" / "local.sh"
    command = [launcher, "2", f"--config={CONFIGS}/export.py", f"--workdir={tmp_path}/run"]
    environment = os.environ | {"PYTHON": sys.executable}
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert found.returncode == 2 and "The route export runs in one process" in found.stderr
    assert not (tmp_path / "run").exists()
    assert subprocess.run([launcher, "--help"], capture_output=True, text=True).returncode == 2


def test_processes_that_do_not_meet_are_told(tmp_path):
    arguments = [f"--config={CONFIGS}/swcl.py:simclr", "--cluster_timeout=1"]
    started = [begin(MAIN, [*arguments, *flags_of(rank, free_port())]) for rank in range(2)]
    for code, _, err in outcome(started):
        assert code == 2 and "did not meet all 2 processes" in err
        assert "Traceback" not in err and "stack trace" not in err


def test_a_port_that_is_taken_is_named():
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        place = Cluster("", f"127.0.0.1:{port}", 2, 0)
        with pytest.raises(UsageError, match=f"Port {port} of .* cannot be opened"):
            with joined(place):
                pass


@pytest.mark.parametrize(
    ("place", "words"),
    [
        (Cluster("slurm"), "--cluster=slurm is unknown"),
        (Cluster("auto", "host:1", 2, 0), "leave them out"),
        (Cluster("", "host:1"), "belong together"),
        (Cluster("", "", 2, 0), "belong together"),
        (
            Cluster("", "host:1", 2, 2),
            "--process=2 is none of --processes=2; count them from 0 to 1",
        ),
        (Cluster("", "host:1", 2, -1), "--process=-1 is none"),
        (Cluster("", "host", 2, 0), "no HOST:PORT"),
        (Cluster("", "host:0", 2, 0), "no HOST:PORT"),
        (Cluster("", "host:1", 2, 0, 0), "--cluster_timeout=0"),
        (Cluster("", "host:1", 2, 0, heartbeat=9), "--cluster_heartbeat=9 is too short"),
    ],
)
def test_flags_that_do_not_fit_are_one_sentence(place, words):
    with pytest.raises(UsageError, match=re.escape(words)), joined(place):
        pass


def test_one_process_talks_to_itself():
    with joined(Cluster()):
        assert cluster.alone() and cluster.first() and cluster.share() == (0, 1)
    assert cluster.everyone("number", "0") == ["0"] and cluster.once(lambda: (1, 2)) == (1, 2)
    assert cluster.any_of(True) and cluster.any_after(3, True) and not cluster.told(False)
    assert cluster.first_then_others(lambda: 5) == 5
    assert not cluster.console().quiet
