"""How long and how large: kernels, collectives, states, activations."""
