"""A LightningModule, trained with Lightning Fabric on handwritten digits."""

import argparse

import lightning
import optuna
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import optuna_miha as miha

images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
train, valid, test = (TensorDataset(x[i], y[i]) for i in order.split([1077, 360, 360]))
fabric = lightning.Fabric(accelerator="cpu", devices=1)


class Digits(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))

    def training_step(self, batch, loss_fn):
        return loss_fn(self.net(batch[0]), batch[1])


def model_fn(trial):
    data = {"train_data": train, "valid_data": valid}
    return miha.Recipe(model=Digits(), loss_fn=nn.CrossEntropyLoss(), **data)


def trainer(recipe, n_epochs):
    model, optimizer = fabric.setup(recipe.model, recipe.optimizer)
    for _ in range(n_epochs):
        model.train()
        for batch in fabric.setup_dataloaders(DataLoader(train, recipe.batch_size, shuffle=True)):
            optimizer.zero_grad()
            fabric.backward(model.training_step(batch, recipe.loss_fn))
            fabric.clip_gradients(model, optimizer, max_norm=1.0)
            optimizer.step()
        model.eval()
        with torch.no_grad():
            loss = model.training_step(valid.tensors, recipe.valid_loss_fn)
        yield miha.EpochResult(value=loss.item())


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
