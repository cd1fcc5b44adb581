"""Linear heads: a few kilobytes of safetensors that turn a sentence encoder into a classifier.

A head is `weight` [outputs, features] and `bias` [outputs], with the
calibration folded into both. Its metadata names the encoder it was trained
on, by the hash of the weights; with any other encoder it is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from actors.models.arrays import Floats
from datasets.errors import ConfigError

# The only key of the file's metadata. safetensors writes several keys in
# random order, and the same head must be the same bytes.
FORMAT = "label-backfill linear head 1"


@dataclass(frozen=True)
class Head:
    """`groups` are sets of exclusive outputs (softmax); the others are independent (sigmoid).

    The features are the hidden states of the encoder's `layers` (0 is the
    embedding): each averaged over the tokens of the text, scaled to length
    1, and concatenated.
    """

    outputs: tuple[str, ...]
    groups: tuple[tuple[str, ...], ...]
    layers: tuple[int, ...]
    encoder_sha256: str
    weight: Floats
    bias: Floats

    def probabilities(self, features: Floats) -> Floats:
        """float32 [rows, outputs] from [rows, features]."""
        logits = features @ self.weight.T + self.bias
        found = 1 / (1 + np.exp(-logits))

        for group in self.groups:
            columns = [self.outputs.index(name) for name in group]
            grouped = logits[:, columns]
            powers = np.exp(grouped - grouped.max(axis=1, keepdims=True))
            found[:, columns] = powers / powers.sum(axis=1, keepdims=True)
        return np.asarray(found, np.float32)


def save_head(path: Path, head: Head) -> None:
    """Writes a head. The same head gives the same bytes."""
    from safetensors.numpy import save_file

    metadata = {
        "outputs": head.outputs,
        "groups": head.groups,
        "layers": head.layers,
        "encoder_sha256": head.encoder_sha256,
    }
    tensors = {"weight": head.weight, "bias": head.bias}
    save_file(tensors, path, {FORMAT: json.dumps(metadata)})


def load_head(path: Path, outputs: Sequence[str], encoder_sha256: str) -> Head:
    """Reads a head for an integration with these `outputs`, and for this encoder.

    Raises ConfigError if the file is missing, is not a head, or is the head
    of another integration or encoder.
    """
    metadata, weight, bias = _read(path)
    head = Head(
        tuple(metadata["outputs"]),
        tuple(tuple(group) for group in metadata["groups"]),
        tuple(metadata["layers"]),
        metadata["encoder_sha256"],
        weight,
        bias,
    )

    unknown = set(head.outputs) - set(outputs)
    if unknown:
        raise ConfigError(
            f"the head {path} has an output {min(unknown)!r} that this integration does not have; "
            "use a head that was trained for it"
        )
    if head.encoder_sha256 != encoder_sha256:
        raise ConfigError(
            f"the head {path} was trained on an encoder with other weights (SHA-256 "
            f"{head.encoder_sha256[:12]}…, here {encoder_sha256[:12]}…); use that encoder, or "
            "train a head for this one"
        )
    return head


def _read(path: Path) -> tuple[Mapping[str, Any], Floats, Floats]:
    """The metadata of a head, its weight and its bias."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            metadata: dict[str, str] = file.metadata() or {}
            if FORMAT not in metadata:
                raise ConfigError(
                    f"{path} is not a head of this project; "
                    "train one with `python -m cli train-head`"
                )
            return (
                json.loads(metadata[FORMAT]),
                file.get_tensor("weight"),
                file.get_tensor("bias"),
            )
    except FileNotFoundError as error:
        raise ConfigError(
            f"there is no head {path}; check heads in backfill.toml, or train one"
        ) from error
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"the head {path} cannot be read ({error}); train it again") from error


def bundled_head(integration: str) -> Path:
    """The path of the head that is part of the project."""
    return Path(__file__).parent / "assets" / "heads" / f"{integration}.safetensors"
