"""Names with suffixes."""

from __future__ import annotations

import pytest

from alignlab.models.variant import Variant, parse


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mae", Variant("mae")),
        ("mae@random", Variant("mae", random=True)),
        ("org/name[:12]", Variant("org/name", blocks=12)),
        ("a[:3]@random", Variant("a", random=True, blocks=3)),
        ("a@random[:3]", Variant("a", random=True, blocks=3)),
        ("folder@random/x", Variant("folder@random/x")),
    ],
)
def test_suffixes_are_taken_off_the_end(name, expected):
    assert parse(name) == expected


@pytest.mark.parametrize("name", ["a[:0]", "a[:-1]", "a[:x]", "a[:]", "a@random@random", "a[:1][:2]"])
def test_wrong_suffixes_are_named(name):
    with pytest.raises(ValueError, match=r"a\[" if "[" in name else "twice"):
        parse(name)
