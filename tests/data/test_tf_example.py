"""The parser of examples beside protobuf's own."""

import os

import pytest

from imagepiece_jax.data import tf_example


def example(**features):
    from tensorflow_datasets.proto import tf_example_pb2

    message = tf_example_pb2.Example()
    for name, values in features.items():
        feature = message.features.feature[name]
        if isinstance(values[0], bytes):
            feature.bytes_list.value.extend(values)
        elif isinstance(values[0], int):
            feature.int64_list.value.extend(values)
        else:
            feature.float_list.value.extend(values)
    return message.SerializeToString()


def test_what_protobuf_writes_is_read():
    features = {
        "image": [os.urandom(70_000)],
        "label": [999],
        "numbers": [0, 1, 127, 128, 2**63 - 1, -1, -(2**63)],
        "text": [b"", "größer".encode(), b"n01440764_10026.JPEG"],
    }
    assert tf_example.parse(example(**features)) == features


def test_integers_that_are_not_packed():
    integers = b"\x08\x07\x08\x80\x01"  # field 1, wire type 0: 7, then 128
    feature = b"\x1a" + bytes([len(integers)]) + integers
    entry = b"\x0a\x01x\x12" + bytes([len(feature)]) + feature
    features = b"\x0a" + bytes([len(entry)]) + entry
    message = b"\x0a" + bytes([len(features)]) + features
    assert tf_example.parse(message) == {"x": [7, 128]}


def test_other_messages_are_refused():
    whole = example(image=[b"abc"], label=[3])
    for data in (whole[:-1], whole[:1], whole + b"\x80", b"\x0d1234"):
        with pytest.raises(ValueError, match="ends early|wire type 5"):
            tf_example.parse(data)
    with pytest.raises(ValueError, match="kind 2; known are bytes and int64"):
        tf_example.parse(example(x=[0.5]))
