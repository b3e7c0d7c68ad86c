"""Following a run: JSON lines, TensorBoard and W&B behind one interface."""
