"""What to change so that no class is lost: mitigations, each verified by solving the problem again, with its price."""
