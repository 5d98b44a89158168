"""Handwritten digits: a network, its search space and its training on one screen.

Prints a summary of the run and the accuracy on test samples. Writes the study (`quickstart.db`,
for optuna-dashboard), the model (`quickstart.pt`) and its hyperparameters over the epochs
(`schedule.csv`). Takes ten seconds on one core. A second call finds the study complete and returns
its result immediately.
"""

import argparse

import optuna
import torch
from sklearn.datasets import load_digits
from torch import nn

import optuna_miha as miha

images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
train, valid, test = order.split([1077, 360, 360])


def model_fn(trial: optuna.Trial) -> miha.Recipe:
    model = nn.Sequential(
        nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)
    )
    miha.suggest_activations(trial, model)
    return miha.Recipe(
        model=model,
        loss_fn=nn.CrossEntropyLoss(),
        optimizer=miha.suggest_optimizer(trial, model.parameters()),
        batch_size=miha.suggest_batch_size(trial, initial=32),
        train_data=(x[train], y[train]),
        valid_data=(x[valid], y[valid]),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--n-epochs", type=int, default=200, help="total budget, including all branches"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--storage", default="sqlite:///quickstart.db", help='"" for a study in memory'
    )
    args = parser.parse_args()

    study = optuna.create_study(
        storage=args.storage or None,
        study_name=f"digits-{args.seed}",
        load_if_exists=True,
        sampler=miha.MihaSampler(seed=args.seed),
        pruner=miha.SlopePruner(),
    )
    result = miha.optimize(study, model_fn, n_epochs=args.n_epochs)

    print(result.describe())
    with torch.no_grad():
        predicted = result.model.cpu()(x[test]).argmax(dim=1)
    print(f"test accuracy: {(predicted == y[test]).double().mean():.4f}")
    result.save("quickstart.pt")
    result.schedule.to_csv("schedule.csv")


if __name__ == "__main__":
    main()
