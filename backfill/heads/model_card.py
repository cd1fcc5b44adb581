"""Model cards: what a head was made of, how good it is, and what nobody has checked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from actors.integrations import Integration
from actors.models.hashing import file_sha256
from backfill.heads.hand_labels import Row


@dataclass(frozen=True)
class Report:
    """Rows of (output or column, measure, value), ready to print, and what of the labels was not used."""

    rows: list[tuple[str, str, str]]
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class HeldOut:
    """What a head was judged on that it was not trained on."""

    labels: str
    rows: Sequence[Row]
    report: Report


def model_card(
    integration: Integration,
    labels: Sequence[str],
    rows: Sequence[Row],
    path: Path,
    encoder: str,
    trained: Any,
    report: Report,
    held_out: HeldOut | None,
    seed: int,
    notes: str,
) -> str:
    """Markdown."""
    lines = [
        f"# {path.name}",
        "",
        f"A linear head for `{integration.name}`, trained {datetime.now(UTC):%Y-%m-%d}.",
        "",
    ]
    lines += [
        f"- Encoder: {encoder}, weights SHA-256 `{trained.head.encoder_sha256}`, layers {list(trained.head.layers)}."
    ]
    lines += [
        f"- Head: SHA-256 `{file_sha256(path)}`, {trained.head.weight.size + trained.head.bias.size:,} numbers."
    ]
    lines += [f"- Outputs: {', '.join(trained.head.outputs)}. Seed {seed}, five folds."]
    lines += ["", "## Data", "", *_data(labels, rows), *(f"- {note}." for note in report.notes)]
    lines += [
        "",
        "## Cross-validation",
        "",
        "On texts that the head had not seen, with 95 % bootstrap intervals.",
        "",
    ]
    lines += _table(report)
    if held_out:
        lines += [
            "",
            "## Held out",
            "",
            *_data([held_out.labels], held_out.rows),
            "",
            *_table(held_out.report),
        ]
    lines += ["", "## Limits", "", notes or "Not validated on any other data than that above.", ""]
    return "\n".join(lines)


def _data(labels: Sequence[str], rows: Sequence[Row]) -> list[str]:
    """The files, and the texts by the source that they name."""
    sources = Counter(str(row.get("source", "unnamed")) for row in rows)
    return [
        *(f"- `{Path(name).name}`, SHA-256 `{file_sha256(Path(name))}`" for name in labels),
        f"- {len(rows):,} texts: "
        + ", ".join(f"{count:,} from {source}" for source, count in sources.most_common()),
    ]


def _table(report: Report) -> list[str]:
    return [
        "| output | measure | value |",
        "| --- | --- | --- |",
        *(f"| {' | '.join(row)} |" for row in report.rows),
    ]
