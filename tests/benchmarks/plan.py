"""`plan` over 5,000,000 posts, half of them labelled. `python -m tests.benchmarks.plan [POSTS]`"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from tests.benchmarks.lakes import command, make_posts, options
from tests.support import VALENCE

POSTS = 5_000_000


def main() -> None:
    posts = int(sys.argv[1]) if len(sys.argv) > 1 else POSTS
    with tempfile.TemporaryDirectory() as folder:
        dates = make_posts(Path(folder), posts, days=50, labelled=VALENCE)
        plan = command("plan", *options(folder, dates), "--json", memory=True)
    total = json.loads(plan.stdout)["integrations"][VALENCE]["total"]
    print(
        f"{total:,} of {posts:,} posts to label: {plan.seconds:.1f} s, peak {plan.peak / 2**30:.2f} GiB (15 s, 2 GB)"
    )


if __name__ == "__main__":
    main()
