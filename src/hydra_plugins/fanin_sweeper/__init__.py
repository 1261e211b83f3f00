"""fanin as a Hydra sweeper plugin (discovered by Hydra through the hydra_plugins namespace)."""
