"""Numbers that users set: each must be one that something can be done with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

# Less than anyone wants of anything, and more than anyone has; few enough seconds for every clock.
_LEAST, _MOST, _MOST_SECONDS = 1e-6, 1e12, 1e8


def check_numbers(
    settings: Any,
    kind: type | None = None,
    *,
    zero: Sequence[str] = (),
    most: Mapping[str, float] | None = None,
) -> None:
    """Raises ValueError that names a numeric field which is not finite, not above 0 (`zero`: below 0), or absurd.

    `kind` is the dataclass whose fields are looked at, where `settings` is of one derived from it.
    """
    for field in fields(kind or settings):
        value = getattr(settings, field.name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        seconds = field.name.endswith("seconds") or field.name == "timeout"
        limit = (most or {}).get(field.name, _MOST_SECONDS if seconds else _MOST)
        # NaN is neither above nor below anything.
        if not ((0 if field.name in zero else _LEAST) <= value <= limit):
            least = "not below 0" if field.name in zero else "above 0"
            raise ValueError(f"{field.name} must be a number {least} and at most {limit:g}")
