"""Optuna's `pytorch_simple`: layers and widths by an outer study, everything else within a run."""

import argparse

import optuna
import torch
from project import digits
from torch import nn

import optuna_miha as miha

train, valid, test = ((images.flatten(1), targets) for images, targets in digits())


def model_fn(trial):
    layers, width = [], 64
    for index in range(trial.suggest_int("n_layers", 1, 3)):
        units = trial.suggest_int(f"n_units_{index}", 8, 64, log=True)
        layers += [nn.Linear(width, units), nn.ReLU(), nn.Dropout(0.1)]
        width = units
    return miha.Recipe(
        model=nn.Sequential(*layers, nn.Linear(width, 10)),
        loss_fn=nn.CrossEntropyLoss(),
        train_data=train,
        valid_data=valid,
        batch_size=64,
        monitor="accuracy",
    )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--n-epochs", type=int, default=40, help="of each candidate")
    parser.add_argument("--n-trials", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plain", action="store_true", help="the outer study searches it all")
    options = parser.parse_args()
    plan = miha.Plan.no_search(options.n_epochs) if options.plain else miha.Plan(options.n_epochs)
    models = {}

    def objective(outer):
        params = {"n_layers": outer.suggest_int("n_layers", 1, 3)}
        for index in range(params["n_layers"]):
            name = f"n_units_{index}"
            params[name] = outer.suggest_int(name, 8, 64, log=True)
        initial = {}
        if options.plain:
            initial["lr"] = outer.suggest_float("lr", 1e-5, 1e-1, log=True)
            initial["optimizer"] = outer.suggest_categorical("optimizer", ["adam", "sgd"])
        sampler = miha.MihaSampler(seed=options.seed)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        result = miha.optimize(
            study,
            lambda trial: model_fn(miha.fixed(trial, params)),
            plan=plan,
            initial_params=initial,
            device="cpu",
        )
        models[outer.number] = result.model
        return result.value

    outer_study = optuna.create_study(
        direction="maximize", sampler=optuna.samplers.TPESampler(seed=options.seed)
    )
    outer_study.optimize(objective, n_trials=options.n_trials)
    print(outer_study.best_params)
    with torch.no_grad():
        outputs = models[outer_study.best_trial.number](test[0])
    print(f"test accuracy: {(outputs.argmax(1) == test[1]).double().mean():.4f}")


if __name__ == "__main__":
    main()
