import io
import pickle
import shutil
import sys

import pytest
from PIL import Image

from imagepiece_jax.data.sources.registry import open_source
from imagepiece_jax.errors import InputError, RunError
from tests.data.test_decode import encode


def jpeg(index):
    return encode(Image.new("RGB", (24, 20 + index), (10 * index,) * 3), "JPEG")


def write_imagenet(folder, second=2):
    """A real TFDS imagenet2012 of six and three images, written without TensorFlow."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import registered

    def example(index):
        image = jpeg(second if index == 2 else index)
        image = io.BytesIO(image[:300] if index == 5 else image)
        return {"image": image, "label": 100 * index, "file_name": f"n{index}.JPEG"}

    with registered.skip_registration():

        class Imagenet2012(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("5.1.0")

            def _info(self):
                features = {
                    "image": tfds.features.Image(encoding_format="jpeg"),
                    "label": tfds.features.ClassLabel(num_classes=1000),
                    "file_name": tfds.features.Text(),
                }
                features = tfds.features.FeaturesDict(features)
                return tfds.core.DatasetInfo(builder=self, features=features)

            def _split_generators(self, download_manager):
                examples = self._generate_examples
                return {"train": examples(6), "validation": examples(3)}

            def _generate_examples(self, count):
                return ((str(index), example(index)) for index in range(count))

    tfds.disable_progress_bar()
    Imagenet2012(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    return write_imagenet(tmp_path_factory.mktemp("tfds"))


def open_imagenet(folder, split="train"):
    return open_source("imagenet2012", split, num_classes=1000, data_dir=folder)


def test_files_are_read_without_tensorflow(imagenet):
    source = open_imagenet(imagenet)
    assert len(source) == 6
    images_by_name = {}
    for index in range(6):
        image = source[index]
        images_by_name[image.name] = None
        if image.pixels is not None:
            assert source.stored_image(index)[0] == jpeg(image.label // 100)
            gray = int(image.pixels[0, 0, 0])
            images_by_name[image.name] = (image.pixels.shape, gray, image.label)
    expected = {f"n{i}.JPEG": ((20 + i, 24, 3), 10 * i, 100 * i) for i in range(5)}
    assert images_by_name == expected | {"n5.JPEG": None}
    val = open_imagenet(imagenet, "val")
    assert len(val) == 3
    # Goldfish in WordNet; folders with these names sort alike.
    assert val.class_names[1] == "n01443537"
    assert len(val.class_names) == 1000
    assert list(val.class_names) == sorted(set(val.class_names))
    assert "tensorflow" not in sys.modules


def test_a_torn_folder_is_named_when_opened_or_read(imagenet, tmp_path):
    torn = tmp_path / "torn"
    shutil.copytree(imagenet, torn)
    opened_source = pickle.dumps(open_imagenet(torn))
    for shard in torn.glob("imagenet2012/*/*train*"):
        shard.write_bytes(b"torn")
    for folder in (tmp_path / "empty", torn):
        message = f"{folder} has no complete.*tfds build imagenet2012 --file_format"
        with pytest.raises(InputError, match=message):
            open_imagenet(folder)
    with pytest.raises(RunError, match="^data set imagenet2012 cannot be read at 0 ."):
        pickle.loads(opened_source)


def test_other_records_change_the_digest(imagenet, tmp_path):
    source = open_imagenet(imagenet)
    other = write_imagenet(tmp_path / "other", second=3)
    sources = [source, open_imagenet(imagenet, "val"), open_imagenet(other)]
    sources += [source.evenly_spaced(2), source.evenly_spaced(3)]
    assert len({source.digest for source in sources}) == 5
