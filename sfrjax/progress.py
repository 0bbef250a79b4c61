"""How far a long step has come: a bar with rate and time left, on standard error, where that is a terminal."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

T = TypeVar("T")


def tracked(
    items: Iterable[T], description: str, total: int, amount: Callable[[T], int] = lambda _: 1, *, shown: bool
) -> Iterator[T]:
    """Pass items on while a progress bar follows them; none where `shown` is False or nobody watches.

    Args:
        items: what the step works through.
        description: what the step does.
        total: sum of `amount` over all items.
        amount: how far an item advances the bar.
        shown: whether progress was asked for.
    """
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not (shown and console.is_terminal)) as progress:
        task = progress.add_task(description, total=total)
        for item in items:
            yield item
            progress.advance(task, amount(item))
        progress.update(task, completed=total)  # what was skipped is done, too


class _Rate(ProgressColumn):
    """Items per second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.3g}/s")
