"""Guards the imports of cli/: the command line starts without what only some commands need."""

from __future__ import annotations

import subprocess
import sys


def test_the_command_line_starts_without_the_libraries_that_single_commands_need() -> None:
    heavy = {"torchvision", "diffusers", "transformers", "lightning", "anomalib", "matplotlib", "ray"}
    script = f"import sys, anomalydiffusion_core.cli; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr
