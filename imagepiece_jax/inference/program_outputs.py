"""What an exported program returns: logits, image tokens, or features of patches."""

from collections.abc import Callable, Sequence

from imagepiece_jax.errors import InputError, one_of
from imagepiece_jax.inference import features, optimize
from imagepiece_jax.inference.features import Layer
from imagepiece_jax.inference.token_list import TokenList
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.models.vit import ViT

OUTPUTS = ("logits", "features", "patches")
DEFAULTS = {"layers": (), "norm": True, "fill": "nearest"}  # of `features`


class ProgramOutputs:
    """The arrays that a program of `vit` returns, in the order of `names`.

    output: "logits" (pooled vectors for a model without classes), "features" (all
        fields of Features) or "patches" (only a feature for every patch)
    tokens: exact number of image tokens that the reduction leaves. The fields of their
        TokenList are returned in place of logits, or after features
    layers, norm, fill: as `features` takes them; arrays of block 3 have names such as
        "layer_3_patches"
    Raises InputError for arguments that do not fit the model.
    """

    def __init__(
        self,
        vit: Pretrained,
        *,
        output: str = "logits",
        tokens: int | None = None,
        layers: int | Sequence[int] = DEFAULTS["layers"],
        norm: bool = DEFAULTS["norm"],
        fill: str = DEFAULTS["fill"],
    ):
        one_of("output", output, OUTPUTS)
        self.model = vit.model_with_tokens(tokens)
        self.tokens = tokens
        self.listed = tokens is not None
        self.has_features = output != "logits"
        self.blocks = features.chosen_blocks(layers, self.model.depth)
        self.norm = norm
        self.fill = fill
        self._check()
        self.names = []
        if self.has_features:
            self.names += self._feature_names(output)
        if self.listed:
            self.names += TokenList._fields
        if not self.names:
            self.names = ["logits" if self.model.num_classes else "pooled"]

    @property
    def _options(self):
        return {"layers": self.blocks, "norm": self.norm, "fill": self.fill}

    def _check(self):
        """Raise InputError for options of features that do not fit."""
        for field, value in self._options.items():
            if not self.has_features and value != DEFAULTS[field]:
                problem = "is an option of features, but output is 'logits'"
                allowed = "output 'features' or 'patches'"
                raise InputError(field, value, allowed, problem=problem)
        features.check_norm(self.norm, self.blocks)
        features.check_fill(self.fill, self.model.arch.class_token)
        twice = [block for block in self.blocks if self.blocks.count(block) > 1]
        if twice:
            problem = f"has block {twice[0]} twice"
            raise InputError("layers", self.blocks, "each block once", problem=problem)

    def _feature_names(self, output):
        """Names of the arrays of features, in order."""
        parts = ["patches"]
        if output == "features":
            parts = [*Layer._fields]
            if not self.model.arch.prefix:  # an array without elements
                parts.remove("prefix")
        names = [*parts]
        if output == "features":
            names.insert(0, "pooled")
        for block in self.blocks:
            names += [f"layer_{block}_{part}" for part in parts]
        return names

    @property
    def as_json(self) -> dict:
        """The options of features as JSON values; {} for logits."""
        if not self.has_features:
            return {}
        return {"features": self._options}

    def forward(self, model: ViT) -> Callable:
        """A function (variables, images) -> tuple of arrays in the order of `names`.

        model: the model in the form that is exported
        """
        if not self.has_features:
            run = optimize.forward(model, self.listed)
            if self.listed:
                return run
            return lambda variables, images: (run(variables, images),)
        run = features.forward(
            model, self.blocks, self.norm, fill=self.fill, listed=self.listed
        )

        def arrays(variables, images):
            found = run(variables, images)
            by_name = found._asdict()
            for block, layer in zip(self.blocks, found.layers, strict=True):
                for part, array in layer._asdict().items():
                    by_name[f"layer_{block}_{part}"] = array
            return tuple(by_name[name] for name in self.names)

        return arrays
