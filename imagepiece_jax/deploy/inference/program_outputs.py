"""What an exported program returns: logits, or features of patches."""

from collections.abc import Callable

from imagepiece_jax.common.checks import check_choice
from imagepiece_jax.deploy.inference import features, optimize
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.models.vit import ViT

OUTPUTS = ("logits", "features", "patches")


class ProgramOutputs:
    """The arrays that a program of `vit` returns, in the order of `names`.

    output: "logits" (pooled vectors for a model without classes), "features" (the
        pooled vector, patches, prefix tokens, and which patches were dropped) or
        "patches" (only a feature for every patch)
    """

    def __init__(self, vit: Pretrained, output: str = "logits"):
        check_choice("output", output, OUTPUTS)
        self.model = vit.model
        self.has_features = output != "logits"
        self.names = ["logits" if self.model.config.num_classes else "pooled"]
        if output == "features":
            self.names = ["pooled", "patches", "prefix", "dropped"]
            if not self.model.config.arch.prefix:  # an array without elements
                self.names.remove("prefix")
        elif output == "patches":
            self.names = ["patches"]

    def forward(self, model: ViT) -> Callable:
        """A function (variables, images) -> tuple of arrays in the order of `names`.

        model: the model in the form that is exported
        """
        if not self.has_features:
            run = optimize.forward(model)
            return lambda variables, images: (run(variables, images),)
        run = features.forward(model)

        def arrays(variables, images):
            found = run(variables, images)
            return tuple(getattr(found, name) for name in self.names)

        return arrays
