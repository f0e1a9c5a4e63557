import numpy as np
import pytest

from medinit_jax.arch import layout

STORED = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)


@pytest.mark.parametrize(
    "steps",
    [
        (),
        (layout.reshape((6, 20)),),
        (layout.transpose((2, 3, 1, 0)),),
        (layout.transpose((3, 1, 0, 2)), layout.reshape((15, 8)), layout.transpose((1, 0))),
    ],
)
def test_undo_is_the_inverse(steps):
    predicted = layout.apply(STORED, steps)
    assert predicted.shape == layout.shape_after(STORED.shape, steps)
    np.testing.assert_array_equal(layout.undo(predicted, STORED.shape, steps), STORED)


def test_a_transpose_permutes_axes_as_numpy_does():
    steps = (layout.transpose((2, 3, 1, 0)),)
    np.testing.assert_array_equal(layout.apply(STORED, steps), STORED.transpose(2, 3, 1, 0))


def test_steps_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="cannot become"):
        layout.shape_after((2, 3), (layout.reshape((4, 2)),))
    with pytest.raises(ValueError, match="do not permute"):
        layout.shape_after((2, 3), (layout.transpose((0, 0)),))
