"""One entry per experiment: config -> records -> picture."""
