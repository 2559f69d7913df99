"""Groups and coefficients: which exist, their bounds, and the way between points and coefficients."""
