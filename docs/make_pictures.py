"""Draw the picture of a real run for the README: ``python docs/make_pictures.py`` (matplotlib)."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import matplotlib
import optuna
from matplotlib import pyplot as plt

import optuna_miha as miha

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "examples"))
matplotlib.use("Agg")

# Okabe and Ito's palette, which can be told apart with any colour vision.
COLOURS = {"startup": "#999999", "trunk": "#0072B2", "branch": "#E69F00", "final": "#009E73"}
LABELS = {
    "startup": "start-up race",
    "trunk": "trunk, training alone",
    "branch": "branches, one change each",
    "final": "final phase, learning rate to zero",
}


def draw(result: miha.Result, path: Path) -> None:
    """All segments over the epochs of their lineage; those of the surviving one in bold."""
    figure, axes = plt.subplots(figsize=(9, 4.2), dpi=150)
    by_number = {s.number: s for s in result.segments}
    head = max(result.segments, key=lambda s: (s.role == "trunk", s.cycle))
    survivors = {s.number for s in result.lineage}
    while head is not None:  # The trunk goes on after the epoch that validated best.
        survivors.add(head.number)
        head = by_number.get(head.parent)
    for s in sorted(result.segments, key=lambda s: s.number in survivors):
        epochs = list(range(s.birth + 1, s.end + 1))
        scores = list(s.scores)
        if s.parent is not None:
            epochs.insert(0, s.birth)
            scores.insert(0, by_number[s.parent].scores[-1])
        bold = s.number in survivors
        axes.plot(
            epochs,
            scores,
            color=COLOURS[s.role],
            linewidth=2.2 if bold else 0.9,
            alpha=1.0 if bold else 0.75,
            linestyle=":" if s.state == optuna.trial.TrialState.PRUNED else "-",
        )
        if s.state == optuna.trial.TrialState.PRUNED:
            axes.plot(epochs[-1:], scores[-1:], "x", color=COLOURS[s.role], markersize=5)
    best = result.schedule[-1]["to_epoch"]
    axes.plot([best], [result.value], "*", color="#D55E00", markersize=13, zorder=5)
    handles = [
        plt.Line2D([], [], color=COLOURS[r], linewidth=2.2, label=LABELS[r]) for r in COLOURS
    ]
    handles += [
        plt.Line2D([], [], color="#555555", linestyle=":", marker="x", label="pruned"),
        plt.Line2D([], [], color="#D55E00", linestyle="", marker="*", markersize=11, label="best"),
    ]
    axes.legend(handles=handles, frameon=False, fontsize=9)
    axes.set(xlabel="epochs of the lineage", ylabel="validation loss (averaged weights)")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
    axes.yaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    axes.set_yticks([0.15, 0.2, 0.3, 0.4])
    axes.set_ylim(0.14, 0.46)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    figure.tight_layout()
    figure.savefig(path)


if __name__ == "__main__":
    import mnist

    (x, y), n_train = mnist.load("train"), 8_000
    model_fn = partial(
        mnist.model_fn,
        train_data=(x[:n_train], y[:n_train]),
        valid_data=(x[n_train:], y[n_train:]),
    )
    study = optuna.create_study(sampler=miha.MihaSampler(seed=0), pruner=miha.SlopePruner())
    draw(miha.optimize(study, model_fn, n_epochs=200), HERE / "_static" / "run.png")
