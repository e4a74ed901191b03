"""Teach 19 neurons to keep a car on its lane by what a camera sees, and drivers of other kinds beside them.

    python scripts/driver.py                                   # the circuit, one seed: run folder and figures
    python scripts/driver.py --contenders ncp lstm-19 lstm-64 feed-forward --seeds 0 1 2
    python scripts/driver.py --report                          # the table and the plot from what has been measured

The task is that of Lechner et al. (Nature Machine Intelligence, 2020): 12 inter, 6 command and 1 motor neuron behind a
small convolutional head. An instructor that sees the car's true state shows what to do (DAgger); pictures are disturbed
in training too. Each driver then drives 100 fresh roads under rising disturbances, one kind at a time.
"""

from __future__ import annotations

import csv
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
import tyro
from matplotlib import pyplot
from ncp_envs.lane_keeping.baseline import Instructor
from ncp_envs.lane_keeping.sb3 import LaneKeepingVecEnv
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecMonitor

from ncp_rl.runs import RunConfig, RunError, make_model
from ncp_rl.teach import Lessons, episode_returns, teach_run

ENV = "ncp/LaneKeepingCamera-v0"
HEAD: dict[str, Any] = dict(
    features_extractor_class="ncp_rl.vision.ConvHead",
    features_extractor_kwargs=dict(features_dim=32, rows=[16, 48], pool=2),
)
#: Inter, command and motor neurons of the paper; each sensory neuron reaches half of the inter neurons.
WIRING: dict[str, Any] = dict(
    recipe="NCP",
    inter_neurons=12,
    command_neurons=6,
    sensory_fanout=6,
    inter_fanout=4,
    recurrent_command_synapses=6,
    motor_fanin=6,
)
