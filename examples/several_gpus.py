"""All GPUs of a job train one network, with DistributedDataParallel or FSDP2.

    torchrun --nproc-per-node=2 examples/several_gpus.py
    torchrun --nproc-per-node=2 examples/several_gpus.py --fsdp

Without GPUs, the processes train on the CPU. Running the script again resumes the run.
"""

import argparse
import os

import optuna
import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

import optuna_miha as miha
from optuna_miha.integrations.torch_distributed import optimize_on_ranks, shard

images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
train, valid, test = (TensorDataset(x[i], y[i]) for i in order.split([1077, 360, 360]))


def model_fn(trial):
    layers = [nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.2), nn.Linear(128, 10)]
    return miha.Recipe(
        model=nn.Sequential(*layers),
        loss_fn=nn.CrossEntropyLoss(),
        train_data=train,
        valid_data=valid,
        batch_size=16,  # Of each process.
    )


def ddp(recipe, n_epochs, context):
    yield from train_epochs(DistributedDataParallel(recipe.model), recipe, n_epochs, context)


def fsdp(recipe, n_epochs, context):
    shard(recipe, [layer for layer in recipe.model if isinstance(layer, nn.Linear)])
    yield from train_epochs(recipe.model, recipe, n_epochs, context)


def train_epochs(model, recipe, n_epochs, context):
    sampler = DistributedSampler(recipe.train_data)
    loader = DataLoader(recipe.train_data, recipe.batch_size, sampler=sampler)
    own = range(dist.get_rank(), len(recipe.valid_data), dist.get_world_size())
    for epoch in range(context.epoch, context.epoch + n_epochs):
        sampler.set_epoch(epoch)
        model.train()
        for inputs, targets in loader:
            recipe.optimizer.zero_grad()
            outputs = model(inputs.to(context.device))
            recipe.loss_fn(outputs, targets.to(context.device)).backward()
            recipe.optimizer.step()

        model.eval()
        inputs, targets = (part.to(context.device) for part in recipe.valid_data[own])
        with torch.no_grad():
            loss = len(own) * recipe.valid_loss_fn(recipe.model(inputs), targets)
        dist.all_reduce(loss)
        yield miha.EpochResult(value=loss.item() / len(recipe.valid_data))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--n-epochs", type=int, default=200)
    parser.add_argument("--fsdp", action="store_true")
    arguments = parser.parse_args()
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group()

    study = None
    if dist.get_rank() == 0:
        storage, sampler = "sqlite:///several_gpus.db", miha.MihaSampler(seed=0)
        study = optuna.create_study(
            storage=storage, study_name="digits", load_if_exists=True, sampler=sampler
        )
    trainer = fsdp if arguments.fsdp else ddp
    result = optimize_on_ranks(study, model_fn, trainer=trainer, n_epochs=arguments.n_epochs)

    if dist.get_rank() == 0:
        inputs, targets = test[:]
        predicted = result.model.cpu()(inputs).argmax(dim=1)
        print(f"test accuracy: {(predicted == targets).double().mean():.4f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
