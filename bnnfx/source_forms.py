"""How models are named on a command line; `model_source` builds them, and needs torch for it."""

PREFIX = "torchvision:"
IMAGE_SIZE = 224
FORMS = f"'{PREFIX}NAME', 'file.py:function' or 'module:function'"
