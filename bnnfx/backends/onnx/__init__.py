"""Writing packed graphs as ONNX: what the targets that do share."""
