"""The mathematics of the operator: one family of pure functions a file, no branch on device or implementation."""
