import dataclasses
from collections import Counter

import numpy as np
import pytest

from medinit_jax.arch import families
from medinit_jax.arch.families import Member, canonical_hash, draw_member, held_out, is_held_out
from medinit_jax.arch.graph import ancestors, build_graph
from medinit_jax.arch.space import get_space
from medinit_jax.arch.vocabulary import NODE_TYPES, TYPE_INDEX
from medinit_jax.models import resnet


@pytest.fixture(scope="module")
def members():
    return [draw_member(np.random.default_rng([7, i]), 32) for i in range(250)]


def test_all_families_norms_and_types_turn_up(members):
    assert {member.family for member in members} == set(families.FAMILIES)
    types = Counter(
        NODE_TYPES[kind] for m in members for kind in set(build_graph(m.program(32, 4)).node_type)
    )
    assert {"gn", "in", "ln", "bn", "cse", "sep_conv", "group_conv", "msa", "pos_enc", "embed",
            "layer_scale", "max_pool", "glob_avg", "sum", "concat"} <= set(types)  # fmt: skip


def test_members_are_networks(members):
    for member in members:
        program = member.program(32, 4)
        assert program.num_classes == 4 and 0 < program.num_parameters <= families.MAX_PARAMETERS
        graph = build_graph(program)
        whole = ancestors(graph, graph.head)
        assert len(whole.node_type) == len(graph.node_type), "a node that leads nowhere"


@pytest.mark.parametrize("image_size", [32, 224])
def test_named_networks_are_held_out(image_size):
    programs = held_out(image_size)
    assert set(programs) >= {"resnet18", "resnet50", "resnet101", "regnet_y_1_6gf", "mobilenet_v2",
                             "vgg16", "unet"}  # fmt: skip
    hashes = {name: canonical_hash(build_graph(p)) for name, p in programs.items()}
    assert len(set(hashes.values())) == len(hashes)
    assert all(is_held_out(program, image_size) for program in programs.values())


def test_the_draw_steps_over_a_held_out_network(monkeypatch):
    """A family that yields ResNet-18 first and something else afterwards."""
    draws = []

    def draw(dice):
        draws.append(1)
        depths = (2, 2, 2, 2) if len(draws) == 1 else (2, 2, 2, 1)
        options = (("stem", dice.stem), ("width", 64))
        return Member("resnet", resnet.resnet, resnet.Variant(depths, False), options)

    monkeypatch.setattr(families, "FAMILIES", {"resnet": draw})
    monkeypatch.setattr(families, "MAX_PARAMETERS", 10**9)
    member = draw_member(np.random.default_rng(0), 32)
    assert member.variant.depths == (2, 2, 2, 1) and len(draws) == 2


def test_the_hash_ignores_order_names_and_classes():
    shape = (32, 32, 3)
    graph = build_graph(resnet.resnet("resnet18", shape, 4, stem="small"))
    other = build_graph(resnet.resnet("resnet18", shape, 7, stem="small"))
    assert canonical_hash(graph) == canonical_hash(other)
    order = np.random.default_rng(0).permutation(len(graph.node_type))
    place = np.argsort(order)
    shuffled = graph._replace(
        node_type=graph.node_type[order],
        shape=graph.shape[order],
        head=graph.head[order],
        senders=place[graph.senders],
        receivers=place[graph.receivers],
    )
    assert canonical_hash(shuffled) == canonical_hash(graph)
    program = resnet.resnet("resnet18", shape, 4, stem="small", width=80)
    wider = build_graph(program)
    assert canonical_hash(wider) != canonical_hash(graph)
    assert canonical_hash(wider, widths=False) == canonical_hash(graph, widths=False)
    assert is_held_out(program, 32)


def wirings(space, split, count):
    """What members of families compute, whatever their widths; and their families."""
    drawn = [space.sample(split, index) for index in range(count)]
    members = [one for one in drawn if isinstance(one, Member)]
    hashes = {canonical_hash(build_graph(m.program(32, 4)), widths=False) for m in members}
    return hashes, Counter(m.family for m in members)


def test_compact_members_are_narrow_and_dealt_to_the_splits():
    space = get_space("compact", 32)
    known, families_seen = wirings(space, "train", 300)
    assert set(families_seen) == set(families.COMPACT_FAMILIES)
    assert sum(families_seen.values()) == 150
    first = [space.sample("train", index) for index in range(8)]
    in_turn = [one.family for one in first if isinstance(one, Member)]
    assert in_turn == list(families.COMPACT_FAMILIES)
    for split in ("val", "test"):
        judged, seen = wirings(space, split, 60)
        assert len(judged) > 5 and len(seen) == 4 and not judged & known
    programs = [space.program("train", index, 4) for index in range(60)]
    assert max(build_graph(p).node_type.max() for p in programs) <= TYPE_INDEX["group_conv"]
    assert max(p.num_parameters for p in programs) < 10**6
    held = {canonical_hash(build_graph(p), widths=False) for p in held_out(32).values()}
    assert not known & held


def test_the_mixed_space_draws_both_and_the_same_again():
    space = get_space("mixed", 32)
    drawn = [space.sample("train", index) for index in range(200)]
    share = np.mean([isinstance(arch, Member) for arch in drawn])
    assert 0.2 < share < 0.4
    first = next(i for i, arch in enumerate(drawn) if isinstance(arch, Member))
    assert space.sample("train", first) == drawn[first]
    assert (drawn[first].split, drawn[first].index) == ("train", first)
    assert space.program("train", first, 4).num_classes == 4
    channels = Counter(arch.channels for arch in drawn if isinstance(arch, Member))
    assert set(channels) == {1, 3} and channels[1] < channels[3]
    gray = next(i for i, a in enumerate(drawn) if isinstance(a, Member) and a.channels == 1)
    assert space.program("train", gray, 4).input_shape == (32, 32, 1)
    judged = (space.sample("val", index) for index in range(60))
    assert all(arch.channels == 3 for arch in judged if isinstance(arch, Member))
    plain = get_space("deepnets", 32)
    assert not any(isinstance(plain.sample("train", i), Member) for i in range(30))
    assert dataclasses.replace(drawn[first], index=0) != drawn[first]
