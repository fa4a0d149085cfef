"""Two runs side by side, by the ratio to the best rival: absolute times of different runs cannot be compared, ratios can."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import DataError
from .races import Race, Run


@dataclass(frozen=True)
class Verdict:
    """One race before and after.

    Attributes:
        race: the later one; the earlier one where the later run lacks it.
        before, after: how many times faster than the best rival; None where the race is missing in a run.
        rivals: the best rival before and after, of those that ran both times.
        state: ``regressed``, ``improved``, ``same``, ``new`` (only after), ``missing`` (only before) or ``no common rival``.
    """

    race: Race
    before: float | None
    after: float | None
    rivals: tuple[str, str]
    state: str

    @property
    def change(self) -> float | None:
        """After over before, less 1."""
        return None if self.before is None or self.after is None else self.after / self.before - 1


def compare(before: Sequence[Run], after: Sequence[Run], tolerance: float = 0.1) -> list[Verdict]:
    """Judge every race of either run: regressed where the ratio to the best rival fell by more than `tolerance`.

    The best rival is the fastest of those that ran in both, each time anew: a rival that was left out of one run makes nobody faster.

    Args:
        before, after: runs; where several hold a race the last one counts.
        tolerance: share of the ratio, 0.1 for a tenth, in [0, 1).

    Raises:
        ValueError: the tolerance is out of its range.
        DataError: the runs have no race in common.
    """
    if not 0 <= tolerance < 1:
        raise ValueError(f"tolerance takes a share from 0 on and below 1; got {tolerance}")
    old, new = ({race.key: race for run in runs for race in run.races} for runs in (before, after))
    if not old.keys() & new.keys():
        raise DataError(
            f"{_files(before)} and {_files(after)} have no race in common: {len(old)} and {len(new)}, of other operators, sizes or threads"
        )
    return [_judge(old.get(key), new.get(key), tolerance) for key in {**new, **old}]


def _judge(old: Race | None, new: Race | None, tolerance: float) -> Verdict:
    if old is None or new is None:
        race = new or old
        assert race is not None
        ratio = race.ratio(race.best_rival) if race.rivals else None
        if old is None:
            return Verdict(race, None, ratio, ("", race.best_rival), "new")
        return Verdict(race, ratio, None, (race.best_rival, ""), "missing")
    common = [name for name in new.rivals if name in old.seconds]
    if not common:
        return Verdict(new, None, None, (old.best_rival, new.best_rival), "no common rival")
    rivals = old.best_of(common), new.best_of(common)
    first, then = old.ratio(rivals[0]), new.ratio(rivals[1])
    # A ratio that fell to (1 - tolerance) of itself has regressed; one that rose so far that the way back would be that has improved.
    state = "regressed" if then < first * (1 - tolerance) else "improved" if then * (1 - tolerance) > first else "same"
    return Verdict(new, first, then, rivals, state)


def _files(runs: Sequence[Run]) -> str:
    return ", ".join(str(path) for run in runs for path in run.paths)
