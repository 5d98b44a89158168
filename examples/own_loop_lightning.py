"""A LightningModule with its own optimizer and schedule, trained by lightning.Trainer."""

import argparse

import lightning
import optuna
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import optuna_miha as miha
from optuna_miha.integrations.lightning import LightningTrainer

images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
train, valid, test = (TensorDataset(x[i], y[i]) for i in order.split([1077, 360, 360]))


class Digits(lightning.LightningModule):
    def __init__(self, lr, weight_decay):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
        self.lr, self.weight_decay = lr, weight_decay

    def training_step(self, batch, index):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, index):
        self.log("val_loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self):
        adamw = torch.optim.AdamW(self.parameters(), self.lr, weight_decay=self.weight_decay)
        warm_up = torch.optim.lr_scheduler.LinearLR(adamw, total_iters=50)
        return {
            "optimizer": adamw,
            "lr_scheduler": {"scheduler": warm_up, "interval": "step"},
        }


trainer = LightningTrainer(
    lambda context: lightning.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ),
    monitor="val_loss",
)


def model_fn(trial):
    lr = trial.suggest_float("lr", 1e-4, 1e-1, log=True)
    module = Digits(lr, trial.suggest_float("weight_decay", 0.0, 0.1))
    return trainer.recipe(module, DataLoader(train, 32, shuffle=True), DataLoader(valid, 360))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--n-epochs", type=int, default=200)
    storage, sampler = "sqlite:///own_loop_lightning.db", miha.MihaSampler(seed=0)
    study = optuna.create_study(
        storage=storage, study_name="digits", load_if_exists=True, sampler=sampler
    )
    n_epochs = parser.parse_args().n_epochs
    result = miha.optimize(study, model_fn, n_epochs=n_epochs, trainer=trainer, device="cpu")
    predicted = result.model.net(test.tensors[0]).argmax(dim=1)
    print(f"test accuracy: {(predicted == test.tensors[1]).double().mean():.4f}")
