"""Loading back ends with settings for exact comparisons, and reference computations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from actors.models.backends import load_model
from actors.models.contract import LocalModel
from actors.models.settings import ModelSettings
from tests import models

TEXTS = models.texts(60)


LOCAL = LocalModel(("toxic", "insult", "threat"), ("toxic",), dict)


IME = LocalModel(
    ("emotion", "intergroup", "moral", "other"),
    ("emotion", "intergroup", "moral"),
    dict,
)


FLOAT32 = {"dtype": "float32", "token_budget": 300}


def settings(model: Path, **changes: Any) -> ModelSettings:
    return ModelSettings(**{"model": str(model), **FLOAT32, **changes})


def load(backend: str, wanted: ModelSettings, local: LocalModel = LOCAL) -> Any:
    return load_model(backend, wanted, "ml_inference_test", local)


def logits(model: Path, texts: Sequence[str], pairs: Sequence[str] | None = None) -> torch.Tensor:
    """One text at a time, without any padding."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    network = transformers.AutoModelForSequenceClassification.from_pretrained(model).eval()
    found = []
    with torch.no_grad():
        for index, text in enumerate(texts):
            second = [pairs[index]] if pairs else []
            encoded = tokenizer(text, *second, return_tensors="pt", truncation=True, max_length=512)
            found.append(
                network(encoded["input_ids"], attention_mask=encoded["attention_mask"]).logits[0]
            )
    return torch.stack(found)


def close(found: Any, expected: Any) -> bool:
    return np.allclose(found, np.asarray(expected), atol=2e-5)
