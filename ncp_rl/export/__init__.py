"""Controllers off the training machine: C99, ONNX and NumPy, proven equal to a recording."""

from ncp_rl.export.c_source import to_c
from ncp_rl.export.controller import Controller, ControllerError
from ncp_rl.export.numpy_source import to_numpy
from ncp_rl.export.onnx_graph import to_onnx
from ncp_rl.export.spec import ExportError
from ncp_rl.export.verify import ExportCheck, verify_export

__all__ = [
    "Controller",
    "ControllerError",
    "ExportCheck",
    "ExportError",
    "to_c",
    "to_numpy",
    "to_onnx",
    "verify_export",
]
