"""Counts read off compiled programs follow the formulas, and times follow from counts by hand."""

import sys
from pathlib import Path

import jax
import pytest
from tiny_pretrain import NAME, tiny_zoo

from medinit_jax.arch.tape import signatures
from medinit_jax.core.parallel import Parallel
from medinit_jax.hyper.bilevel import meta_batch
from medinit_jax.hyper.initializer import graph_of


@pytest.fixture(scope="module")
def scaling():
    folder = str(Path(__file__).parents[2] / "benchmarks")
    sys.path.insert(0, folder)
    yield pytest.importorskip("scaling")
    sys.path.remove(folder)


@pytest.fixture(scope="module")
def counting(scaling):
    return sys.modules["compiled_steps"]


@pytest.fixture(scope="module")
def machines(scaling):
    return sys.modules["machines"]


@pytest.fixture(scope="module")
def pretraining(counting):
    """Counts of two images on each of one and of four devices, and with moments in parts."""
    config = counting.experiment("swcl.py", "swcl")
    with config.unlocked():
        config.data.size = 16
        config.model.name, config.model.norm = NAME, "none"
    found = {}
    for devices, sharded in ((1, False), (4, False), (4, True)):
        parallel = Parallel(jax.devices()[:devices])
        config.optim.sharded = sharded
        with tiny_zoo():
            found[(devices, "parts") if sharded else devices] = counting.pretraining(
                config, parallel, 2
            )
    return found


def test_devices_of_route_2_send_what_the_formula_says(pretraining):
    assert pretraining[1]["crossing"] == 0
    counts = pretraining[4]
    assert counts["crossing"] == counts["predicted"] > counts["gradient"] > 5e4


def test_devices_with_moments_in_parts_send_parameters_too(pretraining):
    whole, parts = pretraining[4], pretraining[4, "parts"]
    # Norms are added up in parts, too: some numbers for each array.
    assert parts["crossing"] == pytest.approx(parts["predicted"], rel=0.02)
    more = parts["crossing"] - whole["crossing"]
    assert more == pytest.approx(whole["gradient"], rel=0.02)
    assert parts["moments"] < 0.3 * whole["moments"]
    assert whole["moments"] == pytest.approx(2 * whole["gradient"], abs=16)


def test_a_device_of_route_2_does_the_same_however_many_there_are(pretraining):
    one, four = pretraining[1], pretraining[4]
    assert four["flops"] == pytest.approx(one["flops"], rel=0.05)
    assert four["moved"] == pytest.approx(one["moved"], rel=0.15)


@pytest.fixture(scope="module")
def bilevel_counts(counting):
    """Counts of two blocks of one small network on one and on two devices."""
    config = counting.experiment("hyper.py", "")
    with config.unlocked():
        config.pretext.name = "rotation"
        config.train.bn_group, config.train.meta_batch = 4, 1
        config.hyper.max_shape = (8, 8, 3, 3)
    found = {}
    for devices in (1, 2):
        parallel = Parallel(jax.devices()[:devices])
        with config.unlocked():
            config.train.batch_size = 4 * devices
        bilevel = counting.make_bilevel(config, parallel)
        program = min(
            (bilevel.space.program("train", i, 4) for i in range(20)), key=lambda p: len(p.calls)
        )
        batch = meta_batch([program], [graph_of(bilevel.module, program)], bilevel.module)
        found[devices] = counting.blocks(bilevel, batch.programs, 2), batch, bilevel
    return found


def test_blocks_of_route_1_send_nothing_and_do_the_same_everywhere(bilevel_counts):
    (one, batch, _), (two, _, _) = bilevel_counts[1], bilevel_counts[2]
    assert two["crossing"] == 0
    assert [f[0] for f in one["functions"]] == [f[0] for f in two["functions"]]
    flops = [sum(n * f for n, f, _ in counts["functions"]) for counts in (one, two)]
    assert flops[1] == pytest.approx(flops[0], rel=0.1)
    assert max(f[0] for f in one["functions"]) <= len(signatures(batch.programs[0]))


