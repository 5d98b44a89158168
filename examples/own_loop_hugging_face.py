"""A vision transformer of Hugging Face on handwritten digits, trained by transformers.Trainer."""

import argparse

import optuna
import torch
from sklearn.datasets import load_digits
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification

import optuna_miha as miha
from optuna_miha.integrations.transformers import TransformersTrainer

images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images / 16, dtype=torch.float32).reshape(-1, 1, 8, 8), torch.tensor(labels)
order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
train, valid, test = order.split([1077, 360, 360])
sizes = {"hidden_size": 32, "intermediate_size": 64}
sizes |= {"num_hidden_layers": 2, "num_attention_heads": 2, "num_channels": 1, "num_labels": 10}
config = ViTConfig(image_size=8, patch_size=2, **sizes)


class Digits(torch.utils.data.Dataset):
    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return {"pixel_values": x[self.rows[index]], "labels": y[self.rows[index]]}


trainer = TransformersTrainer(monitor="eval_loss")


def model_fn(trial):
    arguments = TrainingArguments(
        output_dir="own_loop_hugging_face",
        learning_rate=trial.suggest_float("lr", 1e-4, 1e-2, log=True),
        weight_decay=trial.suggest_float("weight_decay", 0.0, 0.1),
        warmup_steps=trial.suggest_int("warmup_steps", 0, 100),
        lr_scheduler_type="constant_with_warmup",
        per_device_train_batch_size=32,
        eval_strategy="epoch",
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    model = ViTForImageClassification(config)
    data = {"train_dataset": Digits(train), "eval_dataset": Digits(valid)}
    return trainer.recipe(Trainer(model, arguments, **data))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--n-epochs", type=int, default=200)
    storage, sampler = "sqlite:///own_loop_hugging_face.db", miha.MihaSampler(seed=0)
    study = optuna.create_study(
        storage=storage, study_name="digits", load_if_exists=True, sampler=sampler
    )
    n_epochs = parser.parse_args().n_epochs
    result = miha.optimize(study, model_fn, n_epochs=n_epochs, trainer=trainer, device="cpu")
    predicted = result.model(x[test]).logits.argmax(dim=1)
    print(f"test accuracy: {(predicted == y[test]).double().mean():.4f}")
