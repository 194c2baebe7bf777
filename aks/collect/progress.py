"""What a run shows while it goes on, and says when it ends."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@dataclass(slots=True)
class CollectSummary:
    """What a run did. A race is one problem in one regime; a candidate is one config in one race."""

    path: Path
    problems: int = 0
    races: int = 0
    races_left: int = 0
    races_given_up: int = 0
    """Races without a full result: the next run tries them again."""
    candidates: int = 0
    measuring_seconds: float = 0.0
    statuses: Counter[str] = field(default_factory=Counter)
    stopped_by: str = "finished"
    """``finished``, ``minutes`` (the budget is used up) or ``interrupt`` (Ctrl-C)."""

    @property
    def candidates_per_second(self) -> float:
        """Candidates per second of measuring, compile time left out."""
        return self.candidates / self.measuring_seconds if self.measuring_seconds else 0.0

    def __str__(self) -> str:
        statuses = ", ".join(f"{count} {status}" for status, count in self.statuses.most_common()) or "nothing measured"
        lines = [
            f"{self.problems} problems, {self.candidates} candidates in {self.measuring_seconds:.1f} s of measuring: "
            f"{self.candidates_per_second:.0f} candidates a second",
            f"outcomes: {statuses}",
        ]
        if self.races_given_up:
            lines.append(f"{self.races_given_up} races given up: run the same command again to retry them")
        if self.stopped_by != "finished":
            reason = {"minutes": "the time budget is used up", "interrupt": "interrupted"}[self.stopped_by]
            lines.append(f"stopped with {self.races_left} races to go ({reason}): the same command goes on from here")
        return "\n".join([*lines, f"written to {self.path}"])


class CollectProgress:
    """A bar over races, with the time left, the rate, compiling in the background, and the problem under way."""

    def __init__(self, *, total: int, shown: bool) -> None:
        self._bar = Progress(
            TextColumn("collect"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[rate]}{task.fields[compiling]} | {task.description}"),
            disable=not shown,
        )
        self._task = self._bar.add_task("starting", total=total, rate="", compiling="")

    def __enter__(self) -> CollectProgress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def update(self, summary: CollectSummary, *, compiling: str = "", description: str | None = None) -> None:
        """Show the state of ``summary``."""
        rate = f"{summary.candidates_per_second:.0f} candidates/s"
        self._bar.update(self._task, rate=rate, compiling=f" | {compiling}" if compiling else "")
        if description is not None:
            self._bar.update(self._task, description=description)

    def advance(self) -> None:
        """One race is over."""
        self._bar.advance(self._task)
