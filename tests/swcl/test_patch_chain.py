"""From drawn photographs through a small labeler to pairs of patches and their figures."""

import jax
import jax.numpy as jnp
import numpy as np

from medinit_jax.data.augment import NORMALIZATION, normalize
from medinit_jax.data.phantoms import fundus
from medinit_jax.downstream.cam import run_with_map
from medinit_jax.models import resnet
from medinit_jax.models.initial import initial_parameters
from medinit_jax.models.network import Network
from medinit_jax.models.statistics import initial_statistics
from medinit_jax.report.patches import patch_section
from medinit_jax.swcl.cam_scores import abnormality
from medinit_jax.swcl.patch_figures import Panel, write_figures
from medinit_jax.swcl.patch_geometry import CUTS, POSITIONS, cut_patch
from medinit_jax.swcl.patch_pairs import one_sided, open_pairs
from medinit_jax.swcl.patch_plan import Eye, plan_pairs
from medinit_jax.swcl.patch_store import write_prepared

SIDE, CROP, BATCH = 64, 32, 4
MEAN, STD = NORMALIZATION["fundus"]
SIGNS = {"left": -1, "right": 1}


def test_phantoms_become_pairs(tmp_path):
    network = Network(resnet.resnet(resnet.Variant((1, 1), False), (SIDE, SIDE, 3), 2, "small", 8))
    params = initial_parameters(network.program, jax.random.key(0))
    statistics = initial_statistics(network.program)

    @jax.jit
    def score(images):
        features = run_with_map(network, params, statistics, images)[1]
        kernel = params[network.program.head]["kernel"]
        return abnormality(features, kernel, images, MEAN, STD, CROP)

    def drawn(eye):
        return fundus.render(int(eye.patient), SIGNS[eye.eye], SIDE)["image"]

    def scored(eyes):
        for start in range(0, len(eyes), BATCH):
            images = np.stack([drawn(eye) for eye in eyes[start : start + BATCH]])
            yield from zip(images, np.asarray(score(normalize(images, MEAN, STD))[1]), strict=True)

    eyes = [
        Eye("phantom", str(patient), eye, 2 * patient + place)
        for patient in range(4)
        for place, eye in enumerate(SIGNS)
    ]
    write_prepared(tmp_path, "tiny", plan_pairs(eyes), scored, crop=CROP)
    pairs = open_pairs("retinal_swap/tiny", str(tmp_path))
    assert len(pairs) == 20 and set(pairs.table.positions) == set(range(5))
    for index in range(20):
        pair = pairs[index]
        position, patient = POSITIONS[pair["position"]], pair["patient"] - 100_000
        for eye in SIGNS:
            image = drawn(Eye("phantom", str(patient), eye, 0))
            np.testing.assert_array_equal(pair[eye], cut_patch(image, CROP, eye, position))
    # The whole map, of images one by one, agrees with what was stored from batches.
    maps, scores = score(jnp.asarray(normalize(drawn(eyes[0])[None], MEAN, STD)))
    stored = [
        pairs.table.scores[index, 0]
        for cut in CUTS
        for index, (left, _) in enumerate(pairs.table.names)
        if left == f"phantom_0_left_{cut}"
    ]
    np.testing.assert_allclose(scores[0], stored, atol=1e-5)
    # Beyond the round field there is nothing, in the middle there is something.
    assert maps[0, 0, 0] == 0 and 0 < maps[0, 32, 32] < 1
    # By the thresholds at both ends of what was found, patches are told apart or not.
    least, most = pairs.table.scores.min(), pairs.table.scores.max()
    assert one_sided(pairs.table.scores, float(least)) and not one_sided(
        pairs.table.scores, float(most)
    )
    panel = Panel("phantom_0_left", "left", drawn(eyes[0]), np.asarray(maps[0]), scores[0])
    write_figures(tmp_path, pairs.table, [panel], CROP)
    assert "phantom_0_left, unlabelled: tl" in patch_section(tmp_path)
