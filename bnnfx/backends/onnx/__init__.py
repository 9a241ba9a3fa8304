"""Writing packed graphs as ONNX files."""

from bnnfx.backends.onnx.onnx_file import export_onnx

__all__ = ["export_onnx"]
