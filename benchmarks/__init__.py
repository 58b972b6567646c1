"""Speed and memory beside the peers, each in one run."""
