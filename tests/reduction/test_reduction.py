from importlib import metadata

import numpy as np
import pytest

from imagepiece_jax.errors import InputError
from imagepiece_jax.reduction.methods import METHODS
from imagepiece_jax.reduction.methods.method import Method
from imagepiece_jax.reduction.methods.tome import ToMe
from imagepiece_jax.reduction.reduction import DENSE_REDUCTION, Reduction
from tests.helpers.refused_calls import refused

# These texts are canonical: no default field, no extra digit, no space.
TEXTS = [
    *METHODS,
    "none:macs=1.0:prop_attn=True",
    "imagepiece:metric=value:parity=1:size_weighting=False:prune_blocks=(8,)",
    "imagepiece:merge_blocks=():prop_attn=True",
    "evit:macs=0.001:counts=stages-3-6-9:prop_attn=False",
    "evit:keep_rate=1e-07:fuse_token=True:rate_warmup_epochs=1e+17",
    "tome:counts=(196,99,2)",
    "tome:metric=query:inflection=-0.5",
    "spvit:kl_weight=3.0:keep_rates=(0.7,0.5):blocks=(1,2)",
    "dynamicvit:backbone_lr=0.0:blocks=(0,)",
    "diffrate:prune=(20,9):merge=(20,8)",
    "token_pooling:iterations=2:score=energy",
]


@pytest.mark.parametrize("text", TEXTS)
def test_a_reductions_text_reads_back(text):
    """The text has training fields, too, though equality ignores them."""
    reduction = Reduction.read(text)
    assert {*str(reduction).split(":")} == {*text.split(":")}
    read_back = Reduction.read(str(reduction))
    assert read_back == reduction
    assert vars(read_back.method) == vars(reduction.method)


@pytest.mark.parametrize("share", [1 / 3, 1])
def test_a_shares_text_reads_back(share):
    reduction = Reduction.read(share)
    assert reduction == Reduction(Method(macs=share))
    assert Reduction.read(str(reduction)) == reduction
    proportional = Reduction.read(reduction, True)
    assert Reduction.read(str(proportional)) == proportional
    assert Reduction.read(np.float32(0.5)) == Reduction.read("0.5")
    blocks = (np.int64(3), np.int32(6))
    assert str(Reduction(METHODS["evit"](blocks=blocks))) == "evit:blocks=(3,6)"


def test_equal_reductions_compute_the_same():
    short = Reduction.read("evit")
    assert short == Reduction.read("evit:blocks=(3, 6, 9):rate_warmup_epochs=9")
    assert short == Reduction.read("evit : keep_rate=.7 : blocks=[3,6,9]")
    assert hash(short) == hash(Reduction.read("evit:keep_rate=.7"))
    assert short != Reduction.read("evit:prop_attn=True")
    assert short != Reduction.read("evit:keep_rate=.6")
    assert Reduction.read(None) == DENSE_REDUCTION == Reduction.read("none")
    proportional = Reduction.read("tome:r=8:prop_attn=False")
    assert Reduction.read(ToMe(r=8), False) == proportional
    with refused("prop_attn"):
        Reduction.read("tome:prop_attn=False", True)
    assert str(DENSE_REDUCTION) == "none"


@pytest.mark.parametrize(
    "value, message",
    [
        ("", "begin with a method: none, imagepiece"),
        ("resnet", "entry point imagepiece_jax.methods"),
        ("tomme:r=8", "did you mean 'tome'?"),
        ("tome:r=8:r=9", "'r=9' must be FIELD=VALUE, once"),
        ("tome:keep_rate=.5", "a field of tome: macs, counts, "),
        ("evit:keep_rate=0.6:counts=(9,9)", "keep_rate and counts both decide"),
        ("evit:counts=stages", "needs macs"),
        ("evit:counts=(9,9):macs=.5", "excludes macs"),
        ("50", "reduction 50: macs is 50; it must be a number, above 0 and at most 1"),
        ({"name": "tome"}, "reduction is {'name': 'tome'}"),
    ],
)
def test_a_value_that_is_no_reduction_is_refused(value, message):
    with refused(message):
        Reduction.read(value)


def test_a_method_of_another_package_is_found_by_its_entry_point(monkeypatch):
    objects = {"own": "imagepiece_jax.reduction.methods.tome:ToMe", "gone": "no:Own"}

    def entry_points(group, name):
        assert group == "imagepiece_jax.methods"
        return [metadata.EntryPoint(name, objects[name], group)]

    monkeypatch.setattr(metadata, "entry_points", entry_points)
    monkeypatch.setattr(METHODS, "data", {**METHODS.data})
    assert Reduction.read("own:r=4").method == ToMe(r=4)
    with refused("method gone"):
        Reduction.read("gone")


def test_a_method_without_dataclass_is_refused_where_it_is_registered(monkeypatch):
    monkeypatch.setattr(METHODS, "data", dict(METHODS.data))
    with pytest.raises(InputError, match="dataclass"):
        METHODS["forgotten"] = type("Forgotten", (Method,), {"amount": 3})
