"""Proximal policy optimization (PPO) whose hyperparameters mutate, on a swing-up pendulum.

An epoch is 2048 steps of the environments, which run on from epoch to epoch. The mean return of 64
episodes is maximized.
"""

import argparse

import optuna
import torch
from torch import nn
from torch.distributions import Normal

import optuna_miha as miha

N_ENVS, N_STEPS, LENGTH = 16, 128, 100  # Steps of an epoch: N_ENVS * N_STEPS.
START = {"lr": 1e-3, "entropy": 1e-2, "horizon": 50.0, "clip": 0.2}


class Pendulums(nn.Module):
    """A batch of pendulums, rewarded for being upright; an episode has LENGTH steps."""

    def __init__(self, n):
        super().__init__()
        self.register_buffer("state", torch.zeros(n, 2))  # Angle and speed.
        self.register_buffer("age", torch.zeros(n, dtype=torch.long))

    def reset(self, ended, generator=None):
        start = torch.rand(len(self.state), 2, generator=generator) - 0.5
        start *= torch.tensor([2 * torch.pi, 2.0])
        self.state = torch.where(ended[:, None], start, self.state)
        self.age = torch.where(ended, 0, self.age)

    def observe(self):
        angle, speed = self.state.T
        return torch.stack([angle.cos(), angle.sin(), speed / 8], dim=1)

    def step(self, action):
        angle, speed = self.state.T
        torque = 2 * action.clamp(-1, 1)
        from_top = torch.remainder(angle + torch.pi, 2 * torch.pi) - torch.pi
        reward = -(from_top**2 + 0.1 * speed**2 + 0.001 * torque**2) / 10
        speed = (speed + 0.05 * (15 * angle.sin() + 3 * torque)).clamp(-8, 8)
        self.state = torch.stack([angle + 0.05 * speed, speed], dim=1)
        self.age = self.age + 1
        return reward, self.age == LENGTH


class Agent(nn.Module):
    def __init__(self):
        super().__init__()
        self.policy = nn.Sequential(nn.Linear(3, 64), nn.Tanh(), nn.Linear(64, 1))
        self.value = nn.Sequential(nn.Linear(3, 64), nn.Tanh(), nn.Linear(64, 1))
        self.log_std = nn.Parameter(torch.zeros(1))

    def forward(self, seen):
        return Normal(self.policy(seen)[:, 0], self.log_std.exp()), self.value(seen)[:, 0]


def model_fn(trial):
    lr = trial.suggest_float("lr", 1e-4, 1e-2, log=True)
    trial.suggest_float("entropy", 1e-4, 1e-1, log=True)
    trial.suggest_float("horizon", 5.0, 200.0, log=True)
    trial.suggest_float("clip", 0.05, 0.5)
    agent = Agent()
    return miha.Recipe(model=agent, optimizer=torch.optim.Adam(agent.parameters(), lr=lr))


def collect(agent, envs, gamma):
    """Play N_STEPS steps; returns observations, actions, log probabilities, and advantages."""
    rows = []
    for _ in range(N_STEPS):
        seen = envs.observe()
        policy, value = agent(seen)
        action = policy.sample()
        reward, ended = envs.step(action)
        rows.append((seen, action, policy.log_prob(action), value, reward, ended))
        envs.reset(ended)
    seen, action, log_prob, value, reward, ended = map(torch.stack, zip(*rows, strict=True))
    gains, gain, following = torch.empty_like(value), 0.0, agent(envs.observe())[1]
    for step in reversed(range(N_STEPS)):  # Generalized advantage estimation.
        alive = (~ended[step]).float()
        delta = reward[step] + gamma * alive * following - value[step]
        gains[step] = gain = delta + gamma * 0.95 * alive * gain
        following = value[step]
    return [part.flatten(0, 1) for part in (seen, action, log_prob, gains, gains + value)]


@torch.no_grad()
def mean_return(agent, n_episodes=64, seed=0):
    """The mean return of the policy without noise, always from the same starts."""
    envs, total = Pendulums(n_episodes), 0.0
    envs.reset(torch.ones(n_episodes, dtype=torch.bool), torch.Generator().manual_seed(seed))
    for _ in range(LENGTH):
        total += envs.step(agent(envs.observe())[0].mean)[0].mean().item()
    return total


def trainer(recipe, n_epochs, context):
    agent, optimizer, params = recipe.model, recipe.optimizer, context.params
    envs = context.register("environments", Pendulums(N_ENVS))
    if context.epoch == 0:
        envs.reset(torch.ones(N_ENVS, dtype=torch.bool))
    for _ in range(n_epochs):
        with torch.no_grad():
            data = collect(agent, envs, gamma=1 - 1 / params["horizon"])
        for _ in range(8):
            for rows in torch.randperm(len(data[0])).split(256):
                seen, action, old, advantage, target = (part[rows] for part in data)
                advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
                policy, value = agent(seen)
                ratio = (policy.log_prob(action) - old).exp()
                clipped = ratio.clamp(1 - params["clip"], 1 + params["clip"])
                gain = torch.minimum(ratio * advantage, clipped * advantage).mean()
                entropy = policy.entropy().mean()
                loss = (value - target).square().mean() - gain - params["entropy"] * entropy
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
                optimizer.step()
        yield miha.EpochResult(value=mean_return(agent))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--n-epochs", type=int, default=120)
    study = optuna.create_study(
        storage="sqlite:///reinforcement_learning.db", study_name="PPO", load_if_exists=True,
        direction="maximize", sampler=miha.MihaSampler(seed=0),
    )  # fmt: skip
    settings = {"trainer": trainer, "initial_params": START, "device": "cpu"}
    result = miha.optimize(study, model_fn, n_epochs=parser.parse_args().n_epochs, **settings)
    print(f"mean return: {result.value:.4f}")
