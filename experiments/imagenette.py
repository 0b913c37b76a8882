"""imagenette in one file: ten classes of ImageNet, among all 1,000."""

import io

import numpy as np

from imagepiece_jax.data import decode
from imagepiece_jax.data.class_names import imagenet_rows
from imagepiece_jax.data.source import Source
from imagepiece_jax.errors import InputError


class Imagenette(Source):
    """The images of one .npz file, with labels of ImageNet-1k."""

    def __init__(self, path):
        try:
            with np.load(path) as file:
                self.bytes = file["bytes"]
                self.offsets = file["offsets"]
                synsets = file["classes"].tolist()
                labels = file["label"]
        except (OSError, KeyError, ValueError) as error:
            allowed = "a .npz file with bytes, offsets, label and classes"
            problem = f"is {path}, which cannot be read"
            raise InputError(
                "--imagenette", str(path), allowed, problem=problem
            ) from error
        places = {synset: place for place, (synset, _) in enumerate(imagenet_rows())}
        super().__init__(len(places))
        self.labels = np.array([places[synset] for synset in synsets])[labels]

    def __len__(self):
        return len(self.labels)

    def read(self, index):
        file = io.BytesIO(self.encoded(index))
        pixels = decode.decode(file, self.name(index))
        return pixels, int(self.labels[index])

    def name(self, index):
        return f"image {index} of imagenette"

    def encoded(self, index):
        first = self.offsets[index]
        end = self.offsets[index + 1]
        return self.bytes[first:end].tobytes()

    def size(self, index):
        return self.read(index)[0].shape[:2]

    def inventory(self, indices):
        yield self.labels[indices].tobytes()
