from __future__ import annotations

import pytest

from datasets.repos.coverage import contains, covering, includes, union

POSTS = ["post", "reply"]


def test_ranges_are_inclusive_and_may_be_open() -> None:
    [october] = covering(["post"], "2024-10-01", "2024-10-31").values()
    assert includes(october, "2024-10-01")
    assert includes(october, "2024-10-31")
    assert not includes(october, "2024-09-30")
    assert not includes(october, "2024-11-01")
    [everything] = covering(["post"], None, None).values()
    assert includes(everything, "0000-01-01")
    assert includes(everything, "9999-12-31")


def test_ranges_that_touch_are_one() -> None:
    first = covering(["post"], "2024-10-01", "2024-10-05")
    second = covering(["post"], "2024-10-06", "2024-10-10")
    assert union(first, second) == covering(["post"], "2024-10-01", "2024-10-10")
    third = covering(["post"], "2024-10-12", "2024-10-13")
    assert union(first, third)["post"] == (
        ("2024-10-01", "2024-10-05"),
        ("2024-10-12", "2024-10-13"),
    )


@pytest.mark.parametrize(
    ("part", "contained"),
    [
        (covering(["post"], "2024-10-02", "2024-10-04"), True),
        (covering(POSTS, "2024-10-01", "2024-10-05"), True),
        (covering(["post"], "2024-10-02", "2024-10-06"), False),
        (covering(["post"], None, "2024-10-04"), False),
        (covering(["post"], "2024-10-02", None), False),
        (covering(["like"], "2024-10-02", "2024-10-03"), False),
    ],
)
def test_what_a_coverage_contains(
    part: dict[str, tuple[tuple[str, str], ...]], *, contained: bool
) -> None:
    assert contains(covering(POSTS, "2024-10-01", "2024-10-05"), part) is contained


def test_everything_contains_everything() -> None:
    everything = covering(POSTS, None, None)
    assert contains(everything, everything)
    assert contains(everything, covering(["reply"], "2024-10-01", None))
    assert union(everything, covering(["post"], "2024-10-01", "2024-10-02")) == everything
    assert union(covering(["post"], "9999-12-31", "9999-12-31"), {}) == covering(
        ["post"], "9999-12-31", "9999-12-31"
    )
