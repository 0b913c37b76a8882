"""Records in files keep their names when the code's names change."""

import hashlib
import json

import pytest

from imagepiece_jax import METHODS
from imagepiece_jax.models.create import create_model
from imagepiece_jax.models.record import as_json

# SHA-256 of DeiT-S's recorded plan at revision c911925c, before rules and fields were
# renamed.
STORED_PLANS = {
    "atc": "bb19b328702e",
    "attended": "7cb032bf548b",
    "diffrate": "a79a6cb8e259",
    "dpc_knn": "65d05fae60a5",
    "dtem": "619a1bbebb8a",
    "dynamicvit": "606ad6f0ccef",
    "evit": "1a552a1ad3eb",
    "grid_pooling": "36c8b9299028",
    "imagepiece": "a9d087e5457f",
    "imagepiece_dynamicvit": "9b95cb88bcf0",
    "imagepiece_tome": "07bca322c120",
    "mctf": "00998452efd5",
    "none": "071f5762f682",
    "peaks": "f17a20def6c2",
    "pitome": "be510fd3a8da",
    "random": "5f1b650e56c5",
    "spvit": "a15161266a1c",
    "tofu": "969eeac81fc6",
    "token_learner": "2c253e105f36",
    "token_pooling": "574abb42974f",
    "tome": "997624567591",
}


def test_every_method_has_a_stored_plan():
    assert STORED_PLANS.keys() == {*METHODS}


@pytest.mark.parametrize("method", STORED_PLANS)
def test_a_plans_record_never_changes(method):
    plan = create_model("deit_s", reduction=method).plan
    record = json.dumps(as_json(plan), sort_keys=True)
    assert hashlib.sha256(record.encode()).hexdigest()[:12] == STORED_PLANS[method]
