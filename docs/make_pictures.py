"""Draw the figures of a run on gap filling: ``python docs/make_pictures.py`` (takes minutes)."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import optuna

import optuna_miha as miha
from optuna_miha import visualization

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "examples"))

FIGURES = {
    "run": visualization.plot_lineage,
    "history": visualization.plot_training_history,
    "schedule": visualization.plot_schedule,
    "gains": visualization.plot_mutation_gains,
}


def draw(study: optuna.Study, folder: Path) -> None:
    """Write every figure of a run as PNG."""
    for name, plot in FIGURES.items():
        visualization.write_picture(plot(study), folder / f"{name}.png", scale=1.5)


if __name__ == "__main__":
    import gap_filling

    model_fn = partial(
        gap_filling.model_fn,
        train_data=gap_filling.make_fields(400, seed=0),
        valid_data=gap_filling.make_fields(100, seed=1),
    )
    study = optuna.create_study(sampler=miha.MihaSampler(seed=0), pruner=miha.SlopePruner())
    miha.optimize(study, model_fn, n_epochs=400)
    draw(study, HERE / "_static")
