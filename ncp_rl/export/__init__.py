"""Export of controllers as C99, ONNX and NumPy, and their verification against a recording."""

from ncp_rl.extras import require

require("export", "jinja2", "sklearn", "scipy", "networkx", "plotly", "mcap", "tqdm", by="ncp_rl.export")

from ncp_rl.export.c_source import to_c
from ncp_rl.export.controller import Controller, ControllerError, Monitor
from ncp_rl.export.controller_recorder import ControllerRecorder
from ncp_rl.export.deployed_question import DeployedQuestion
from ncp_rl.export.export_check import ExportCheck, verify_export
from ncp_rl.export.monitor_source import monitor_to_c, monitor_to_json, monitor_to_onnx, read_monitor
from ncp_rl.export.numpy_source import to_numpy, write_runtime
from ncp_rl.export.onnx_graph import to_onnx
from ncp_rl.export.spec import ExportError

__all__ = [
    "Controller",
    "ControllerError",
    "ControllerRecorder",
    "DeployedQuestion",
    "ExportCheck",
    "ExportError",
    "Monitor",
    "monitor_to_c",
    "monitor_to_json",
    "monitor_to_onnx",
    "read_monitor",
    "to_c",
    "to_numpy",
    "to_onnx",
    "verify_export",
    "write_runtime",
]
