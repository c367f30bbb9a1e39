"""Flow matching between noise and data: interpolants, time grids, ODE and SDE solvers, guidance."""
