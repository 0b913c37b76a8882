"""Token counts and MACs that authors of methods publish, or that follow by hand."""

import pytest

from imagepiece_jax.models.cost import model_macs
from imagepiece_jax.models.create import create_model
from imagepiece_jax.reduction.block_plan import build
from imagepiece_jax.reduction.reduction import Reduction


def near(macs, rel=1e-3):
    return pytest.approx(macs, rel=rel)


# {(model, method and field): {its value: (tokens after each block, MACs)}}
COSTS = {
    ("deit_ti", "atc:keep_rate="): {
        "0.7": ("", 807606912),
        "0.5": ("", 621072768),
        "0.25": ("", 470605440),
    },
    ("deit_ti", "dpc_knn:keep_rate="): {
        "0.9": ("3*197 3*177 3*159 3*143", 1059695616),
        "0.7": ("3*197 3*138 3*97 3*68", 775458048),
        "0.5": ("3*197 3*99 3*50 3*25", 581047680),
        "0.25": ("3*197 3*50 3*13 3*4", 427249920),
    },
    ("deit_ti", "diffrate:target="): {
        "0.6": ("", 654713856),
        "0.7": ("", 726445440),
        "0.8": ("", 808614912),
        "0.9": ("", 901997184),
        # Its list rises at block 2, which keeps what arrives.
        "1.0": ("197 197 196 190 186 154 148 148 145 135 125 21", 1003495680),
    },
    ("deit_s", "diffrate:target="): {
        "2.3": ("", 2326930944),
        "2.5": ("", 2504447232),
        "2.7": ("", 2708891904),
        "2.9": ("", 2904961536),
        "3.1": ("", 3107688960),
    },
    ("deit_b", "diffrate:target="): {
        "8.7": ("", near(8.730e9, 1e-4)),
        "10.0": ("", near(9.985e9, 1e-4)),
        "10.4": ("", near(10.434e9, 1e-4)),
        "11.5": ("", near(11.517e9, 1e-4)),
        "12.5": ("", near(12.522e9, 1e-4)),
    },
    ("deit_ti", "dtem:r="): {
        # ToMe's, and an embedding of each token: rounded .947, .750 and .638 G.
        "8": ("", 924352512 + 192 * 64 * 1824),
        "13": ("", 731150592 + 192 * 64 * 1494),
        "16": ("", 621662208 + 192 * 64 * 1296),
    },
    ("deit_s", "grid_pooling"): {
        # What the learned methods cost: between ToMe's 2.70 and EViT's 3.00.
        "": ("6*197 6*50", pytest.approx(2.87e9, abs=5e6)),
    },
    ("deit_ti", "mctf:r="): {
        "8": ("197 189 181 173 165 157 149 141 133 125 117 109", near(0.964e9)),
        "16": ("197 181 165 149 133 117 101 85 69 53 37 21", 696858624),
        "20": ("197 177 157 137 117 97 77 57 37 19 10 10", near(0.590e9)),
        "0.35:blocks=(3,6,9)": ("3*197 3*129 3*85 3*56", 741910080),
    },
    ("deit_ti", "pitome:keep_rate="): {
        "0.9": ("178 161 145 131 118 107 97 88 80 73 66 60", 700335744),
        "0.9125": ("180 165 151 138 127 116 106 97 89 82 75 69", 746010240),
        "0.925": ("183 170 158 147 137 127 118 110 102 95 88 82", 807695616),
        "0.95": ("188 179 171 163 155 148 141 134 128 122 116 111", 930122496),
        "0.975": ("193 189 185 181 177 173 169 165 161 157 154 151", 1087059072),
    },
    ("deit_ti", "tofu:keep_rate="): {
        "0.9": ("178 161 145 131 118 107 97 88 80 72 65 59", 699050112),
        "0.9125": ("180 165 151 138 126 115 105 96 88 81 74 68", 742089984),
        "0.925": ("183 170 158 147 136 126 117 109 101 94 87 81", 803710080),
        "0.95": ("188 179 171 163 155 148 141 134 128 122 116 111", 930122496),
        "0.975": ("193 189 185 181 177 173 169 165 161 157 154 151", 1087059072),
    },
}


def numbers(text):
    """Of "3*197 98", the list 197, 197, 197, 98."""
    pairs = [part.rpartition("*")[::2] for part in text.split()]
    counts = []
    for times, number in pairs:
        counts += [int(number)] * int(times or 1)
    return counts


def published_costs():
    """(model, text of a reduction, tokens, MACs) of every cost that authors print."""
    rows = []
    for (name, field), values in COSTS.items():
        rows += [(name, field + value, *found) for value, found in values.items()]
    return rows


@pytest.mark.parametrize("name, text, tokens, macs", published_costs())
def test_counts_and_costs_are_their_authors(name, text, tokens, macs):
    model = create_model(name, text)
    assert model_macs(model) == macs
    if tokens:
        assert [layer.mlp_tokens for layer in model.plan] == numbers(tokens)


@pytest.mark.parametrize(
    "text, site, tokens",
    [
        ("random:keep_rate=0.7", "mid", "3*197 3*139 3*98 3*69"),  # as EViT
        ("dynamicvit:keep_rate=0.1", "pre", "3*197 3*20 6*2"),
        ("dynamicvit:keep_rate=0.0", "pre", "3*197 9*2"),
        ("dynamicvit:keep_rate=0.5:blocks=(9,3,6)", "pre", "3*197 3*99 3*50 3*25"),
        ("token_pooling:keep_rate=0.5:blocks=(9,3,6)", "pre", "3*197 3*99 3*50 3*25"),
        # One and a package: the next steps cannot shrink.
        ("spvit:keep_rates=(0.,0.,0.)", "pre", "3*197 9*3"),
        ("spvit:keep_rates=(.1,.001,0.)", "pre", "3*197 3*21 6*4"),
        # A step that changes nothing leaves no package.
        ("spvit:keep_rates=(1.,.5,.5)", "pre", "6*197 6*100"),
        ("grid_pooling:grid_size=8:block=3", "pre", "3*197 9*65"),
        ("tome:r=1000", "mid", "99 50 26 14 8 5 3 5*2"),
    ],
)
def test_tokens_by_hand(text, site, tokens):
    """A step before a block changes what its attention reads, another what its MLP."""
    plan = build(12, 196, Reduction.read(text).method.steps(12))
    assert [layer.mlp_tokens for layer in plan] == numbers(tokens)
    arriving = [197, *numbers(tokens)[:-1]]
    wanted = numbers(tokens) if site == "pre" else arriving
    assert [layer.attn_tokens for layer in plan] == wanted


@pytest.mark.parametrize(
    "text, tokens",
    [
        ("dynamicvit", "12*197"),
        ("dtem", "12*197"),
        ("spvit", "3*197 3*198 3*199 3*200"),  # a package each step
        # Masks keep all but what evaluation merges.
        ("imagepiece_dynamicvit", "181 2*166 155 2*145 137 5*130"),
        ("imagepiece_dynamicvit:mode=topk", "181 166 133 122 112 90 82 75 4*61"),
    ],
)
def test_tokens_in_masked_training(text, tokens):
    plan = build(12, 196, Reduction.read(text).method.steps(12), masked=True)
    assert [layer.mlp_tokens for layer in plan] == numbers(tokens)
    assert any(layer.counts for layer in plan)
