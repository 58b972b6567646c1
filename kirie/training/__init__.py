"""Training: a loop on one screen over Accelerate, resumable to the bit."""
