"""One ODE or SDE between noise and data: interpolants, time grids, solvers, guidance. Depends on PyTorch alone."""
