"""Halving jobs, so that processes share them evenly."""

from __future__ import annotations

from dataclasses import replace

from optuna_miha._training.job import Job


def n_left_over(n_jobs: int, n_processes: int) -> int:
    """Return how many jobs remain after all processes ran the same number, at least one."""
    return n_jobs % n_processes if n_jobs > n_processes else 0


def halves_of(job: Job) -> tuple[Job, Job | None]:
    """Halve a job if possible; the second half still lacks its state."""
    n_first = job.n_epochs // 2
    # Annealing and patience depend on all epochs of the job.
    if n_first == 0 or job.anneal or job.patience is not None:
        return job, None
    start, end = job.share
    middle = start + (end - start) * n_first / job.n_epochs
    course = job.course and replace(job.course, begin=job.course.begin + n_first)
    first = replace(job, n_epochs=n_first, share=(start, middle))
    n_rest = job.n_epochs - n_first
    return first, replace(job, n_epochs=n_rest, course=course, share=(middle, end))
