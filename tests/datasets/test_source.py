from __future__ import annotations

from pathlib import Path

import pytest

from datasets import source
from datasets.lake import Lake
from datasets.posts import no_uris, post_sources, raise_bad_file, select
from tests.support import post, write_posts

DAYS = ["2024-10-01", "2024-10-02", "2024-10-03"]


@pytest.mark.usefixtures("ray_here")
@pytest.mark.parametrize(
    ("block_rows", "first"), [(8, 1), (200, 25), (480, 60), (720, 90), (10_000, 180)]
)
def test_blocks_hold_each_post_once_in_order_and_the_first_comes_early(
    lake_dir: Path, block_rows: int, first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "_CHUNK_ROWS", 20)
    rows = [
        [post(100 * index + n, text=f"text {n}") for n in range(60)] for index in range(len(DAYS))
    ]
    for day, of_day in zip(DAYS, rows, strict=True):
        write_posts(lake_dir, day, of_day)
    lake = Lake(str(lake_dir))
    sources = post_sources(lake, "posts", DAYS[0], DAYS[-1], 0, raise_bad_file)
    selection = select(lake, sources, {"x": no_uris})["x"]
    posts = source.eligible_posts(lake, selection, block_rows, readers=1)
    posts.context.execution_options.preserve_order = True
    blocks = [
        table["uri"].to_pylist()
        for table in posts.iter_batches(batch_size=None, batch_format="pyarrow")
    ]
    assert len(blocks[0]) == first
    assert [uri for block in blocks for uri in block] == [
        row["uri"] for of_day in rows for row in of_day
    ]
