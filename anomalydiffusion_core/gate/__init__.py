"""Whether a pair is good enough: its scores, the features they are compared in, and the gate."""
