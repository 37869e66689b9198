"""Simulated tasks on the Gymnasium interface. Importing this package registers `immiscible/PushT-v0`."""

import gymnasium

gymnasium.register(
    id="immiscible/PushT-v0",
    entry_point="envs.pusht.env:PushTEnv",
    vector_entry_point="envs.pusht.vector_env:PushTVectorEnv",
    # Evaluations of the Diffusion Policy paper run 300 control steps (30 s at 10 Hz).
    max_episode_steps=300,
)
