"""What is computed, on no hardware: specifications, tensors with named axes, operators, layers."""
