"""Work done by threads beside the consumer's own, in order and only so far ahead."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

# Of each kind of work beside the computation: enough to keep an accelerator busy, and on few cores not so many as to
# take them from the network for long.
THREADS = min(max(2, os.cpu_count() or 1), 8)

T = TypeVar("T")
R = TypeVar("R")


def ahead(work: Callable[[T], R], items: Iterable[T], *, threads: int, most: int) -> Iterator[tuple[T, "Future[R]"]]:
    """Each item with the future of `work(item)`, in order; at most `most` items are taken before they are asked for.

    What has not begun when the consumer stops is not done.
    """
    remaining = iter(items)
    with ThreadPoolExecutor(threads) as pool:
        pending = deque((item, pool.submit(work, item)) for item in islice(remaining, most))
        try:
            while pending:
                item, future = pending.popleft()
                pending.extend((following, pool.submit(work, following)) for following in islice(remaining, 1))
                yield item, future
        finally:
            for _, future in pending:
                future.cancel()
