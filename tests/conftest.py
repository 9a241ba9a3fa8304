"""For all tests; its place puts tests/ on the import path, so that any folder can `from models import ...`."""

import torch

torch.set_num_threads(1)  # the test runner has a process per core
