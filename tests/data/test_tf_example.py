"""Examples beside those of TFDS's own protobuf classes, and without TFDS."""

import os
import subprocess
import sys

import pytest

from imagepiece_jax.data import tf_example
from tests.runs import ROOT

READER = """
import sys
from imagepiece_jax.data import tf_example
features = tf_example.features(bytes.fromhex(sys.argv[1]))
assert list(features["x"].int64_list.value) == [7, 128]
assert not {"tensorflow_datasets", "tensorflow"} & set(sys.modules)
"""


def example(**features):
    from tensorflow_datasets.proto import tf_example_pb2

    message = tf_example_pb2.Example()
    for name, values in features.items():
        feature = message.features.feature[name]
        kinds = {bytes: feature.bytes_list, int: feature.int64_list}
        kinds.get(type(values[0]), feature.float_list).value.extend(values)
    return message.SerializeToString()


def test_what_tfds_writes_is_read():
    values = {
        "image": [os.urandom(70_000)],
        "text": [b"", "größer".encode(), b"\xff"],
        "numbers": [0, 1, 127, 128, 2**63 - 1, -1, -(2**63)],
        "floats": [0.5, -2.0],
    }
    found = tf_example.features(example(**values))
    assert set(found) == set(values)
    assert list(found["image"].bytes_list.value) == values["image"]
    assert list(found["text"].bytes_list.value) == values["text"]
    assert list(found["numbers"].int64_list.value) == values["numbers"]
    assert list(found["floats"].float_list.value) == values["floats"]


def test_integers_that_are_not_packed_are_read_without_tfds():
    """In threads, importing TFDS may never end."""
    integers = b"\x08\x07\x08\x80\x01"  # field 1, wire type 0: 7, then 128
    feature = b"\x1a" + bytes([len(integers)]) + integers
    entry = b"\x0a\x01x\x12" + bytes([len(feature)]) + feature
    features = b"\x0a" + bytes([len(entry)]) + entry
    message = b"\x0a" + bytes([len(features)]) + features
    words = [sys.executable, "-c", READER, message.hex()]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_other_messages_are_refused():
    whole = example(image=[b"abc"], label=[3])
    for data in (whole[:-1], whole[:1], whole + b"\x80", b"\xff\xff"):
        with pytest.raises(ValueError, match="it holds no tf.train.Example"):
            tf_example.features(data)
