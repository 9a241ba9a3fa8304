"""One self-contained HTML page about graphs: pictures side by side, layers, weights, passes, timings."""

from bnnfx.inspect.report.write import report

__all__ = ["report"]
