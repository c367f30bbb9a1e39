"""Measured training losses of recipes, as bands of +-15 %.

Measured with `fluvial train RECIPE`, torch 2.13.0, on one CPU core. Each loss is the mean over the train.log_every
steps before it, as in the log.
"""

MEASURED: dict[str, dict[int, float]] = {
    "digits-arflow": {50: 1.4480, 100: 0.8229, 200: 0.6118, 400: 0.4715, 800: 0.4077, 1200: 0.3877},
    "digits-flowar": {50: 1.5017, 100: 0.6429, 200: 0.4091, 400: 0.3027, 800: 0.2161, 1000: 0.2017},
    "digits-sit": {50: 1.4612, 100: 0.8325, 200: 0.5997, 400: 0.4640, 800: 0.4000, 1200: 0.3811},
}
BAND = 0.15
EXPECTED: dict[str, dict[int, tuple[float, float]]] = {
    name: {step: (loss * (1 - BAND), loss * (1 + BAND)) for step, loss in steps.items()}
    for name, steps in MEASURED.items()
}
