"""Pure functions on arrays: the kernels that types, methods, metrics and formats are made of."""
