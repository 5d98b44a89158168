"""Gradient accumulation and clipping with Accelerate, on handwritten digits."""

import argparse

import optuna
import torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import nn

import optuna_miha as miha
from optuna_miha.integrations.accelerate import AccelerateTrainer

images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
train, valid, test = ((x[i], y[i]) for i in order.split([1077, 360, 360]))

trainer = AccelerateTrainer(
    lambda: Accelerator(cpu=True, gradient_accumulation_steps=2), max_grad_norm=1.0
)


def model_fn(trial):
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    data = {"train_data": train, "valid_data": valid, "batch_size": 16}
    return miha.Recipe(model=model, loss_fn=nn.CrossEntropyLoss(), **data)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--n-epochs", type=int, default=200)
    storage, sampler = "sqlite:///own_loop_accelerate.db", miha.MihaSampler(seed=0)
    study = optuna.create_study(
        storage=storage, study_name="digits", load_if_exists=True, sampler=sampler
    )
    n_epochs = parser.parse_args().n_epochs
    result = miha.optimize(study, model_fn, n_epochs=n_epochs, trainer=trainer, device="cpu")
    predicted = result.model(test[0]).argmax(dim=1)
    print(f"test accuracy: {(predicted == test[1]).double().mean():.4f}")
