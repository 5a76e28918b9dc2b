"""TrainState, the jitted step, the loop, optimiser and checkpoints."""
