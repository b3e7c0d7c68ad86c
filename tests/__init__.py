"""The tests. Without a GPU, kernels run in Triton's interpreter, which must be asked for before anything imports Triton."""

import os

import torch

if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") is None:
    os.environ["TRITON_INTERPRET"] = "1"
