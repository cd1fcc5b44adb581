"""Peak memory of a run over 2,000,000 posts and over 200,000. `python -m tests.benchmarks.memory [FEW MANY]`"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.benchmarks.lakes import command, make_posts, options

FEW, MANY = 200_000, 2_000_000


def main() -> None:
    few, many = [int(text) for text in sys.argv[1:3]] or (FEW, MANY)
    peaks = {}
    for posts in (few, many):
        with tempfile.TemporaryDirectory() as folder:
            dates = make_posts(Path(folder), posts, days=max(2, posts // 100_000))
            run = command("run", *options(folder, dates), memory=True)
        peaks[posts] = run.peak
        print(
            f"{posts:,} posts: peak {run.peak / 2**30:.2f} GiB of all processes, {run.seconds:.0f} s"
        )
    print(f"ratio {peaks[many] / peaks[few]:.2f} (target: at most 1.25)")


if __name__ == "__main__":
    main()
