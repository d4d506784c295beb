"""One thread a test process: the processes share the cores, and results do not depend on them."""

import torch

torch.set_num_threads(1)
