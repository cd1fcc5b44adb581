"""Training heads from files of hand labels, and judging any configured back end on such files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from actors.contract import Outcome
from actors.integrations import Integration
from backfill.heads.hand_labels import Floats, Row, read_rows, targets_of, unused_labels, weights_of
from backfill.heads.model_card import HeldOut, Report, model_card
from datasets.errors import ConfigError

DEFAULT_SEED = 0
# The share of the layers at which the built-in heads look: the words, what they mean together, the whole.
_LAYER_SHARES = (0, 1 / 3, 2 / 3, 1)


def train_head(
    integration: Integration,
    labels: Sequence[str],
    output: str,
    settings: Any,
    test: str | None = None,
    seed: int = DEFAULT_SEED,
    notes: str = "",
) -> Report:
    """Writes the head and beside it its model card (.md). Rows may have a `weight`, 1 where they do not."""
    from actors.models.encoder import Encoder
    from actors.models.heads import save_head
    from actors.models.torch_runtime import set_up_torch
    from actors.models.training.examples import Examples
    from actors.models.training.train import train

    if integration.targets is None:
        raise ConfigError(f"{integration.name} has no model that could be trained")
    rows, targets, weights, not_used = _read_labels(integration, labels)
    tests = read_rows(test) if test else []
    encoder = Encoder(settings, set_up_torch(settings, dtype="float32"))
    layers = encoder.layers_at(_LAYER_SHARES)
    features = encoder.features([row["text"] for row in rows], layers=layers)
    trained = train(
        Examples(features, targets, weights), integration.groups, layers, encoder.sha256, seed
    )
    path = Path(output)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_head(path, trained.head)
    report = Report(_measures(integration, targets, trained.validated, weights >= 1), not_used)
    held_out = None
    if test:
        held_out = HeldOut(
            test, tests, evaluate_file(integration, _with_head(settings, path), test, seed)
        )
    card = model_card(
        integration, labels, rows, path, encoder.model, trained, report, held_out, seed, notes
    )
    path.with_suffix(".md").write_text(card, encoding="utf-8")
    if held_out is None:
        return report
    return Report(
        report.rows + [(f"held out: {row[0]}", *row[1:]) for row in held_out.report.rows],
        [*report.notes, *held_out.report.notes],
    )


def _read_labels(
    integration: Integration, labels: Sequence[str]
) -> tuple[Sequence[Row], Mapping[str, Floats], Floats, list[str]]:
    """The rows of some files, their targets and weights, and what of them is not used."""
    from actors.models.training.examples import check_examples, not_learned

    not_used: list[str] = []
    where = ", ".join(labels)
    rows = [row for path in labels for row in read_rows(path, not_used.append)]
    targets, weights = targets_of(integration, rows, labels), weights_of(rows, where)
    check_examples(targets, weights, integration.groups, where)

    not_used += unused_labels(integration, rows, where)
    if names := not_learned(targets):
        not_used.append(
            f"{where}: not learnt, because all labels of them are the same: {', '.join(names)}"
        )
    return rows, targets, weights, not_used


def _with_head(settings: Any, path: Path) -> Any:
    from dataclasses import replace

    return replace(settings, backend="embedding-head", heads=str(path))


def _measures(
    integration: Integration, targets: Mapping[str, Any], scores: Mapping[str, Any], own: Any
) -> list[tuple[str, str, str]]:
    """By output, and for groups by the likeliest of them."""
    from actors.models.training import evaluation

    rows = []
    grouped = {name for group in integration.groups for name in group}
    for name, score in scores.items():
        known = own & ~np.isnan(targets[name]) & ~np.isnan(score)
        truth, found = targets[name][known], score[known]
        if name in grouped or not len(truth):
            continue
        rows += _output_rows(name, truth, found)
    for group in integration.groups:
        names = [name for name in group if name in scores]
        if len(names) < 2:
            continue
        table, guess = (
            np.stack([part[name] for name in names], axis=1) for part in (targets, scores)
        )
        known = own & ~np.isnan(table).any(axis=1) & ~np.isnan(guess).any(axis=1)
        truth, found = table[known].argmax(axis=1), guess[known].argmax(axis=1)
        if not len(truth):
            continue
        label = "/".join(names)
        rows.append(
            (label, "accuracy", str(evaluation.estimate(evaluation.accuracy, truth, found)))
        )
        rows.append(
            (label, "macro-F1", str(evaluation.estimate(evaluation.macro_f1, truth, found)))
        )
    return rows


def _output_rows(name: str, truth: Any, found: Any) -> list[tuple[str, str, str]]:
    from actors.models.training import evaluation

    rows = [(name, "posts", f"{len(truth)}, {int((truth >= 0.5).sum())} of them {name}")]
    classes, guesses = truth >= 0.5, found >= 0.5
    rows.append((name, "accuracy", str(evaluation.estimate(evaluation.accuracy, classes, guesses))))
    if len(np.unique(classes)) == 1:
        return rows  # how many of one kind were found, and nothing more
    rows.append((name, "macro-F1", str(evaluation.estimate(evaluation.macro_f1, classes, guesses))))
    if set(np.unique(found)) - {0.0, 1.0}:
        rows.append((name, "AUC", str(evaluation.estimate(evaluation.auc, classes, found))))
    if set(np.unique(truth)) - {0.0, 1.0}:
        rows.append(
            (name, "rank correlation", str(evaluation.estimate(evaluation.spearman, truth, found)))
        )
    return rows


def evaluate_file(integration: Integration, settings: Any, path: str, seed: int = 0) -> Report:
    """Any configured back end over hand-labelled texts: accuracy, macro-F1, AUC where it has probabilities."""
    notes: list[str] = []
    rows = read_rows(path, notes.append)
    targets = targets_of(integration, rows, [path], kinds=1) if integration.targets else {}
    notes += unused_labels(integration, rows, path)
    outcomes = label_texts(integration, settings, [row["text"] for row in rows])
    if integration.targets is None:
        return Report(_column_measures(integration, rows, outcomes, seed), notes)
    measures = _measures(
        integration, targets, _scores(integration, outcomes), np.ones(len(rows), bool)
    )
    if not measures:
        raise ConfigError(
            f"{path}: no text with a label was labelled by {integration.name}; check its back end"
        )
    return Report(measures, notes)


def _column_measures(
    integration: Integration, rows: Sequence[Row], outcomes: Sequence[Outcome], seed: int
) -> list[tuple[str, str, str]]:
    """For an integration without a model: its columns against columns of the same names."""
    from actors.models.training import evaluation

    found = []
    for name, kind in integration.columns.items():
        pairs = [
            (row[name], outcome[name])
            for row, outcome in zip(rows, outcomes, strict=True)
            if isinstance(outcome, dict)
            and row.get(name) is not None
            and not _is_unused(integration, row)
        ]
        if pairs and kind != "float64":
            truth, guess = (np.array(side) for side in zip(*pairs, strict=True))
            found.append(
                (
                    name,
                    "accuracy",
                    str(evaluation.estimate(evaluation.accuracy, truth, guess, seed)),
                )
            )
            found.append(
                (
                    name,
                    "macro-F1",
                    str(evaluation.estimate(evaluation.macro_f1, truth, guess, seed)),
                )
            )
    if not found:
        raise ConfigError(f"the labels have none of the columns {', '.join(integration.columns)}")
    return found


def _is_unused(integration: Integration, row: Row) -> bool:
    return bool(integration.unused and integration.unused(row))


def agreement(integration: Integration, settings: Any, other: Any, path: str) -> Report:
    """How far two back ends agree on the same texts, column by column."""
    from actors.models.training import evaluation

    texts = [row["text"] for row in read_rows(path)]
    first, second = (label_texts(integration, each, texts) for each in (settings, other))
    rows = []
    for name, kind in integration.columns.items():
        pairs = [
            (a[name], b[name])
            for a, b in zip(_labels(first), _labels(second), strict=True)
            if _both(a, b, name)
        ]
        if not pairs:
            continue
        left, right = (np.array(side) for side in zip(*pairs, strict=True))
        if kind == "float64":
            rows.append(
                (
                    name,
                    "rank correlation",
                    str(evaluation.estimate(evaluation.spearman, left, right)),
                )
            )
        else:
            rows.append(
                (name, "agreement", str(evaluation.estimate(evaluation.accuracy, left, right)))
            )
            rows.append(
                (name, "Cohen's kappa", str(evaluation.estimate(evaluation.kappa, left, right)))
            )
    return Report(rows)


def _labels(outcomes: Sequence[Outcome]) -> list[Row]:
    return [outcome if isinstance(outcome, dict) else {} for outcome in outcomes]


def _both(a: Row, b: Row, name: str) -> bool:
    return a.get(name) is not None and b.get(name) is not None


def label_texts(integration: Integration, settings: Any, texts: Sequence[str]) -> list[Outcome]:
    """Outcomes from the back end as it is set, in this process."""
    integration.check_settings(settings)
    if integration.placement(settings) == "api":
        from actors.remote.client import connect_here

        assert integration.remote
        return list(
            connect_here(integration.remote(settings, integration.read_environment())).classify(
                texts
            )
        )
    return list(integration.load(settings).classify(texts))


def _scores(integration: Integration, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """What the labels say of each output, as a number: a probability where there is one, else 0 or 1."""
    assert integration.targets
    rows = [integration.targets(_as_row(outcome)) for outcome in outcomes]
    return {
        name: np.array([np.nan if row[name] is None else row[name] for row in rows], float)
        for name in integration.outputs
    }


def _as_row(outcome: Outcome) -> Row:
    """A label row as a row of hand labels. IME's probabilities go by the names of its labels."""
    if not isinstance(outcome, dict):
        return {}
    return {
        **outcome,
        **{
            key.removeprefix("prob_"): value
            for key, value in outcome.items()
            if key.startswith("prob_")
        },
    }
