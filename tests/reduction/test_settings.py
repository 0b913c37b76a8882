"""Reductions as dicts: defaults, differences, labels and what is typed."""

import pytest

from imagepiece_jax.errors import InputError
from imagepiece_jax.reduction import settings


def test_fields_are_completed_by_the_defaults_of_the_method():
    short = settings.completed({"name": "evit"})
    assert short == settings.completed(
        {"name": "evit", "keep_rate": 0.7, "blocks": [3, 6, 9], "rate_warmup_epochs": 9}
    )
    assert settings.completed({"name": "tome"})["prop_attn"] is True
    assert settings.completed(None) == {"name": "none", "prop_attn": False}


def test_only_fields_that_differ_are_changed():
    given = {"name": "evit", "keep_rate": 0.7, "blocks": [1]}
    assert settings.changed(given) == {"name": "evit", "blocks": (1,)}
    assert settings.changed(given, given | {"keep_rate": 0.5}) == {
        "name": "evit",
        "keep_rate": 0.7,
    }


def test_labels():
    assert settings.label({"name": "none"}) == "dense"
    assert settings.label({"name": "evit", "keep_rate": 0.7}) == "evit keep_rate=0.7"


def test_what_former_versions_saved_is_in_fields_and_values_of_this_one():
    """Without a score EViT ranked by class attention, Token Pooling by "columns"."""
    saved = {"name": "token_pooling", "score": "cls", "round_to": 0, "iterations": 2}
    assert settings.current(saved) == {
        "name": "token_pooling",
        "score": "class",
        "iterations": 2,
    }
    (named,) = (settings.current({"name": "token_pooling", "score": "columns"}),)
    assert named["score"] == "received"
    assert settings.current({"name": "evit", "round_to": 8}) == {
        "name": "evit",
        "score": "auto",
        "round_to": 8,
    }
    assert settings.current({"name": "tome"}) == {"name": "tome"}


def test_lists_of_several_fields_are_combined():
    assert settings.parse("evit:keep_rate=.9,.5:fuse_token=True,False") == [
        {"name": "evit", "keep_rate": rate, "fuse_token": fuse}
        for rate in (0.9, 0.5)
        for fuse in (True, False)
    ]


def test_values_may_be_tuples_words_and_fields_of_the_model():
    (found,) = settings.parse("imagepiece:prune_blocks=(2,5):schedule=A:prop_attn=True")
    assert found == {
        "name": "imagepiece",
        "prune_blocks": (2, 5),
        "schedule": "A",
        "prop_attn": True,
    }
    assert settings.parse("none") == [{"name": "none"}]


@pytest.mark.parametrize(
    "text, reason",
    [
        ("evit:keep_rate", "allowed is FIELD=VALUE"),
        ("evit:keep_rate=", "allowed is FIELD=VALUE"),
        ("tome:r=1:r=2", "r is there twice; allowed is one list"),
        ("evot:keep_rate=.5", "--sweep evot:keep_rate=.5: 'evot' .* you mean evit\\?$"),
        ("zebra", "--sweep zebra: .* the methods are"),
        ("evit:r=8", "--sweep evit:r=8: config.reduction.r is not a field of 'evit'"),
        ("evit:rate_warmup_epochs=3", "rate_warmup_epochs changes training alone; al"),
    ],
)
def test_what_cannot_be_read_is_named(text, reason):
    with pytest.raises(InputError, match=reason):
        settings.parse(text)
