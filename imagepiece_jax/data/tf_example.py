"""Serialized tf.train.Example messages, read by protobuf without TensorFlow or TFDS.

TFDS has them too, but importing it takes a fifth of a second and 16 MB in every process
that reads, and never ends where two threads import its lazy modules at once.
"""

import functools


def features(data):
    """Features of an example by name, as protobuf has them; ValueError.

    features["label"].int64_list.value and features["image"].bytes_list.value are lists.
    """
    from google.protobuf.message import DecodeError  # only where records are read

    try:
        return _message().FromString(data).features.feature
    except DecodeError as error:
        raise ValueError("it holds no tf.train.Example") from error


@functools.cache
def _message():
    """The class of the message, with the numbers of TensorFlow's example.proto."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="example", package="example")

    def message(name, *fields, within=file.message_type):
        made = within.add(name=name)
        for number, (field, label, kind) in enumerate(fields, start=1):
            own = isinstance(kind, str)
            made.field.add(
                name=field,
                number=number,
                label=label,
                type=kinds.TYPE_MESSAGE if own else kind,
                type_name=f".example.{kind}" if own else None,
            )
        return made

    one, many = kinds.LABEL_OPTIONAL, kinds.LABEL_REPEATED
    message("BytesList", ("value", many, kinds.TYPE_BYTES))
    message("FloatList", ("value", many, kinds.TYPE_FLOAT))
    message("Int64List", ("value", many, kinds.TYPE_INT64))
    message(
        "Feature",
        ("bytes_list", one, "BytesList"),
        ("float_list", one, "FloatList"),
        ("int64_list", one, "Int64List"),
    )
    whole = message("Features", ("feature", many, "Features.FeatureEntry"))
    entry = message(
        "FeatureEntry",
        ("key", one, kinds.TYPE_STRING),
        ("value", one, "Feature"),
        within=whole.nested_type,
    )
    entry.options.map_entry = True  # protobuf's map<string, Feature>
    message("Example", ("features", one, "Features"))
    pool = descriptor_pool.DescriptorPool()  # TFDS may have its own in the default one
    pool.Add(file)
    found = pool.FindMessageTypeByName("example.Example")
    return message_factory.GetMessageClass(found)
