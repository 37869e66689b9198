"""What the papers look at in trained image models: stability, trajectories, distances by step and by sampling steps."""
