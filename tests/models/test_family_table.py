"""Every cell of the table of families against the facts that timm's models have.

tests/parity compares members with timm's and transformers' own classes.
"""

import pytest

from imagepiece_jax.models import registry
from tests.models import family_table
from tests.models.family_table import MEMBERS


def test_each_family_is_known():
    assert [*family_table.rows()] == [*MEMBERS]


@pytest.mark.parametrize("family", MEMBERS)
def test_cells_are_facts_of_all_members(family):
    row = family_table.rows()[family]
    names = family_table.members(family)
    assert row["such as"].strip("`") in names
    facts = [registry.fields_of(name) for name in names]
    archs = [each["arch"] for each in facts]
    tokens = {(arch.class_token, arch.dist_token, arch.registers) for arch in archs}
    assert family_table.prefixes(row) == tokens
    pools, headless = family_table.of_timm(row)
    assert pools == {arch.pool for arch in archs}
    of_all = "of all tokens" in row[family_table.HEAD]
    assert of_all == any(arch.pool_include_prefix for arch in archs)
    assert headless == all(each["num_classes"] == 0 for each in facts)
    assert row[family_table.SOURCES].startswith("timm")
