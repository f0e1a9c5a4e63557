"""Which trained classifiers may score patches."""

import pytest
from made_labeler import HEAD, write_labeler

from medinit_jax.core.errors import UsageError
from medinit_jax.core.parameters import save_params
from medinit_jax.swcl import score_model

GRADES = {"name": "dr", "classes": ["a", "b", "c"], "kind": "softmax"}


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ({"heads": (HEAD, GRADES)}, "predicts abnormal .normal / abnormal., dr .a / b / c.; name"),
        ({"heads": (GRADES,)}, "where a labeler has the two classes normal and abnormal"),
        ({"heads": ({**HEAD, "kind": "sigmoid"},)}, "one head of the two classes"),
        ({"heads": ({**HEAD, "classes": ["abnormal", "normal"]},)}, "abnormal .abnormal / normal"),
        (
            {"name": "vit_tiny_patch16_224", "width": 0},
            "has no class activation maps; fine-tune a ResNet",
        ),
    ],
)
def test_other_models_are_refused(model, sentence, tmp_path):
    with pytest.raises(UsageError, match=sentence):
        score_model.load_labeler(write_labeler(tmp_path, **{"width": 8, **model}))


def test_what_is_no_model_is_refused(tmp_path):
    save_params(tmp_path / "encoder" / "model", {"params": {}}, {"kind": "encoder"}, kind="model")
    with pytest.raises(UsageError, match="describes a pretrained encoder, which predicts nothing"):
        score_model.load_labeler(tmp_path / "encoder")
    with pytest.raises(UsageError, match="is no model: model.json is missing"):
        score_model.load_labeler(tmp_path)
