"""How work scales with threads: the same sizes with one and with two, for ours and for each rival.

What the machine's own copy and product gain in the same rounds says what can be gained. Peers of the measures have one thread and no more.
"""

from __future__ import annotations

from collections.abc import Callable

from . import bench_emotion_attention, bench_fusion_kl, bench_metrics, bench_model, bench_reparameterize
from .race import Case

BOTH = ("forward", "forward+backward")
WORK: dict[str, tuple[tuple[str, ...], Callable[[str], Case]]] = {
    "emotion_attention": (BOTH, lambda direction: bench_emotion_attention.case_of(4, 256, 128, 4, 0.0, direction)),
    "fusion_kl": (BOTH, lambda _: bench_fusion_kl.case_of(48000, 128, "diagonal")),
    "reparameterize": (BOTH, lambda _: bench_reparameterize.case_of(64, 750, 128)),
    "training_step": (("forward",), lambda _: bench_model.trans_vae_training(4, 256, 128)),
    "generation": (("forward",), lambda _: bench_model.trans_vae_generation(1, 750, 128)),
    "frdist": (("forward",), lambda _: bench_metrics.frdist_case(bench_metrics.Problem("reactions", 8))),
}
"""By name: directions, and the case of one. What has a kind of its own has one direction."""

SCALED = ([], [(name, direction, threads) for name, (directions, _) in WORK.items() for direction in directions for threads in (1, 2)])


def test_growth_along_threads(race, scaled) -> None:
    name, direction, threads = scaled
    case = WORK[name][1](direction)
    case.series, case.memory = "threads", False
    case.size = f"{case.size}, along threads"
    race(case, direction, threads=threads)
