"""Custom operators: what the bounded-memory implementation is made of, opaque to the compiler and differentiable."""
