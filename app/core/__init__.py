"""The core: folds and kernels. No I/O, no clock; time, randomness and model are arguments."""
