"""Export a trained policy as a controller that needs neither PyTorch nor this package: C99, NumPy or ONNX.

Examples:
    ncp-rl export runs/mine --out controller              # controller.h, controller.c, main.c; for Python: .json, .py
    ncp-rl export runs/mine --out controller --to onnx    # for images and encoders of one's own too
    ncp-rl replay mine.mcap --deployed controller         # does it do what was recorded?
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

from ncp_rl.cli.status import FINE, reports_errors


@dataclass(frozen=True)
class Args:
    """Export the policy of a run folder as a controller."""

    run_folder: Positional[Path]
    """Run folder, as ncp-rl train makes it."""
    out: Path
    """Folder for the files."""
    to: Literal["c", "numpy", "onnx"] = "c"
    """c: controller.h, controller.c, main.c and, for Python, controller.json and controller.py. numpy: controller.json
    and controller.py, which needs NumPy alone. onnx: controller.onnx, for images and encoders of one's own too, and
    controller.py, which runs it."""
    which: Literal["best", "last"] = "best"
    """The best model by periodic evaluation, or the last."""
    min_seconds: float | None = None
    """The shortest step that the certified ranges shall hold for. Default: a tenth of the policy's step."""


@reports_errors(ValueError)
def main(args: Args) -> int:
    """Export, say where."""
    import torch

    import ncp_rl.cli.worlds  # noqa: F401  (registers ncp/ environments)
    from ncp_rl.export import to_c, to_numpy, to_onnx, write_runtime
    from ncp_rl.runs import load_run

    torch.set_num_threads(1)
    model, venv = load_run(args.run_folder, which=args.which, device="cpu")
    how: dict[str, Any] = dict(env=venv, min_seconds=args.min_seconds)
    if args.to == "c":
        print(to_c(model, args.out, **how) / "controller.c")
    elif args.to == "numpy":
        print(to_numpy(model, args.out, **how) / "controller.json")
    else:
        path = to_onnx(model, args.out / "controller.onnx", **how)
        write_runtime(args.out)
        print(path)
    venv.close()
    return FINE
