"""Warnings about a disturbed measurement. Disturbed samples are flagged and kept."""

from __future__ import annotations

import numpy as np

from .. import stats
from .environment import Disturbance, Environment
from .measure import Measurement

MOST_VARIATION = 0.025
MOST_DRIFT = 0.01
MOST_STEAL = 0.01
MOST_OTHERS = 0.1
BUSY_OTHERS = 0.5
BUSY_STEAL = 0.05
TAIL = {"cpu": 2.0, "gpu": 1.5}
HARNESS_SHARE = 0.01


def outliers(m: Measurement) -> int:
    """Samples further than 3 interquartile ranges above the third quartile (Tukey's far out)."""
    low, high = np.quantile(m.samples_ns, [0.25, 0.75])
    return int((m.samples_ns > high + 3 * (high - low)).sum())


def warnings(
    m: Measurement, environment: Environment | None = None, disturbed: Disturbance | None = None
) -> tuple[str, ...]:
    """One sentence for each sign of noise."""
    found = _disturbances(disturbed) if disturbed else []
    if not m.warmup.steady:
        found.append(
            f"not steady after {m.warmup.seconds:.1f} s of warm-up: windows of "
            f"{min(m.warmup.windows_ms):.4g} to {max(m.warmup.windows_ms):.4g} ms"
        )
    variation = stats.robust_variation(m.samples_ns)
    if variation > MOST_VARIATION:
        found.append(f"the samples vary by {variation:.1%} (robust); 2.5 % is usual")
    drift = stats.slope_share(m.samples_ns)
    if abs(drift) > MOST_DRIFT:
        found.append(f"the latency drifted by {drift:+.1%} over the run")
    if stats.two_modes(m.samples_ns):
        found.append("the latency has two levels: look at the histogram")
    tail = m.latency(0.99)
    most = TAIL["cpu" if m.facts.device == "cpu" else "gpu"]
    if tail and tail.value / m.median_ms > most:
        found.append(f"p99 is {tail.value / m.median_ms:.1f} times the median")
    if environment:
        found += _limits(m, environment)
    if m.nonfinite:
        found.append(f"NaN or infinity in the output {', '.join(m.nonfinite)}")
    if m.varying:
        found.append(
            f"the shape of {', '.join(m.varying)} depends on the values, and so does the time: "
            "give real ones with --inputs or --data"
        )
    if m.doubtful:
        found.append(
            f"the integers in {', '.join(m.doubtful)} were drawn as 0 or 1: if they are a length, "
            "a shape or an index, real ones take another time; give them with --inputs"
        )
    if m.facts.fallback:
        found.append(
            f"{len(m.facts.fallback)} nodes do not run on {m.facts.provider}: "
            f"{', '.join(m.facts.fallback[:3])}{' ...' if len(m.facts.fallback) > 3 else ''}"
        )
    return tuple(found)


def is_busy(d: Disturbance) -> bool:
    """Whether so much else ran that the scheduler's slices are in the samples.

    A long run is interrupted more often than a short one, so even a ratio is distorted then.
    """
    return d.others > BUSY_OTHERS or d.steal > BUSY_STEAL


def _disturbances(d: Disturbance) -> list[str]:
    found = []
    if d.steal > MOST_STEAL:
        found.append(f"the hypervisor took {d.steal:.1%} of the CPU time (steal)")
    if d.others > MOST_OTHERS:
        found.append(
            f"other processes kept {d.others:.1f} CPUs busy"
            + (": the times are not the model's alone" if is_busy(d) else "")
        )
    if d.throttled:
        found.append(f"the CPU was throttled {d.throttled} times")
    return found


def _limits(m: Measurement, environment: Environment) -> list[str]:
    found = []
    threads = m.facts.options.get("intra_op_num_threads") or m.facts.options.get("threads") or 0
    allowed = len(environment.cpus_allowed)
    if isinstance(threads, int) and threads > allowed:
        found.append(f"{threads} threads on {allowed} CPUs that this process may use")
    if environment.cpu_quota is not None and environment.cpu_quota < max(
        threads if isinstance(threads, int) else 0, 1
    ):
        found.append(f"the control group allows {environment.cpu_quota:g} CPUs")
    return found
