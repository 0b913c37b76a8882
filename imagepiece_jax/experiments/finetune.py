"""What do the methods come to on a small set? Short fine-tunings, all alike.

Every seed starts with a dense fine-tuning of the given weights. From its last weights
every method goes on for as long again, the dense model too, by the same config: so all
have seen the same images equally often, and methods that need a teacher have one. Each
run is one of train.py's in a folder of its own: a killed one goes on, a finished one is
only read.
"""

import dataclasses
import functools

import jax
from ml_collections import config_dict

from imagepiece_jax.data.sources import open_source
from imagepiece_jax.errors import InputError
from imagepiece_jax.experiments import match_cost
from imagepiece_jax.models import pretrained, summary
from imagepiece_jax.models.class_names import other_class
from imagepiece_jax.reduction import methods, settings
from imagepiece_jax.training import from_config
from imagepiece_jax.training.trainer import train_and_evaluate

REFERENCE = {"name": "imagepiece"}  # whose cost the others are matched to
# Published trainings freeze the backbone for longer than a small run lasts.
LEARNING = {"backbone_lr": 1.0, "frozen_epochs": 0.0}


class Small:
    """Short runs in `folder`, made when they are asked for.

    config: how they are trained; given: the Subject whose weights they start from;
    data: a set with a train split; seeds: of the runs, one run each.
    """

    def __init__(self, config, given, data, folder, seeds):
        self.config, self.given = config, given
        self.data, self.folder, self.seeds = data, folder, seeds
        source = open_source(data, "train")
        self.classes, self.class_names = source.num_classes, source.class_names

    def runs(self, reduction, stem, matched):
        """A Subject for each seed; `matched`: at the GMACs of ImagePiece's default.

        Of a method that no rate makes fit this model there are none.
        """
        if matched and reduction not in (settings.DENSE, REFERENCE):
            try:
                reduction = self.match(reduction)
            except InputError as error:
                print(f"{label(reduction)} is left out: {error}", flush=True)
                return []
        return [self._trained(reduction, stem, seed) for seed in self.seeds]

    def match(self, reduction):
        """`reduction` at the rate whose GMACs are nearest to the reference's."""
        cost = self._dense.gmacs
        depth = len(self._dense.model().plan)
        return match_cost.nearest(cost, reduction, cost(REFERENCE), depth)

    @functools.cached_property
    def _dense(self):
        """Shapes of the models that are trained, with the stem that was given."""
        fields = self.given.fields | {
            "num_classes": self.classes,
            "image_size": self.config.image_size,
        }
        return pretrained.Pretrained(self.given.path, fields, settings.DENSE)

    def _trained(self, reduction, stem, seed):
        start = self._start(stem, seed)
        config = self._prepared(reduction, stem, seed)
        names = summary.shapes(from_config.model(config), config.image_size)["params"]
        config.init.weights = str(start)
        if any(name.startswith("reducer") for name in names):
            config.init.fresh = ("reducer",)
        if methods.METHODS[reduction["name"]].needs_teacher:
            config.teacher.weights = str(start)
        return self._run(config, f"{label(reduction)}_{stem}_seed{seed}")

    def _start(self, stem, seed):
        """Folder of the dense run that the others of this seed go on from."""
        config = self._prepared(settings.DENSE, stem, seed)
        fresh = () if stem == self.given.stem else ("patch_embed",)
        others = self.classes != self.given.fields["num_classes"]
        if others or other_class(self.given.path, self.class_names):
            fresh += ("head",)
        config.init.weights, config.init.fresh = str(self.given.path), fresh
        return self._run(config, f"start_{stem}_seed{seed}").path

    def _prepared(self, reduction, stem, seed):
        """The config of a run, but for what it starts from."""
        config = self.config.copy_and_resolve_references()
        own = {k: v for k, v in reduction.items() if k not in settings.MODEL_FIELDS}
        known = {field.name for field in dataclasses.fields(methods.create(**own))}
        own |= {name: value for name, value in LEARNING.items() if name in known}
        with config.unlocked():
            config.reduction = config_dict.ConfigDict(own)
        if "prop_attn" in reduction:
            config.model.prop_attn = reduction["prop_attn"]
        config.seed, config.num_classes = seed, self.classes
        config.model.stem, config.data.name = stem, self.data
        # One evaluation, at the end: no checkpoint is chosen on the test images.
        config.eval_every_epochs, config.init.evaluate = config.epochs, False
        config.progress, config.pictures = False, 0
        return config

    def _run(self, config, name):
        print(f"training {name}", flush=True)
        train_and_evaluate(config, self.folder / name)
        jax.clear_caches()  # or its programs stay, which no other run has a use for
        return pretrained.for_analysis(self.folder / name)


def label(reduction):
    """A reduction as the name of a folder: "evit_keep_rate=0.5"."""
    fields = [f"{k}={v}" for k, v in reduction.items() if k != "name"]
    text = "_".join(
        ["dense" if reduction["name"] == "none" else reduction["name"], *fields]
    )
    return text.replace(" ", "").replace("(", "").replace(")", "")
