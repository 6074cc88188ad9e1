"""Registry, configuration, hub, distribution and optimisation: what every other room may use."""
