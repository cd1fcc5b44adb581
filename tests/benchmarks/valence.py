"""Valence over 1,000,000 posts, the whole command, next to a bare VADER loop. `python -m tests.benchmarks.valence`

The loop runs before and after, on one thread; the target is 1.6 × half of its time, and 15 s. Two such
loops at once tell what two processors give here.
"""

from __future__ import annotations

import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from tests.benchmarks.lakes import command, make_posts, options, texts

POSTS = 1_000_000
_LOOP_SECONDS = 8.0


def main() -> None:
    posts = int(sys.argv[1]) if len(sys.argv) > 1 else POSTS
    with tempfile.TemporaryDirectory() as folder:
        where = options(folder, make_posts(Path(folder), posts))
        before = bare_rate()
        run = command("run", *where)
        again = command("run", *where)
        after = bare_rate()
    rate = (before + after) / 2
    target = 1.6 * posts / rate / 2 + 15
    with ProcessPoolExecutor(2) as loops:
        both = sum(loop.result() for loop in [loops.submit(bare_rate) for _ in range(2)])
    print(
        f"bare loop, one thread: {before:,.0f} and {after:,.0f} posts/s; two at once: {both:,.0f} together"
    )
    print(f"run: {posts:,} posts in {run.seconds:.1f} s, {posts / run.seconds:,.0f} posts/s")
    print(f"target on this machine: {target:.1f} s; reached {run.seconds / target:.2f} of it")
    print(f"the same command again, nothing to label: {again.seconds:.1f} s")


def bare_rate() -> float:
    """Posts a second."""
    analyzer, some = SentimentIntensityAnalyzer(), texts()
    started, done = time.perf_counter(), 0
    while time.perf_counter() < started + _LOOP_SECONDS:
        for text in some:
            analyzer.polarity_scores(text)
        done += len(some)
    return done / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
