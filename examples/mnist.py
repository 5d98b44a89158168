"""MNIST with the fully connected network of MIHA's article: 784-400-10, ReLU, Adam, batch size 32.

Of 10,000 training samples, 2,000 are used for validation. Branches are selected by accuracy,
because this network quickly becomes overconfident: its validation loss rises while its accuracy
still improves. Dropout and label smoothing may appear during training. The 10,000 test samples are
evaluated once at the end.

Prints a summary of the run and its test accuracy. With `--baseline`, also prints that of the
initial configuration, trained for the same number of epochs, at its best validation epoch. Takes
two minutes on one core, and the same time for the baseline.
"""

import argparse
from functools import partial
from pathlib import Path

import numpy as np
import optuna
import torch
from torch import Tensor, nn

import optuna_miha as miha

Pair = tuple[Tensor, Tensor]


def load(split: str) -> Pair:
    arrays = np.load(Path(__file__).parent / "data" / "mnist_10k.npz")
    x, y = torch.tensor(arrays[f"x_{split}"]), torch.tensor(arrays[f"y_{split}"])
    return x.float() / 255, y.long()


def model_fn(
    trial: optuna.Trial,
    train_data: Pair,
    valid_data: Pair,
    test_data: Pair | None = None,
    monitor: str = "accuracy",
) -> miha.Recipe:
    model = nn.Sequential(
        nn.Dropout(0.0),  # Initial rate: the article's network has no dropout.
        nn.Linear(784, 400),
        nn.ReLU(),
        nn.Dropout(0.0),
        nn.Linear(400, 10),
    )
    miha.suggest_activations(trial, model)
    miha.suggest_dropout(trial, model)
    return miha.Recipe(
        model=model,
        loss_fn=nn.CrossEntropyLoss(label_smoothing=miha.suggest_label_smoothing(trial)),
        optimizer=miha.suggest_optimizer(trial, model.parameters(), initial="adam"),
        batch_size=miha.suggest_batch_size(trial, initial=32),
        train_data=train_data,
        valid_data=valid_data,
        test_data=test_data,  # For `optuna_miha.compare`; not used for selection.
        monitor=monitor,
    )


def accuracy(model: nn.Module, data: Pair) -> float:
    x, y = data
    with torch.no_grad():
        return (model.cpu()(x).argmax(dim=1) == y).double().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--n-epochs", type=int, default=200, help="total budget, including all branches"
    )
    parser.add_argument(
        "--n-samples", type=int, default=10_000, help="a fifth of them is used for validation"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--storage", default="sqlite:///mnist.db", help='"" for a study in memory')
    parser.add_argument("--baseline", action="store_true", help="train without search as well")
    args = parser.parse_args()

    x, y = (part[: args.n_samples] for part in load("train"))
    n_train = args.n_samples * 4 // 5
    build = partial(
        model_fn, train_data=(x[:n_train], y[:n_train]), valid_data=(x[n_train:], y[n_train:])
    )

    def run(name: str, plan: miha.Plan) -> miha.Result:
        study = optuna.create_study(
            storage=args.storage or None,
            study_name=f"{name}, {args.n_samples} samples, {args.n_epochs} epochs, {args.seed}",
            load_if_exists=True,
            direction="maximize",
            sampler=miha.MihaSampler(seed=args.seed),
            pruner=miha.SlopePruner(),
        )
        return miha.optimize(study, build, plan=plan)

    result = run("miha", miha.Plan(args.n_epochs))
    print(result.describe())
    print(f"test accuracy: {accuracy(result.model, load('test')):.4f}")
    if args.baseline:
        initial = run("initial configuration", miha.Plan.no_search(args.n_epochs))
        print(f"initial configuration: {accuracy(initial.model, load('test')):.4f}")


if __name__ == "__main__":
    main()
