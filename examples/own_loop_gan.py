"""A loop that trains two networks against each other: a small GAN, points on a circle."""

import argparse

import optuna
import torch
from torch import nn

import optuna_miha as miha

angles = 2 * torch.pi * torch.rand(2000, generator=torch.Generator().manual_seed(0))
train, valid, test = torch.stack([angles.cos(), angles.sin()], dim=1).split([1000, 500, 500])
noise = torch.randn(500, 4, generator=torch.Generator().manual_seed(1))


def distance(x, y):
    within = torch.cdist(x, x).mean() + torch.cdist(y, y).mean()  # The energy distance.
    return (2 * torch.cdist(x, y).mean() - within).item()


def model_fn(trial):
    make = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 2))
    judge = nn.Sequential(nn.Linear(2, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1))
    model = nn.ModuleDict({"make": make, "judge": judge})
    miha.suggest_activations(trial, model)
    lrs = {name: trial.suggest_float(f"lr.{name}", 1e-4, 0.1, log=True) for name in model}
    groups = [{"params": model[name].parameters(), "lr": lrs[name]} for name in model]
    optimizer = torch.optim.Adam(groups, betas=(0.5, 0.999))
    data = {"train_data": (train, train), "valid_data": (valid, valid), "batch_size": 64}
    return miha.Recipe(model=model, loss_fn=nn.BCEWithLogitsLoss(), optimizer=optimizer, **data)


def trainer(recipe, n_epochs):
    make, judge, loss_fn = *recipe.model.values(), recipe.loss_fn
    for _ in range(n_epochs):
        for real in train[torch.randperm(len(train))].split(recipe.batch_size):
            fake, ones = make(torch.randn(len(real), 4)), torch.ones(len(real), 1)
            recipe.optimizer.zero_grad()  # To None: nothing of `make` is stepped now.
            loss_fn(judge(real), ones).backward()
            loss_fn(judge(fake.detach()), 0 * ones).backward()
            recipe.optimizer.step()
            recipe.optimizer.zero_grad()
            loss_fn(judge(fake), ones).backward(inputs=list(make.parameters()))  # Not to `judge`.
            recipe.optimizer.step()
        with torch.no_grad():
            value = distance(make(noise), valid)
        yield miha.EpochResult(value=value)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--n-epochs", type=int, default=200)
    storage, sampler = "sqlite:///own_loop_gan.db", miha.MihaSampler(seed=0)
    study = optuna.create_study(storage=storage, sampler=sampler)
    n_epochs = parser.parse_args().n_epochs
    result = miha.optimize(study, model_fn, n_epochs=n_epochs, trainer=trainer, device="cpu")
    with torch.no_grad():
        print(f"test distance: {distance(result.model['make'](noise), test):.4f}")
