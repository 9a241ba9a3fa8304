"""The command line, `bnnfx`: one file per command."""

from bnnfx.cli import bench, convert, inspect, verify
from bnnfx.cli.common import app

__all__ = ["app", "bench", "convert", "inspect", "verify"]
