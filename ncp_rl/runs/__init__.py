"""Run folders: train an NCP policy, or a baseline of SB3, with PPO, save what later steps need, and load it again.

A run folder holds

    config.json                    environment, hyperparameters, seed and versions
    best/, last/                   model.zip and, where observations or rewards are normalised, vecnormalize.pkl
    checkpoints/                   models by step, and resume.pt, from which a killed training goes on
    evaluations.npz                returns and lengths of the periodic evaluations
    resumed.log                    a line for each time that a training went on
    progress.csv, events.out.*     training curves, for TensorBoard too

A file is complete or missing, whenever the process is killed. Models are files of Stable-Baselines3, which unpickles
them, and resume.pt is a pickle too: load only files that you trust.
"""

from ncp_rl.runs.checkpoint import CHECKPOINT
from ncp_rl.runs.config import EVALUATION_SEED, GENERAL, RunConfig, RunError, read_hyperparams
from ncp_rl.runs.environments import has_training_wrappers, make_envs
from ncp_rl.runs.evaluation import MAX_EPISODE_STEPS, EpisodeBound, Evaluation, Interval, evaluate, mean_interval
from ncp_rl.runs.folder import load_run, read_config, save_model
from ncp_rl.runs.models import BASELINES, POLICIES, algorithm, is_circuit, make_model, policy_class, seconds_per_step
from ncp_rl.runs.training import resume, train
from ncp_rl.runs.tuned import general_settings, tuned_file, tuned_settings, with_given

__all__ = [
    "BASELINES",
    "CHECKPOINT",
    "EVALUATION_SEED",
    "GENERAL",
    "MAX_EPISODE_STEPS",
    "POLICIES",
    "EpisodeBound",
    "Evaluation",
    "Interval",
    "RunConfig",
    "RunError",
    "algorithm",
    "evaluate",
    "general_settings",
    "has_training_wrappers",
    "is_circuit",
    "load_run",
    "make_envs",
    "make_model",
    "mean_interval",
    "policy_class",
    "read_config",
    "read_hyperparams",
    "resume",
    "save_model",
    "seconds_per_step",
    "train",
    "tuned_file",
    "tuned_settings",
    "with_given",
]
