"""Linear heads on a sentence encoder: a few kilobytes of safetensors that make a classifier of it.

A head is `weight` [outputs, features] and `bias` [outputs]. Calibration is folded into both. Its
metadata says which encoder it was trained on, by the hash of the weights, and refuses any other.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from datasets.errors import ConfigError

# The one key of the file's metadata: safetensors writes several in no order, and the same head is to be the same bytes.
FORMAT = "label-backfill linear head 1"
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Head:
    """`groups` are outputs that exclude each other (softmax); the rest are independent (sigmoid).

    `layers` of the encoder's hidden states (0 is the embedding) are pooled by the mean over the
    text's tokens, each scaled to length 1, and set side by side: that is the features.
    """

    outputs: tuple[str, ...]
    groups: tuple[tuple[str, ...], ...]
    layers: tuple[int, ...]
    encoder_sha256: str
    weight: Floats
    bias: Floats

    def probabilities(self, features: Floats) -> Floats:
        """[rows, outputs] from [rows, features]."""
        logits = features @ self.weight.T + self.bias
        found = 1 / (1 + np.exp(-logits))
        for group in self.groups:
            columns = [self.outputs.index(name) for name in group]
            part = np.exp(logits[:, columns] - logits[:, columns].max(axis=1, keepdims=True))
            found[:, columns] = part / part.sum(axis=1, keepdims=True)
        return np.asarray(found, np.float32)


def save_head(path: Path, head: Head) -> None:
    from safetensors.numpy import save_file

    about = {
        "outputs": head.outputs,
        "groups": head.groups,
        "layers": head.layers,
        "encoder_sha256": head.encoder_sha256,
    }
    save_file({"weight": head.weight, "bias": head.bias}, path, {FORMAT: json.dumps(about)})


def load_head(path: Path, outputs: Sequence[str], encoder_sha256: str) -> Head:
    """Raises ConfigError where the file is missing, is no head, or is of another integration or encoder."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            metadata: dict[str, str] = file.metadata() or {}
            if FORMAT not in metadata:
                raise ConfigError(
                    f"{path} is not a head of this project; train one with `python -m cli train-head`"
                )
            weight, bias = file.get_tensor("weight"), file.get_tensor("bias")
    except FileNotFoundError as error:
        raise ConfigError(
            f"there is no head {path}; check heads in backfill.toml, or train one"
        ) from error
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"the head {path} cannot be read ({error}); train it again") from error
    about = json.loads(metadata[FORMAT])
    head = Head(
        tuple(about["outputs"]),
        tuple(tuple(group) for group in about["groups"]),
        tuple(about["layers"]),
        about["encoder_sha256"],
        weight,
        bias,
    )
    unknown = set(head.outputs) - set(outputs)
    if unknown:
        raise ConfigError(
            f"the head {path} has an output {min(unknown)!r} that this integration has not; name its own"
        )
    if head.encoder_sha256 != encoder_sha256:
        raise ConfigError(
            f"the head {path} was trained on an encoder with other weights (SHA-256 {head.encoder_sha256[:12]}…, here "
            f"{encoder_sha256[:12]}…); use that encoder, or train a head for this one"
        )
    return head


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def built_in(integration: str) -> Path:
    """The head that comes along with the project."""
    return Path(__file__).parent / "assets" / "heads" / f"{integration}.safetensors"
