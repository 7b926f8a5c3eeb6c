"""What goes on beside a training and may not disturb it: neither its random numbers nor its memory."""

import gc
import random
from collections.abc import Generator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def undisturbed() -> Generator[None]:
    """Within it random numbers may be drawn and memory taken: afterwards all generators and modes are as before."""
    threads, grad = torch.get_num_threads(), torch.is_grad_enabled()
    python, numpy_state = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=list(devices)):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy_state)
            torch.set_num_threads(threads)
            torch.set_grad_enabled(grad)
            gc.collect()
            if devices:
                torch.cuda.empty_cache()
