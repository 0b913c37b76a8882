"""The test images of data, and the labels that a model has for their classes."""

import dataclasses
import os
from collections.abc import Mapping

from imagepiece_jax.data import class_names
from imagepiece_jax.data.source import Source
from imagepiece_jax.errors import InputError
from imagepiece_jax.input import registry


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalImages:
    """The images that an evaluation names."""

    name: str  # of the data, as `open_source` takes it
    data_dir: str | os.PathLike | None = None  # of imagenet2012
    # the model's label for each class name of the data; None: by the model's names
    classes: Mapping[str, int] | None = None
    labeled: bool = True  # whether they must have labels

    def open(self, num_classes: int, names: class_names.Names | None) -> Source:
        """Their Source, with the labels of a model.

        num_classes, names: of the model's classes
        Raises InputError where they cannot be opened or have other classes.
        """
        labels = class_names.labels_by_name(names, num_classes)
        wanted = None
        if self.classes is not None:
            wanted = {}
            for name, label in self.classes.items():
                wanted[class_names.normalized(name)] = label
            labels = wanted or labels
        source = registry.open_source(
            self.name,
            "val",
            num_classes=num_classes,
            data_dir=self.data_dir,
            labeled=self.labeled,
            labels_by_name=labels,
        )
        if wanted is not None:
            found = {k: i for i, k in enumerate(source.class_names or ()) if k}
            if found != wanted:
                raise InputError("classes", self.classes, f"{found}")
            source.class_names = names
        return source
