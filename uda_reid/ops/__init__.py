"""Pure functions on tensors and arrays: no files, no device choice, no global state."""
