"""`embedding-head`: a sentence encoder and a small linear head.

The default back end: the encoder and a head for each integration are
bundled, so that everything runs without a download.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from actors.models.arrays import Floats
from actors.models.contract import Backend, LocalModel
from actors.models.hashing import file_sha256
from actors.models.heads import bundled_head, load_head
from actors.models.outputs import OutputColumns, require_outputs
from actors.models.settings import ModelSettings
from datasets.errors import ConfigError


class EmbeddingHead(Backend):
    """Scores are those of the head that the settings name, or else of the bundled one."""

    def __init__(
        self,
        settings: ModelSettings,
        integration: str,
        local: LocalModel,
    ) -> None:
        from actors.models.encoder import Encoder
        from actors.models.torch_runtime import set_up_torch

        self._encoder = Encoder(settings, set_up_torch(settings))

        path = _head_path(settings, integration)
        self._head = load_head(path, local.outputs, self._encoder.sha256)
        require_outputs(local, self._head.outputs, f"the head {path}")
        self._columns = OutputColumns(local, self._head.outputs)

        self.model = f"{self._encoder.model} + {path.name}"
        self.revision = f"{self._encoder.sha256[:12]}+{file_sha256(path)[:12]}"

    @classmethod
    def check(cls, settings: ModelSettings, integration: str) -> None:
        path = _head_path(settings, integration)
        if not path.exists():
            raise ConfigError(
                f"there is no head {path}; check heads in backfill.toml, or train one"
            )

    def scores(self, texts: Sequence[str]) -> Floats:
        features = self._encoder.features(texts, self._head.layers)
        return self._columns.arrange(self._head.probabilities(features))


def _head_path(settings: ModelSettings, integration: str) -> Path:
    return Path(settings.heads) if settings.heads else bundled_head(integration)


BACKEND = EmbeddingHead