def test_route_1_adds_up_what_was_predicted(counting, bilevel_counts):
    _, batch, bilevel = bilevel_counts[2]
    counts = counting.hypernetwork(bilevel, batch)
    assert counts["crossing"] == counts["predicted"] > 0
    assert counts["spread_crossing"] == counts["spread_predicted"] > 0


def test_hosts_with_architectures_of_their_own_start_their_share(scaling, machines):
    """Two hosts of two devices, by hand: half the functions each, and the mean of a gradient."""
    config = scaling.experiments()[0]
    with config.unlocked():
        config.train.update(meta_batch=4, batch_size=32, bn_group=16, steps=3600)
    one = {
        "hypernetwork": {"flops": 0.0, "moved": 0.0, "raw_bytes": 0.0, "theta_bytes": 7e8},
        "functions": [(8, 4e11, 0.0)], "steps": 2, "launches": 1000, "views": 16,
    }  # fmt: skip
    machine = machines.Machine(4, 2, flops=1e12, memory_rate=1e9, memory=1e9, link=1e9, network=1e8)
    together = scaling.bilevel_on(machine, {"route1": one}, config)
    apart = scaling.bilevel_on(machine, {"route1": one}, config, hosts=2)
    assert (together["host_ms"], apart["host_ms"]) == pytest.approx((50 + 8, 25 + 4))
    # Four networks of a second each; sums of nothing only let devices agree, within a host once.
    assert (together["device_ms"], apart["device_ms"]) == pytest.approx((4000, 2000))
    mean = 1e3 * machines.all_reduce_seconds(7e8, machine)
    assert together["between_ms"] == pytest.approx(4 * 2 * 0.03)
    assert apart["between_ms"] == pytest.approx(2 * 0.03 + mean)
    assert (together["views"], apart["views"]) == (64, 32)
    assert apart["efficiency"] == pytest.approx(8000 / (4 * apart["ms"]))
    # Two groups of batch statistics: two devices on each host.
    assert (together["devices_of_paper"], apart["devices_of_paper"]) == (2, 4)
    assert apart["hours_of_paper"] == pytest.approx(apart["ms"] / 1e3)


def test_collectives_are_read_in_all_their_spellings(counting):
    class Program:
        def as_text(self):
            return """
  %a = f32[8,2]{1,0} all-gather(%x), dimensions={0}
  %b = (f32[3]{0}, bf16[5]{0}, /*index=2*/s32[]) all-reduce-start(%y, %z)
  %c = f32[4]{0} reduce-scatter(%x)
  %d = f32[100]{0} add(%x, %x)
"""

    assert counting.crossing(Program(), 1) == 0
    assert counting.crossing(Program(), 2) == 64 + (12 + 10 + 4) + 2 * 16


def test_times_follow_from_counts_by_hand(machines):
    machine = machines.Machine(4, 2, flops=1e12, memory_rate=1e9, memory=1e9, link=1e9, network=1e8)
    work = machines.Work(4e11, 1.0)
    assert work.seconds(machine) == pytest.approx(4e11 / 0.4e12)
    assert machines.Work(1.0, 7e8).seconds(machine) == pytest.approx(1.0)
    one = machine._replace(devices=1)
    assert machines.all_reduce_seconds(1e9, one) == 0
    within = machine._replace(devices=2)
    # Half of it is sent twice, at 0.7 of the link.
    assert machines.all_reduce_seconds(7e8, within) == pytest.approx(1 + 30e-6)
    # Between two hosts every device sends its half of the sum, half of that twice.
    between = 7e8 / 2 / (0.7 * 1e8)
    assert machines.all_reduce_seconds(7e8, machine) == pytest.approx(1 + between + 60e-6)
    step = machines.step([(2, work)], machine, 0, 0, launches=10, architectures=3)
    assert step.device == pytest.approx(2) and step.host == pytest.approx(10 * 50e-6 + 6e-3)
    assert step.computing == pytest.approx(2)
    together = machines.Step(1, 2, 2, 1)
    assert machines.efficiency(machines.Step(1, 8, 0, 0), together, 4) == 0.5
    assert machines.Step(1, 1, 0, 3).seconds == 3
