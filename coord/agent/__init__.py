"""An agent: registers, claims tasks up to its capacity, runs handlers and reports. It changes no state itself."""
