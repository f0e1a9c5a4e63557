import numpy as np, jax
import sys, importlib.util
from pathlib import Path

spec = importlib.util.spec_from_file_location("tl", Path(__file__).parent / "test_logits.py")
tl = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tl)


def test_x(oracle):
    for n in tl.NETS:
        net = tl.network(oracle, n)
        g = tl.build_graph(net)
        o = oracle.graph(f"arch/{n}")
        print(
            n,
            len(g.node_type),
            len(o.node_type),
            np.array_equal(g.node_type, o.node_type),
            len(g.senders),
            len(o.senders),
        )
        if len(g.node_type) == len(o.node_type):
            d = np.where((g.shape != o.shape).any(1))[0]
            print("shape diff", d[:10], g.shape[d][:5], o.shape[d][:5])
            print(
                {tuple(e) for e in np.c_[g.senders, g.receivers, g.distance]}
                ^ {tuple(e) for e in np.c_[o.senders, o.receivers, o.distance]}
            )
        p = tl.predict(oracle.module, oracle.theta, g, net.parameter_shapes())
        q = oracle.parameters(n)
        bad = [
            (m, l, float(np.linalg.norm(p[m][l] - q[m][l]) / np.linalg.norm(q[m][l])))
            for m in q
            for l in q[m]
        ]
        print(sorted(bad, key=lambda t: -t[2])[:4])
    assert 0
