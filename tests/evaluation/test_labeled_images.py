import types

import numpy as np
import pytest

from imagepiece_jax.data.preprocessing import Preprocessing
from imagepiece_jax.errors import InputError
from imagepiece_jax.evaluation.labeled_images import open_labeled_images
from imagepiece_jax.models.config import Head
from tests.helpers.picture_files import write_csv, write_plain


def model_of(num_classes, class_names=None):
    config = types.SimpleNamespace(num_classes=num_classes, head=Head(num_classes))
    config.preprocessing = Preprocessing(16)
    origin = types.SimpleNamespace(title="w.npz", run=None)
    return types.SimpleNamespace(config=config, origin=origin, class_names=class_names)


VIT = model_of(10, tuple("0123456789"))
ENCODER = model_of(0)


@pytest.mark.parametrize("labels, is_noted", [((1, 2), True), ((1, 0), False)])
def test_labels_that_may_count_from_one_are_noted(tmp_path, capsys, labels, is_noted):
    data = write_csv(tmp_path, np.zeros((2, 16, 16, 3), np.uint8), labels)
    source = open_labeled_images(VIT, data, limit=1).source
    assert len(source) == 1
    assert ("labels count from 0" in capsys.readouterr().out) == is_noted


@pytest.mark.parametrize("vit", [ENCODER, VIT])
def test_unlabeled_images_are_refused_unless_allowed(tmp_path, vit):
    write_plain(tmp_path, "a.png", "b.png")
    (tmp_path / "set.csv").write_text("filename\na.png\nb.png\n")
    for data in (tmp_path, tmp_path / "set.csv"):
        with pytest.raises(InputError, match="classes|label"):
            open_labeled_images(vit, f"{data}")
        source = open_labeled_images(vit, f"{data}", need_labels=False).source
        assert (len(source), source[0].label, source.num_classes) == (2, -1, 0)


def test_an_encoder_reads_no_labels(tmp_path):
    write_plain(tmp_path, "train/ant/a.png", "val/ant/b.png", "val/bee/deep/c.png")
    source = open_labeled_images(ENCODER, f"{tmp_path}", need_labels=False).source
    names = [source.image_name(index)[-9:] for index in range(len(source))]
    assert names == ["ant/b.png", "eep/c.png"]
